"""A copy that a failover left frozen follows again, and never one that a failover still needs."""

from __future__ import annotations

import attrs
import pytest

from fencing.fence import Act, Decision, Refuse
from fencing.fence_view import FenceView
from fencing.rejoin import OwnCheckpoint, decide_apart, decide_reconcile, let_go, standing
from meshkit.codec import decode
from meshkit.commands import Command, CommandStep, Standing
from meshkit.keys import RegionalKeys as Keys
from meshkit.model import Lineage
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import ABSENT, Epoch, Incarnation, LeaseId, Revision, Sequence, Token
from meshkit.regional import Fence, FenceMode, GroupCheckpoint, JoinPhase
from meshkit.store.txn import Exists, Put

ORDERS = GroupName("orders")
LEADER = Exists(Keys.replicator_leader)
COMMAND = Command(
    group=ORDERS,
    cluster=ClusterName("b"),
    step=CommandStep.FENCE,
    incarnation=1,
    epoch=Epoch(3),
    failover=FailoverId("r-1"),
)
FROZEN = FenceView(
    group=ORDERS,
    fence=Fence(
        group=ORDERS,
        epoch=Epoch(1),
        mode=FenceMode.HELD,
        token=Token(incarnation=1, revision=Revision(5)),
        command_token=Token(incarnation=1, revision=Revision(50)),
    ),
    fence_revision=Revision(9),
    index_count=1,
    permit_revision=ABSENT,
    permit_lease=LeaseId(0),
    cut=None,
    opened=None,
)


def asked(view: FenceView, revision: int) -> Decision:
    token = Token(incarnation=1, revision=Revision(revision))
    return let_go(view, COMMAND, token, leader=LEADER)


def left_as(decision: Decision) -> Fence:
    assert isinstance(decision, Act)
    (put,) = [
        each
        for each in decision.txn.operations
        if isinstance(each, Put) and each.key == Keys.fence(ORDERS)
    ]
    return decode(Fence, put.value)


def test_a_copy_that_was_frozen_before_follows_again_in_its_epoch() -> None:
    fence = left_as(asked(FROZEN, 51))

    assert (fence.mode, fence.epoch) == (FenceMode.SUPERSEDED, Epoch(1))
    assert fence.command_token == Token(incarnation=1, revision=Revision(51))


def test_one_that_was_active_itself_waits_where_its_log_ends() -> None:
    view = attrs.evolve(FROZEN, opened=Sequence(3), cut=Sequence(8))

    assert left_as(asked(view, 51)).mode is FenceMode.DRAINED


@pytest.mark.parametrize("revision", [50, 49])
def test_a_freeze_that_is_not_older_is_left_to_its_failover(revision: int) -> None:
    assert isinstance(asked(FROZEN, revision), Refuse)


def ended(mode: FenceMode, epoch: int) -> FenceView:
    assert FROZEN.fence is not None
    return attrs.evolve(FROZEN, fence=attrs.evolve(FROZEN.fence, mode=mode, epoch=Epoch(epoch)))


def stands_on_b(epoch: int) -> Command:
    """The next epoch stands on this very cluster's log of an epoch."""
    lineage = Lineage(
        parent=ClusterName("b"),
        parent_incarnation=Incarnation("ib"),
        parent_epoch=Epoch(epoch),
        sequence=Sequence(7),
    )
    return attrs.evolve(COMMAND, epoch=Epoch(9), source=ClusterName("a"), lineage=lineage)


NEWER = Token(incarnation=1, revision=Revision(51))


@pytest.mark.parametrize("parent_epoch", [1, 3])
def test_a_cluster_is_set_apart_by_its_own_epoch_or_one_before_it(parent_epoch: int) -> None:
    """S6: an emergency may stand on an older epoch of a cluster that was active again since."""
    command = stands_on_b(parent_epoch)
    decision = decide_apart(ended(FenceMode.DRAINED, 3), [], command, NEWER, leader=LEADER)

    assert left_as(decision).mode is FenceMode.SUPERSEDED
    assert isinstance(decision, Act)
    joins = [
        decode(GroupCheckpoint, each.value)
        for each in decision.txn.operations
        if isinstance(each, Put) and each.key.startswith(Keys.checkpoints)
    ]
    assert [(j.phase, j.lineage) for j in joins] == [(JoinPhase.AHEAD, command.lineage)]


def test_a_cluster_is_not_set_apart_by_an_epoch_that_has_not_ended_here() -> None:
    view = ended(FenceMode.DRAINED, 3)

    assert isinstance(decide_apart(view, [], stands_on_b(4), NEWER, leader=LEADER), Refuse)


def test_a_cluster_that_follows_is_not_set_apart_and_goes_on_as_it_does() -> None:
    view = ended(FenceMode.SUPERSEDED, 8)
    decision = decide_reconcile(view, [], stands_on_b(1), NEWER, leader=LEADER)

    assert standing(view, []) is Standing.FOLLOWS
    assert isinstance(decide_apart(view, [], stands_on_b(1), NEWER, leader=LEADER), Refuse)
    assert left_as(decision).epoch == Epoch(8)
    assert isinstance(decision, Act)
    assert [op.key for op in decision.txn.operations if isinstance(op, Put)] == [
        Keys.fence(ORDERS),
        Keys.fence_index,
    ]


def test_what_a_cluster_was_set_apart_by_is_not_forgotten() -> None:
    """Authority moves on while it waits: what it has too much is still counted from there."""
    first = stands_on_b(1).lineage
    apart = OwnCheckpoint(
        source=ClusterName("c"), phase=JoinPhase.AHEAD, revision=Revision(4), lineage=first
    )
    view = ended(FenceMode.SUPERSEDED, 8)
    decision = decide_apart(view, [apart], stands_on_b(2), NEWER, leader=LEADER)

    assert standing(view, [apart]) is Standing.AHEAD
    assert isinstance(decision, Act)
    kept = [
        decode(GroupCheckpoint, each.value).lineage
        for each in decision.txn.operations
        if isinstance(each, Put) and each.key.startswith(Keys.checkpoints)
    ]
    assert kept == [first]
