"""What an adoption of the coordination etcd gives a group, decided from what fences prove."""

from __future__ import annotations

import attrs
import pytest

from coordinator.adoption import AdoptionPlan, plan
from coordinator.adoption_regions import Answering, Region
from coordinator.mesh import Mesh, Seen
from meshkit.asking import GroupStanding, RegionStanding
from meshkit.commands import CommandStep
from meshkit.incarnations import SuspectStore, Suspension
from meshkit.model import Authority, ClusterDescriptor, CoordinationIncarnation, Group, Routing
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.promises import Pact
from meshkit.regional import Fence, FenceMode

A, B, C = ClusterName("a"), ClusterName("b"), ClusterName("c")
G = GroupName("orders")
DRAINED, SUPERSEDED = FenceMode.DRAINED, FenceMode.SUPERSEDED


def token(revision: int, incarnation: int = 1) -> Token:
    return Token(incarnation=incarnation, revision=Revision(revision))


def suspension(cluster: ClusterName, knew: str = "1") -> Suspension:
    return Suspension(
        cluster=cluster,
        store=SuspectStore.COORDINATION,
        incarnation=Incarnation(knew),
        reason="its revision fell",
        replicator=f"{cluster}-0",
        at_ms=7,
    )


def standing(
    mode: FenceMode, epoch: int, *, saw: tuple[ClusterName, int] | None = None
) -> GroupStanding:
    """What a region has of the group; `saw` is the active cluster and epoch of its routing copy."""
    was_active = mode in (FenceMode.OPEN, DRAINED)
    routing = None
    if saw is not None:
        routing = Routing(group=G, epoch=Epoch(saw[1]), token=token(saw[1] * 10), active=saw[0])
    return GroupStanding(
        fence=Fence(group=G, epoch=Epoch(epoch), mode=mode, token=token(epoch * 10)),
        cut=Sequence(500) if mode is DRAINED else None,
        prefixes=("/orders/",) if was_active else (),
        routing=routing,
    )


def region(cluster: ClusterName, one: GroupStanding | None = None, *, knew: str = "1") -> Region:
    """A region that has stopped."""
    return Region(
        cluster=cluster,
        standing=RegionStanding(
            incarnation=Incarnation(f"{cluster}1"),
            suspension=suspension(cluster, knew),
            coordination=Incarnation(knew),
            groups=(one,) if one else (),
        ),
        groups={G: one} if one else {},
    )


def silent(cluster: ClusterName) -> Region:
    return Region(cluster=cluster, problem="nobody answers")


def mesh_of(*clusters: ClusterName, authority: Authority | None = None) -> Mesh:
    group = Group(name=G, prefixes=("/orders/",), members=clusters)
    return Mesh(
        revision=Revision(50),
        clusters={c: Seen(ClusterDescriptor(name=c), Revision(1)) for c in clusters},
        groups={G: Seen(group, Revision(2))},
        authorities={G: Seen(authority, Revision(3))} if authority else {},
        routings={},
        sealed=frozenset(),
        health={},
        streams={},
        suspensions={c: Seen(suspension(c), Revision(4)) for c in clusters},
        incarnation=CoordinationIncarnation(),
    )


def planned(*regions: Region, authority: Authority | None = None, waive: str = "") -> AdoptionPlan:
    mesh = mesh_of(*(r.cluster for r in regions), authority=authority)
    names = frozenset(ClusterName(name) for name in waive.split())
    return plan(mesh, {r.cluster: r for r in regions}, waive=names)


def snapshot_says(active: ClusterName, epoch: int) -> Authority:
    return Authority(group=G, epoch=Epoch(epoch), token=token(epoch * 10), active=active)


def test_the_greatest_epoch_that_was_opened_goes_on_in_a_new_one_on_its_own_cut() -> None:
    """A snapshot older than the last pivot says that another cluster is active."""
    found = planned(
        region(A, standing(DRAINED, 1)),
        region(B, standing(DRAINED, 2)),
        authority=snapshot_says(A, 1),
    )

    (choice,) = found.choices
    assert found.problems == ()
    assert (choice.active, choice.epoch, choice.token) == (B, 3, None)
    assert choice.lineage is not None
    assert (choice.lineage.parent, choice.lineage.parent_epoch) == (B, 2)
    assert choice.lineage.sequence == 500
    floor = token(60, found.number)
    (command,) = choice.commands(floor)
    assert (command.step, command.cluster, command.token) == (CommandStep.OPEN, B, floor)


def test_an_epoch_that_was_given_and_never_opened_is_never_used_again() -> None:
    """An emergency's pivot was done, its open not: only a copy of the routing record tells."""
    found = planned(
        region(A, standing(DRAINED, 1, saw=(B, 2))), region(B, standing(FenceMode.HELD, 1))
    )

    (choice,) = found.choices
    assert (choice.active, choice.epoch) == (A, 3)
    assert choice.frozen == (B,)
    steps = {c.cluster: c.step for c in choice.commands(token(60, 2))}
    assert steps == {A: CommandStep.OPEN, B: CommandStep.THAW}


def test_a_silent_member_stops_the_adoption_until_it_is_waived_by_name() -> None:
    found = planned(region(A, standing(DRAINED, 1)), silent(B))
    assert any("--waive b" in problem for problem in found.problems)

    waived = planned(region(A, standing(DRAINED, 1)), silent(B), waive="b")
    assert waived.problems == ()
    assert waived.regions[B] is Answering.WAIVED
    assert waived.wait_ms >= 30_000


def test_a_waived_member_may_have_been_in_epochs_that_nobody_else_saw() -> None:
    """So the new epoch lies above them: when that member is back, it is the one superseded."""
    found = planned(region(A, standing(DRAINED, 1)), silent(B), waive="b")

    assert found.choices[0].epoch > 1_000


def test_authority_stays_with_a_waived_member_that_others_saw_promoted() -> None:
    found = planned(
        region(A, standing(SUPERSEDED, 2, saw=(B, 2))),
        silent(B),
        authority=snapshot_says(A, 1),
        waive="b",
    )

    (choice,) = found.choices
    assert (choice.active, choice.epoch, choice.token) == (B, 2, token(20))
    assert choice.is_left
    (command,) = choice.commands(token(60, 2))
    assert (command.step, command.cluster) == (CommandStep.RELEASE, B)
    assert choice.pact() == Pact(group=G, epoch=Epoch(2), cluster=B, members=(B,)), (
        "it may go on by promise, and nobody knows whose"
    )


def test_whoever_begins_a_new_epoch_makes_its_own_pact() -> None:
    found = planned(region(A, standing(DRAINED, 1)), region(B, standing(SUPERSEDED, 1)))

    (choice,) = found.choices
    assert choice.pact() is None


def test_an_epoch_that_is_followed_and_that_nobody_opened_stops_it() -> None:
    found = planned(region(A, standing(DRAINED, 1)), region(B, standing(SUPERSEDED, 2)))

    assert found.choices == ()
    assert any("no region that answers opened it" in problem for problem in found.problems)


def test_two_clusters_that_opened_the_same_epoch_stop_it() -> None:
    found = planned(region(A, standing(DRAINED, 2)), region(B, standing(DRAINED, 2)))

    assert any("a and b both say" in problem for problem in found.problems)


@pytest.mark.parametrize(
    "running",
    [
        region(B, standing(FenceMode.OPEN, 1)),
        region(B, attrs.evolve(standing(DRAINED, 1), has_permit=True)),
        Region(
            cluster=B,
            standing=attrs.evolve(region(B).standing, suspension=None),
            groups={G: standing(SUPERSEDED, 1)},
        ),
    ],
    ids=["open", "permit", "not suspended"],
)
def test_a_region_that_has_not_stopped_stops_the_adoption(running: Region) -> None:
    """Waiving is for regions that do not answer: this one does, and may accept writes."""
    found = planned(region(A, standing(SUPERSEDED, 1)), running, waive="b")

    assert found.regions[B] is Answering.RUNNING
    assert any("b has not stopped" in problem for problem in found.problems)


def test_a_region_that_looks_at_another_copy_of_the_etcd_has_not_stopped() -> None:
    """Its own word of the suspension is not in this one."""
    stopped = region(B, standing(SUPERSEDED, 1))
    mesh = mesh_of(A, B)
    mesh = attrs.evolve(mesh, suspensions={A: mesh.suspensions[A]})
    found = plan(mesh, {A: region(A, standing(DRAINED, 1)), B: stopped}, waive=frozenset())

    assert found.regions[B] is Answering.RUNNING


def test_the_number_is_above_all_that_anybody_has_heard_of() -> None:
    """In fences, tokens, or remembered: else a token of a history undone might win."""
    knows = region(B, standing(SUPERSEDED, 1), knew="4-abc")
    obeyed = standing(DRAINED, 1)
    fence = attrs.evolve(obeyed.fence, command_token=token(9, incarnation=6))
    found = planned(region(A, attrs.evolve(obeyed, fence=fence)), knows)

    assert found.number == 7


def test_what_an_etcd_set_up_anew_says_of_itself_counts_for_nothing() -> None:
    """Groups that are applied again are founded at their first member, in epoch 1."""
    founded = Authority(group=G, epoch=Epoch(1), token=token(9_999), active=A)
    found = planned(
        region(A, standing(SUPERSEDED, 1, saw=(B, 1))), silent(B), authority=founded, waive="b"
    )

    (choice,) = found.choices
    assert (choice.active, choice.epoch, choice.token) == (B, 1, token(10))


def test_a_group_that_was_never_opened_begins() -> None:
    found = planned(region(A), region(B), authority=snapshot_says(A, 1))

    (choice,) = found.choices
    assert (choice.active, choice.epoch, choice.lineage) == (A, 2, None)
    assert choice.authority(token(60, 2)).token > NO_TOKEN
