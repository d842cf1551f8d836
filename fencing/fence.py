"""What a region's replicator does about a command, and the one transaction that does it. Pure.

The fence record decides, not memory (architecture 4.1 rule 1). Every act is one transaction that
compares the fence's mod revision, the fence index and the regional leadership, and writes the
command's token with what came of it. So a successor finds the outcome of its predecessor (S2), a
delayed transaction of a deposed one fails (S3), and a late command changes nothing (S4). Whatever
may put a permit also compares that nothing was promised here (4.1 rule 4, S13).

The invariant: of all transactions this module builds, only `open_fence`, `undrain` and
`permit_again` leave a permit possible, and each is refused once a higher token was obeyed.
"""

from __future__ import annotations

import attrs

from fencing.decision import (
    Act,
    Decision,
    Ignore,
    Refuse,
    Repeat,
    Wait,
    epoch_reason,
    epoch_text,
    fence_txn,
    no_promise,
    obeyed,
    permit_put,
    promised,
)
from fencing.fence_view import FenceView
from fencing.freeze import seal, thaw
from meshkit.codec import encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import RegionalKeys as Keys
from meshkit.model import Authority, Routing
from meshkit.names import ClusterName
from meshkit.ordinals import ABSENT, NO_TOKEN, Epoch, Incarnation, LeaseId, Token
from meshkit.regional import (
    CopyBasis,
    Fence,
    FenceIndex,
    FenceMode,
    GroupCheckpoint,
    JoinPhase,
    SegmentCut,
    SegmentOpened,
    SegmentScope,
)
from meshkit.store.txn import Delete, Guard, ModRevisionIs, Operation, Put, Txn

__all__ = [
    "Act",
    "Decision",
    "Ignore",
    "Refuse",
    "Repeat",
    "Wait",
    "decide",
    "fence_txn",
    "join",
    "permit_again",
    "permit_put",
    "scope_again",
    "supersede",
]

# --- deciding -----------------------------------------------------------------------------------


def decide(
    view: FenceView,
    command: Command,
    token: Token,
    *,
    leader: Guard,
    lease: LeaseId | None = None,
    routing: Routing | None = None,
    prefixes: tuple[str, ...] = (),
) -> Decision:
    """Return what to do about a command that changes the fence.

    `lease` is the regional lease the permit is to hang on; `open` and `undrain` put a permit only
    if there is one (the upkeep puts it later otherwise). `prefixes` are the group's, for `open`.
    """
    if token < view.command_token:
        return Ignore(view.command_token)
    if token == view.command_token:
        return Repeat()
    if command.step in _WITHOUT_PERMIT:
        return _WITHOUT_PERMIT[command.step](view, command, token, leader)
    if command.step is CommandStep.OPEN or _never_opened(view, command):
        return _open(view, command, token, leader, lease=lease, routing=routing, prefixes=prefixes)
    assert command.step in (CommandStep.UNDRAIN, CommandStep.RELEASE), "it changes the fence"
    return _undrain(view, command, token, leader, lease)


def _never_opened(view: FenceView, command: Command) -> bool:
    """Return whether a cluster that is released has authority and was fenced before it opened."""
    is_behind = view.fence is None or view.fence.epoch < command.epoch
    return command.step is CommandStep.RELEASE and is_behind


def _drain(view: FenceView, command: Command, token: Token, leader: Guard) -> Decision:
    fence = view.fence
    if fence is None or fence.epoch != command.epoch:
        return Refuse(epoch_reason(view, command))
    if fence.mode not in (FenceMode.OPEN, FenceMode.DRAINED):
        return Refuse(f"the fence is {fence.mode.value}, not open")
    drained = obeyed(fence, command, token, mode=FenceMode.DRAINED)
    operations: list[Operation] = [Delete(Keys.permit(view.group))]
    if view.cut is None:
        cut = SegmentCut(group=view.group, epoch=fence.epoch, command_token=token)
        operations.append(Put(Keys.segment_cut(view.group, fence.epoch), encode(cut)))
    return Act(fence_txn(view, drained, leader=leader, operations=tuple(operations)))


def _undrain(
    view: FenceView, command: Command, token: Token, leader: Guard, lease: LeaseId | None
) -> Decision:
    fence = view.fence
    if fence is None or fence.epoch != command.epoch:
        return Refuse(epoch_reason(view, command))
    if fence.mode not in (FenceMode.OPEN, FenceMode.DRAINED):
        return Refuse(f"the fence is {fence.mode.value}: writes were given away")
    opened = obeyed(fence, command, token, mode=FenceMode.OPEN)
    operations: list[Operation] = [Delete(Keys.segment_cut(view.group, fence.epoch))]
    if lease and view.permit_revision == ABSENT:
        operations.append(permit_put(opened, lease))
    return promised(view) or Act(
        fence_txn(
            view,
            opened,
            leader=leader,
            operations=tuple(operations),
            guards=(no_promise(view),),
        )
    )


def _open(
    view: FenceView,
    command: Command,
    token: Token,
    leader: Guard,
    *,
    lease: LeaseId | None,
    routing: Routing | None,
    prefixes: tuple[str, ...],
) -> Decision:
    fence, group, epoch = view.fence, view.group, command.epoch
    epoch_token = command.token or token
    if fence and fence.epoch == epoch and fence.mode is FenceMode.OPEN:
        again = obeyed(fence, command, token, mode=FenceMode.OPEN)
        return Act(fence_txn(view, again, leader=leader))
    if fence and fence.epoch >= epoch:
        return Refuse(epoch_reason(view, command))
    covered = _covered(command, prefixes)
    missing = "" if _goes_on(view, command) else _missing_to_open(fence, command, covered)
    if missing or lease is None:
        return Refuse(missing or "there is no regional lease to hang the permit on")
    opened = Fence(
        group=group,
        epoch=epoch,
        mode=FenceMode.OPEN,
        token=epoch_token,
        command_token=token,
        step=command.step.value,
        failover=command.failover,
    )
    segment = SegmentOpened(group=group, epoch=epoch, token=epoch_token, lineage=command.lineage)
    scope = SegmentScope(group=group, epoch=epoch, prefixes=covered)
    operations: list[Operation] = [
        permit_put(opened, lease),
        Put(Keys.segment_opened(group, epoch), encode(segment)),
        Put(Keys.segment_scope(group, epoch), encode(scope)),
    ]
    if routing is not None:
        operations.append(Put(Keys.routing(group), encode(routing)))
    if command.lineage is not None:
        # A frozen copy has a checkpoint of its own: it has served its purpose.
        operations.append(Delete(Keys.group_checkpoint(command.lineage.parent, group)))
    operations.append(Delete(Keys.promises_refused(group)))
    return promised(view) or Act(
        fence_txn(
            view,
            opened,
            leader=leader,
            operations=tuple(operations),
            guards=(no_promise(view),),
        )
    )


def _goes_on(view: FenceView, command: Command) -> bool:
    """Return whether a cluster begins a new epoch on the very cut at which it stopped itself.

    So it does when a coordination etcd was adopted: nobody else has opened a group since.
    """
    fence, on = view.fence, command.lineage
    return (
        fence is not None
        and fence.mode is FenceMode.DRAINED
        and on is not None
        and on.prefixes != ()
        and (on.parent, on.parent_epoch, on.sequence) == (command.cluster, fence.epoch, view.cut)
    )


def _missing_to_open(fence: Fence | None, command: Command, covered: tuple[str, ...]) -> str:
    """Return why this cluster cannot open the command's epoch, or nothing."""
    lineage = command.lineage
    parent_epoch = lineage.parent_epoch if lineage else None
    if fence is not None and fence.mode not in (FenceMode.SUPERSEDED, FenceMode.HELD):
        return f"the fence is {fence.mode.value} in epoch {fence.epoch}"
    if lineage and lineage.may_go_on and fence and fence.mode is not FenceMode.HELD:
        return f"the copy is not frozen at {lineage.sequence}: the fence is {fence.mode.value}"
    if (fence.epoch if fence else None) != parent_epoch:
        return f"this cluster follows {epoch_text(fence)}, not epoch {parent_epoch}"
    return "" if covered else "it is not known what the group covers"


def _covered(command: Command, prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the scope to open with: the parent's at its cut, so that nothing changes unmarked.

    If the group covers more by now, upkeep says so in the log afterwards (`scope_again`).
    """
    if command.lineage and command.lineage.prefixes:
        return command.lineage.prefixes
    return prefixes


def _reverse(view: FenceView, command: Command, token: Token, leader: Guard) -> Decision:
    fence = view.fence
    parent_epoch = command.lineage.parent_epoch if command.lineage else None
    if fence is None:
        return Refuse("this cluster never had to do with the group")
    if fence.mode is FenceMode.SUPERSEDED and fence.epoch in (parent_epoch, command.epoch):
        again = obeyed(fence, command, token, mode=FenceMode.SUPERSEDED)
        return Act(fence_txn(view, again, leader=leader))
    if fence.mode is FenceMode.DRAINED and fence.epoch == parent_epoch:
        passive = obeyed(fence, command, token, mode=FenceMode.SUPERSEDED)
        return Act(fence_txn(view, passive, leader=leader))
    return Refuse(f"the fence is {fence.mode.value} in epoch {fence.epoch}")


_WITHOUT_PERMIT = {
    CommandStep.DRAIN: _drain,
    CommandStep.REVERSE: _reverse,
    CommandStep.SEAL: seal,
    CommandStep.THAW: thaw,
}
"""Commands after which there is no permit, whatever there was before."""


# --- building -----------------------------------------------------------------------------------


def permit_again(
    view: FenceView, authority: Authority, *, me: ClusterName, leader: Guard, lease: LeaseId
) -> Txn | None:
    """Return the transaction that puts a lapsed permit again, or None if it may not be.

    Only while the fence is open in exactly the epoch that the authority gives this cluster, and
    the permit does not hang on `lease` already. Compares the fence (mode and epoch), never memory.
    """
    fence = view.fence
    if fence is None or fence.mode is not FenceMode.OPEN:
        return None
    if (authority.active, authority.epoch) != (me, fence.epoch):
        return None
    if view.permit_revision != ABSENT and view.permit_lease == lease:
        return None
    return Txn(
        guards=(
            leader,
            ModRevisionIs(Keys.fence(view.group), view.fence_revision),
            ModRevisionIs(Keys.permit(view.group), view.permit_revision),
            no_promise(view),
        ),
        operations=(permit_put(fence, lease),),
    )


def scope_again(view: FenceView, prefixes: tuple[str, ...], *, leader: Guard) -> Txn | None:
    """Return the transaction that changes the prefixes of an open segment, or None if equal.

    Moves the fence index: appliers must know what this cluster is active for.
    """
    fence = view.fence
    if fence is None or fence.mode is not FenceMode.OPEN or view.scope == prefixes:
        return None
    scope = SegmentScope(group=view.group, epoch=fence.epoch, prefixes=prefixes)
    return Txn(
        guards=(leader, ModRevisionIs(Keys.fence(view.group), view.fence_revision)),
        operations=(
            Put(Keys.segment_scope(view.group, fence.epoch), encode(scope)),
            Put(Keys.fence_index, encode(FenceIndex(count=view.index_count + 1))),
        ),
    )


def join(
    view: FenceView,
    *,
    source: ClusterName,
    epoch: Epoch,
    leader: Guard,
    reason: str,
    basis: CopyBasis = CopyBasis.STRANGE,
) -> Txn:
    """Return the transaction that makes this cluster a passive member that has to copy the group.

    For a member that never had to do with the group, or one whose copy must be made anew. The
    fence takes `epoch`, never a lower one than it has; the group's own checkpoint says that
    nothing is there yet, so the group is not promotable until the copy has met the stream. What the
    copy finds here and must not just overwrite depends on `basis`.
    """
    assert view.fence is None or view.fence.epoch <= epoch, "epochs only rise"
    checkpoint = GroupCheckpoint(
        source=source,
        group=view.group,
        incarnation=Incarnation(""),
        phase=JoinPhase.JOINING,
        epoch=epoch,
        reason=reason,
        basis=basis,
    )
    fence = view.fence or Fence(
        group=view.group, epoch=epoch, mode=FenceMode.SUPERSEDED, token=NO_TOKEN
    )
    passive = attrs.evolve(fence, epoch=epoch, mode=FenceMode.SUPERSEDED)
    key = Keys.group_checkpoint(source, view.group)
    return fence_txn(view, passive, leader=leader, operations=(Put(key, encode(checkpoint)),))


def supersede(
    view: FenceView, *, below: Epoch, leader: Guard, reason: str, seal: Token = NO_TOKEN
) -> Txn | None:
    """Return the transaction by which a cluster that was superseded unseen stops being active.

    `seal` is the token of the seal that is obeyed, if that is why: the cut carries it.

    None if its fence is not open in an epoch lower than `below`: the view decides, not whatever
    made somebody ask. Ends the segment where it stands and deletes the permit. What lies past the
    successor's start is a divergent tail for the rejoin; nothing is applied over it before.
    """
    if view.fence is None or view.mode is not FenceMode.OPEN or view.fence.epoch >= below:
        return None
    fence = attrs.evolve(view.fence, mode=FenceMode.DRAINED, step=reason)
    operations: list[Operation] = [Delete(Keys.permit(view.group))]
    if view.cut is None:
        token = max(seal, fence.command_token)
        cut = SegmentCut(group=view.group, epoch=fence.epoch, command_token=token)
        operations.append(Put(Keys.segment_cut(view.group, fence.epoch), encode(cut)))
    return fence_txn(view, fence, leader=leader, operations=tuple(operations))
