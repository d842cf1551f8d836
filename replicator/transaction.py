"""Apply plans as etcd transactions: guards, nesting, checkpoints. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Ordered

import attrs

from meshkit.codec import encode
from meshkit.errors import TooLarge
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import ABSENT, Incarnation, Revision, Sequence
from meshkit.regional import Checkpoint, FenceIndex, GroupCheckpoint, PartsCheckpoint
from meshkit.store.txn import Delete, Guard, ModRevisionIs, Nest, Operation, Put, Txn
from meshkit.vector import ClusterVersionVector, LogName
from replicator.draft import ApplyPlan
from replicator.region_state import JoinKey, RegionState

WIDTH_MAX = 60
"""Of two levels: etcd lets a level use what the one above leaves of its 128 operations."""
DEEP_WIDTH_MAX = 40
"""Of three levels."""
OPERATIONS_MAX = DEEP_WIDTH_MAX**3
"""In all."""


def nested(operations: Ordered[Operation]) -> tuple[Operation, ...]:
    """Return the operations so nested that etcd takes them in one transaction.

    At most 60 stand at the top, so that a few more have room beside them.

    Raises:
        TooLarge: there are more than etcd takes however they are nested.
    """
    if len(operations) > OPERATIONS_MAX:
        raise TooLarge(f"{len(operations)} operations do not fit into one transaction")
    if len(operations) <= WIDTH_MAX:
        return tuple(operations)
    if len(operations) <= WIDTH_MAX * WIDTH_MAX:
        return _chunks(operations, WIDTH_MAX)
    return _chunks(_chunks(operations, DEEP_WIDTH_MAX), DEEP_WIDTH_MAX)


def _chunks(operations: Ordered[Operation], size: int) -> tuple[Operation, ...]:
    return tuple(
        Nest(tuple(operations[start : start + size])) for start in range(0, len(operations), size)
    )


@attrs.frozen(kw_only=True)
class Prepared:
    """A transaction and what the region's state is after it was committed."""

    txn: Txn
    plan: ApplyPlan
    checkpoint: Checkpoint | None
    parts: Mapping[ClusterName, PartsCheckpoint | None]
    looked: tuple[Guard, ...] = ()
    """That the keys to be overwritten are still as they were looked at."""

    @property
    def guarded(self) -> Txn:
        """The transaction with every guard there is."""
        return attrs.evolve(self.txn, guards=(*self.txn.guards, *self.looked))


def prepare(
    state: RegionState,
    plan: ApplyPlan,
    *,
    source: ClusterName,
    checkpoint: Checkpoint | None,
    guards: tuple[Guard, ...] = (),
    join_guard: JoinKey | None = None,
) -> Prepared:
    """Return the transaction of a plan.

    `checkpoint` is the source's new main checkpoint, if it moves; `join_guard` names the group
    checkpoint of a side stream, which then must not have moved either.
    """
    key = RegionalKeys.checkpoint(source)
    all_guards = [*guards, ModRevisionIs(RegionalKeys.fence_index, state.index_revision)]
    operations: list[Operation] = list(plan.writes.values())
    for place, attachment in plan.attachments.items():
        operations.append(Delete(place) if attachment is None else Put(place, encode(attachment)))
    if checkpoint is not None:
        revision = state.checkpoint_revisions.get(source, ABSENT)
        all_guards.append(ModRevisionIs(key, revision))
        operations.append(Put(key, encode(checkpoint)))
    all_guards += [
        ModRevisionIs(RegionalKeys.checkpoint(other), state.checkpoint_revisions.get(other, ABSENT))
        for other in sorted(plan.compares - {source})
    ]
    if join_guard is not None:
        join_key = RegionalKeys.group_checkpoint(*join_guard)
        revision = state.join_revisions.get(join_guard, ABSENT)
        all_guards.append(ModRevisionIs(join_key, revision))
    if plan.parts is not None and checkpoint is None:
        revision = state.checkpoint_revisions.get(source, ABSENT)
        all_guards.append(ModRevisionIs(key, revision))
    parts = parts_after(state, plan, source=source, checkpoint=checkpoint)
    for applied, after in parts.items():
        parts_key = RegionalKeys.parts(applied)
        all_guards.append(ModRevisionIs(parts_key, state.parts_revisions.get(applied, ABSENT)))
        operations.append(Delete(parts_key) if after is None else Put(parts_key, encode(after)))
    for group, write in plan.parked.items():
        parked = RegionalKeys.parked(group)
        operations.append(Delete(parked) if write is None else Put(parked, encode(write)))
    for join, own in plan.joins.items():
        operations.append(_join_operation(join, own))
    for group, fence in plan.fences.items():
        operations.append(Put(RegionalKeys.fence(group), encode(fence)))
    if plan.moves_index and not _is_progress_only(state, plan):
        index = FenceIndex(count=state.index_count + 1)
        operations.append(Put(RegionalKeys.fence_index, encode(index)))
    return Prepared(
        txn=Txn(guards=tuple(all_guards), operations=nested(operations)),
        plan=plan,
        checkpoint=checkpoint,
        parts=parts,
    )


def parts_after(
    state: RegionState, plan: ApplyPlan, *, source: ClusterName, checkpoint: Checkpoint | None
) -> dict[ClusterName, PartsCheckpoint | None]:
    """Return how the marks of transactions applied in part change; None: there is none any more.

    A group that goes out of step, or comes back, is no longer part of any: what it holds then is a
    copy's. A transaction that the main checkpoint covers is whole.
    """
    before = dict(state.parts)
    if plan.parts is not None:
        before[source] = plan.parts
    changed: dict[ClusterName, PartsCheckpoint | None] = {}
    copied = {group for _, group in plan.joins}
    for place, parts in before.items():
        cursors = {group: at for group, at in parts.cursors.items() if group not in copied}
        is_whole = (
            place == source and checkpoint is not None and parts.sequence <= checkpoint.sequence
        )
        after = attrs.evolve(parts, cursors=cursors) if cursors and not is_whole else None
        if after != state.parts.get(place):
            changed[place] = after
    return changed


def _join_operation(join: JoinKey, own: GroupCheckpoint | None) -> Operation:
    key = RegionalKeys.group_checkpoint(*join)
    return Delete(key) if own is None else Put(key, encode(own))


def _is_progress_only(state: RegionState, plan: ApplyPlan) -> bool:
    """Return whether group checkpoints only moved on: the same groups are out of step as before."""
    return not plan.fences and all(
        own is not None and key in state.joins for key, own in plan.joins.items()
    )


def committed(
    state: RegionState, prepared: Prepared, *, source: ClusterName, revision: Revision
) -> None:
    """Bring `state` up to date with a transaction that was committed at `revision`."""
    plan = prepared.plan
    if plan.moves_index and not _is_progress_only(state, plan):
        state.index_count += 1
        state.index_revision = revision
    state.fences.update(plan.fences)
    state.attachments.take(plan.attachments)
    for key, own in plan.joins.items():
        if own is None:
            state.joins.pop(key, None)
            state.join_revisions.pop(key, None)
            state.join_begun.pop(key, None)
        else:
            state.join_begun.setdefault(key, revision)
            state.joins[key] = own
            state.join_revisions[key] = revision
    for place, parts in prepared.parts.items():
        if parts is None:
            state.parts.pop(place, None)
            state.parts_revisions.pop(place, None)
        else:
            state.parts[place] = parts
            state.parts_revisions[place] = revision
    for group, write in plan.parked.items():
        if write is None:
            state.parked.pop(group, None)
        else:
            state.parked[group] = write
    if prepared.checkpoint is not None:
        state.checkpoints[source] = prepared.checkpoint
        state.checkpoint_revisions[source] = revision


def checkpoint_at(
    before: Checkpoint | None,
    *,
    source: ClusterName,
    incarnation: Incarnation,
    sequence: Sequence,
) -> Checkpoint:
    """Return the main checkpoint of a source at `sequence`."""
    vector = before.vector if before else ClusterVersionVector()
    log = LogName(cluster=source, incarnation=incarnation)
    return Checkpoint(
        source=source,
        incarnation=incarnation,
        sequence=sequence,
        vector=vector.advanced(log, sequence),
    )
