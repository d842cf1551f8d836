"""Freezing a passive copy for an emergency, thawing it, and sealing its source. Pure.

A freeze is durable (architecture 5.1 rule 5): one transaction writes mode `held` with the command's
token and the group's own checkpoint at exactly where the copy stands, which it compares. So the
watermark cannot move afterwards, whoever has a batch in hand (S10); other groups of the same
stream go on, because the main stream leaves a group that has its own checkpoint alone; and a thaw
follows from there, with nothing skipped (S8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from fencing.decision import Act, Decision, Refuse, epoch_text, fence_txn, obeyed
from fencing.fence_view import FenceView
from meshkit.codec import encode
from meshkit.commands import Command
from meshkit.keys import RegionalKeys as Keys
from meshkit.model import Lineage
from meshkit.names import ClusterName
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Revision, Token
from meshkit.regional import (
    Checkpoint,
    CopyBasis,
    FenceMode,
    GroupCheckpoint,
    JoinPhase,
    SegmentCut,
)
from meshkit.store.txn import Delete, Guard, ModRevisionIs, Operation, Put


@attrs.frozen(kw_only=True)
class Copy:
    """How far the log of `source` is contained here, read at one revision with the fence."""

    source: ClusterName
    main: Checkpoint | None
    main_revision: Revision = ABSENT
    own: GroupCheckpoint | None = None
    """The group's own checkpoint, if it is out of step with that source."""
    own_revision: Revision = ABSENT
    is_torn: bool = False
    """Whether the copy holds a part of a transaction."""
    parts_revision: Revision = ABSENT


def stands_on(
    view: FenceView,
    command: Command,
    copies: Iterable[Copy],
    *,
    me: ClusterName,
    incarnation: Incarnation,
) -> Lineage | str:
    """Return what an epoch opened here would stand on, or why none can be opened here.

    The copy follows the source's epoch, or still the one which that stands on.
    """
    fence = view.fence
    if fence is None:
        return "this cluster never had to do with the group"
    if fence.mode is FenceMode.OPEN:
        return f"this cluster is active itself, in epoch {fence.epoch}"
    if is_cut_here(view):
        return _own_cut(view, fence.epoch, command, me=me, incarnation=incarnation)
    parent = _followed(fence.epoch, command)
    if parent is None:
        return f"this cluster follows {epoch_text(fence)}, not epoch {command.epoch}"
    return _copied(fence.epoch, parent, {copy.source: copy for copy in copies})


def _copied(epoch: Epoch, parent: ClusterName, copies: Mapping[ClusterName, Copy]) -> Lineage | str:
    """The same where another cluster's log is copied: if the copy is complete."""
    others = sorted(c.source for c in copies.values() if c.own and c.source != parent)
    if others:
        return f"the copy here is not complete: it joins from {', '.join(others)}"
    copy = copies.get(parent)
    if copy is None or copy.main is None:
        return f"nothing of {parent} is applied here"
    if copy.is_torn:
        return "the copy here holds a part of a transaction, and not the rest"
    at: Checkpoint | GroupCheckpoint = copy.main
    if copy.own is not None:
        if copy.own.phase is not JoinPhase.FOLLOWING or copy.own.epoch != epoch:
            return f"the copy here is not complete: {copy.own.phase.value} from {parent}"
        at = copy.own
    return Lineage(
        parent=parent,
        parent_incarnation=at.incarnation,
        parent_epoch=epoch,
        sequence=at.sequence,
        may_go_on=True,
    )


def _followed(epoch: Epoch, command: Command) -> ClusterName | None:
    if epoch == command.epoch:
        return command.source
    lineage = command.lineage
    return lineage.parent if lineage and lineage.parent_epoch == epoch else None


def is_cut_here(view: FenceView) -> bool:
    """Return whether this cluster itself was active in the fence's epoch, and has stopped."""
    return view.opened is not None and view.cut is not None


def _own_cut(
    view: FenceView,
    epoch: Epoch,
    command: Command,
    *,
    me: ClusterName,
    incarnation: Incarnation,
) -> Lineage | str:
    """The same where writes were before: its own log up to its cut, if its successor stands there.

    Otherwise it was superseded without its help, and may have what its successor has not.
    """
    lineage = command.lineage
    assert view.cut is not None, "it was cut here"
    if lineage is None or (lineage.parent, lineage.parent_epoch) != (me, epoch):
        return (
            f"this cluster was active in epoch {epoch}, on which epoch {command.epoch} does not"
            " stand: it must rejoin"
        )
    if lineage.sequence != view.cut:
        return (
            f"this cluster stopped at {view.cut} of its log, its successor stands on"
            f" {lineage.sequence}: it must rejoin"
        )
    return Lineage(
        parent=me,
        parent_incarnation=incarnation,
        parent_epoch=epoch,
        sequence=view.cut,
        prefixes=view.scope or (),
    )


def freeze(
    view: FenceView,
    command: Command,
    token: Token,
    leader: Guard,
    *,
    on: Lineage,
    copy: Copy | None,
) -> Act:
    """Return the act that fixes the copy where it stands."""
    assert view.fence is not None, "a copy has a fence"
    held = obeyed(view.fence, command, token, mode=FenceMode.HELD)
    operations: list[Operation] = []
    guards: list[Guard] = []
    if copy is not None:
        guards.append(ModRevisionIs(Keys.checkpoint(copy.source), copy.main_revision))
        key = Keys.group_checkpoint(copy.source, view.group)
        guards.append(ModRevisionIs(key, copy.own_revision))
        guards.append(ModRevisionIs(Keys.parts(copy.source), copy.parts_revision))
        if copy.own is None:
            checkpoint = GroupCheckpoint(
                source=copy.source,
                group=view.group,
                incarnation=on.parent_incarnation,
                phase=JoinPhase.FOLLOWING,
                epoch=on.parent_epoch,
                sequence=on.sequence,
                reason="frozen for an emergency",
                basis=CopyBasis.OLDER,
            )
            operations.append(Put(key, encode(checkpoint)))
    txn = fence_txn(view, held, leader=leader, operations=tuple(operations))
    return Act(attrs.evolve(txn, guards=(*txn.guards, *guards)))


def thaw(view: FenceView, command: Command, token: Token, leader: Guard) -> Decision:
    """Follow again; where writes were before, go on waiting for the successor."""
    if view.fence is None:
        return Refuse("this cluster never had to do with the group")
    mode = view.fence.mode
    if mode is FenceMode.HELD:
        mode = FenceMode.DRAINED if is_cut_here(view) else FenceMode.SUPERSEDED
    return Act(fence_txn(view, obeyed(view.fence, command, token, mode=mode), leader=leader))


def seal(view: FenceView, command: Command, token: Token, leader: Guard) -> Decision:
    """Stop being active. A cluster that never opened the epoch only takes the token: so it cannot.

    An `open` that is still on its way has a lower one.
    """
    fence = view.fence
    if fence is None:
        return Refuse("this cluster never had to do with the group")
    if fence.epoch > command.epoch:
        return Refuse(f"this cluster is in epoch {fence.epoch} by now")
    if fence.epoch < command.epoch:
        return Act(fence_txn(view, obeyed(fence, command, token, mode=fence.mode), leader=leader))
    if fence.mode not in (FenceMode.OPEN, FenceMode.DRAINED):
        return Refuse(f"the fence is {fence.mode.value}: it was not active in epoch {fence.epoch}")
    sealed = obeyed(fence, command, token, mode=FenceMode.DRAINED)
    operations: list[Operation] = [Delete(Keys.permit(view.group))]
    if view.cut is None:
        cut = SegmentCut(group=view.group, epoch=fence.epoch, command_token=token)
        operations.append(Put(Keys.segment_cut(view.group, fence.epoch), encode(cut)))
    return Act(fence_txn(view, sealed, leader=leader, operations=tuple(operations)))
