"""How a superseded cluster becomes a standby again, as two transactions. Pure.

First it is set apart: it follows the new epoch in name, and nothing is applied before what it has
too much was set aside. Then it is let in: the copy, or the stream, may write over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from fencing.fence import Act, Decision, Ignore, Refuse, Repeat, fence_txn
from fencing.fence_view import FenceView
from fencing.freeze import thaw
from meshkit.codec import encode
from meshkit.commands import Command, Standing
from meshkit.keys import RegionalKeys as Keys
from meshkit.model import Lineage
from meshkit.names import ClusterName
from meshkit.ordinals import ABSENT, NOTHING, Incarnation, Revision, Token
from meshkit.regional import CopyBasis, Fence, FenceMode, GroupCheckpoint, JoinPhase
from meshkit.store.txn import Delete, Guard, ModRevisionIs, Operation, Put


@attrs.frozen(kw_only=True)
class OwnCheckpoint:
    """A checkpoint of the group's own, as it was read with the fence."""

    source: ClusterName
    phase: JoinPhase
    revision: Revision
    lineage: Lineage | None = None
    """While ahead: what the epoch stands on that this cluster has more than."""


def standing(view: FenceView, joins: Sequence[OwnCheckpoint]) -> Standing:
    """Return how this cluster stands, whatever made somebody ask it to rejoin.

    One that follows has met the end of its parent's log, or is being copied: what it has past the
    start of some older epoch came by a stream, and looking for a tail there would find all of it.
    """
    if any(join.phase is JoinPhase.AHEAD for join in joins):
        return Standing.AHEAD
    if view.mode is FenceMode.SUPERSEDED:
        return Standing.FOLLOWS
    return Standing.ENDED if view.mode is FenceMode.DRAINED else Standing.UNSAID


def known_lineage(joins: Sequence[OwnCheckpoint]) -> Lineage | None:
    """Return what the epoch stands on that this cluster has more than, if it wrote that down."""
    return next((join.lineage for join in joins if join.phase is JoinPhase.AHEAD), None)


def let_go(view: FenceView, command: Command, token: Token, *, leader: Guard) -> Decision:
    """Return how a copy follows again that was frozen for a failover which is over without it.

    A freeze that is newer than the command is that of a failover that runs.
    """
    if token <= view.command_token:
        return Refuse("the copy is frozen by a failover: it decides first")
    return thaw(view, command, token, leader)


def decide_apart(
    view: FenceView,
    joins: Sequence[OwnCheckpoint],
    command: Command,
    token: Token,
    *,
    leader: Guard,
) -> Decision:
    """Return how a cluster is set apart that has something its successor does not stand on.

    The main stream leaves the group alone from then on, and the other groups go on.
    """
    fence = view.fence
    found = _checked(view, fence, command, token)
    if found is not None:
        return found
    assert fence is not None, "it was checked"
    if standing(view, joins) is Standing.FOLLOWS:
        return Refuse(f"it follows epoch {fence.epoch} already: there is nothing to set apart")
    return _act(view, fence, joins, command, token, leader, JoinPhase.AHEAD)


def decide_reconcile(
    view: FenceView,
    joins: Sequence[OwnCheckpoint],
    command: Command,
    token: Token,
    *,
    leader: Guard,
) -> Decision:
    """Return how the group follows the active cluster from now on.

    By its stream, from where this cluster's own log ends, if nothing diverged and the stream has
    not passed the beginning of the new epoch yet; otherwise by a copy. One that follows already
    goes on as it does.
    """
    fence = view.fence
    found = _checked(view, fence, command, token)
    if found is not None:
        return found
    assert fence is not None, "it was checked"
    if standing(view, joins) is Standing.FOLLOWS:
        return Act(fence_txn(view, _obeyed(fence, command, token), leader=leader))
    parent_epoch = command.lineage.parent_epoch if command.lineage else None
    waits_at_its_end = fence.mode is FenceMode.DRAINED and fence.epoch == parent_epoch
    if not command.is_diverged and waits_at_its_end and not joins:
        passive = _obeyed(fence, command, token)
        return Act(fence_txn(view, passive, leader=leader))
    return _act(view, fence, joins, command, token, leader, JoinPhase.JOINING)


def _checked(
    view: FenceView, fence: Fence | None, command: Command, token: Token
) -> Decision | None:
    if token < view.command_token:
        return Ignore(view.command_token)
    if token == view.command_token:
        return Repeat()
    why = _why_not(view, fence, command)
    return Refuse(why) if why else None


def _why_not(view: FenceView, fence: Fence | None, command: Command) -> str:
    if fence is None:
        return "this cluster never had to do with the group"
    if fence.mode is FenceMode.OPEN or fence.epoch > command.epoch:
        return f"the fence is {fence.mode.value} in epoch {fence.epoch}"
    if fence.mode is FenceMode.HELD:
        return "the copy is frozen by a failover: it decides first"
    if view.permit_revision != ABSENT:
        return "a permit is still there: it must be fenced first"
    lineage = command.lineage
    own = lineage if lineage is not None and lineage.parent == command.cluster else None
    if own and fence.mode is FenceMode.DRAINED and own.parent_epoch > fence.epoch:
        return f"epoch {own.parent_epoch} has not ended here: {fence.epoch} has"
    return ""


def _act(  # noqa: PLR0917 -- one transaction, and all that it is made of
    view: FenceView,
    fence: Fence,
    joins: Sequence[OwnCheckpoint],
    command: Command,
    token: Token,
    leader: Guard,
    phase: JoinPhase,
) -> Act:
    """Return the act that leaves exactly one checkpoint of the group's own."""
    assert command.source is not None, "it says whom to follow"
    lineage = (known_lineage(joins) or command.lineage) if phase is JoinPhase.AHEAD else None
    checkpoint = GroupCheckpoint(
        source=command.source,
        group=view.group,
        incarnation=Incarnation(""),
        phase=phase,
        epoch=command.epoch,
        sequence=lineage.sequence if lineage else NOTHING,
        lineage=lineage,
        basis=CopyBasis.OLDER,
        reason="it rejoins" if phase is JoinPhase.JOINING else "it has what its successor has not",
    )
    passive = attrs.evolve(_obeyed(fence, command, token), epoch=command.epoch)
    guards: list[Guard] = []
    operations: list[Operation] = []
    for join in joins:
        key = Keys.group_checkpoint(join.source, view.group)
        guards.append(ModRevisionIs(key, join.revision))
        if join.source != command.source:
            operations.append(Delete(key))
    key = Keys.group_checkpoint(command.source, view.group)
    if not any(join.source == command.source for join in joins):
        guards.append(ModRevisionIs(key, ABSENT))
    operations.append(Put(key, encode(checkpoint)))
    txn = fence_txn(view, passive, leader=leader, operations=tuple(operations))
    return Act(attrs.evolve(txn, guards=(*txn.guards, *guards)))


def _obeyed(fence: Fence, command: Command, token: Token) -> Fence:
    return attrs.evolve(
        fence,
        mode=FenceMode.SUPERSEDED,
        command_token=token,
        step=command.step.value,
        failover=command.failover,
    )
