"""A transaction of a source that is larger than one here, as parts: what each part is. Pure.

It is applied in key order, a portion at a time. Beside each portion but the last stands a stored
mark with the last key of every group (`PartsCheckpoint`), and the main checkpoint does not move: so
the work goes on at the right key after a crash, whoever asks for the checkpoint hears of nothing
that is not whole, and a group in a mark is not promotable. With the last portion the checkpoint
moves and the mark goes.
"""

from __future__ import annotations

import attrs

from meshkit.names import GroupName
from meshkit.ordinals import Epoch, Sequence
from meshkit.regional import ParkedWrite, PartsCheckpoint
from replicator.draft import ApplyPlan, Draft, Held, Hold, Standpoint
from replicator.plan import begin_record, check_part, end_record, take_part
from replicator.record import GroupPart, Record, Write, write_bytes
from replicator.region_state import RegionState
from replicator.room import Room


@attrs.frozen
class TakenWrite:
    """One write of a portion, with where it belongs."""

    group: GroupName
    epoch: Epoch
    write: Write


@attrs.frozen(kw_only=True)
class Portion:
    """One transaction of a record in parts, or nothing more to do for it."""

    plan: ApplyPlan | None
    taken: tuple[TakenWrite, ...]
    is_end: bool
    """Whether nothing of the record, or of the piece, is left after this."""


def plan_portion(
    state: RegionState, record: Record, at: Standpoint, *, room: Room
) -> Portion | Hold:
    """Return the next portion of a record, or of a piece of it."""
    draft = Draft(state, at)
    draft.before = Sequence(record.sequence - 1)
    mark = _open_mark(state, record, at)
    cursors = dict(mark.cursors)
    taken: list[TakenWrite] = []
    is_end = True
    try:
        begin_record(draft, record)
        for part in sorted(record.parts, key=lambda p: p.group):
            check_part(draft, part)
            todo = _after(part, cursors.get(part.group, b""))
            portion, room = _fitting(todo, room, is_first=not taken)
            if portion and take_part(draft, part.only(portion)):
                taken += [TakenWrite(part.group, part.epoch, write) for write in portion]
                cursors[part.group] = portion[-1].key
            elif portion:
                continue  # Not applied here, no part of it.
            if len(portion) < len(todo):
                is_end = False
                break
    except Held as held:
        return held.hold
    if is_end and (record.piece is None or record.piece.is_last):
        end_record(draft, record)
        draft.is_durable = True
        return Portion(plan=draft.plan(record.sequence), taken=tuple(taken), is_end=True)
    plan = draft.plan(record.sequence)
    if not plan.is_durable:
        return Portion(plan=None, taken=(), is_end=is_end)
    parts = attrs.evolve(mark, cursors=cursors)
    return Portion(plan=attrs.evolve(plan, parts=parts), taken=tuple(taken), is_end=is_end)


def plan_parked(
    state: RegionState,
    group: GroupName,
    epoch: Epoch,
    at: Standpoint,
    *,
    write: ParkedWrite,
) -> ApplyPlan:
    """Return how to go on without a group of which etcd here refuses a write: it is copied."""
    draft = Draft(state, at)
    draft.before = Sequence(write.sequence - 1)
    fence = draft.fence(group)
    if fence is not None and fence.epoch == epoch and not draft.joins_of(group):
        draft.join(fence, epoch, fence.token, write.problem)
        draft.parked[group] = write
    return draft.plan(write.sequence)


def _open_mark(state: RegionState, record: Record, at: Standpoint) -> PartsCheckpoint:
    """Return how far the record is applied: the stored mark, if it is of this record."""
    stored = state.parts.get(at.source)
    if stored and (stored.sequence, stored.incarnation) == (record.sequence, at.incarnation):
        return stored
    return PartsCheckpoint(
        source=at.source, incarnation=at.incarnation, sequence=record.sequence, cursors={}
    )


def _after(part: GroupPart, cursor: bytes) -> list[Write]:
    """Return the part's writes that are still to come, in key order."""
    return sorted((w for w in part.writes if w.key > cursor), key=lambda w: w.key)


def _fitting(todo: list[Write], room: Room, *, is_first: bool) -> tuple[list[Write], Room]:
    """Return as many writes as fit, and the room that is left."""
    size = count = 0
    for write in todo:
        weight = write_bytes(write)
        is_alone = is_first and not count
        if not is_alone and (count >= room.writes or size + weight > room.bytes):
            break
        size += weight
        count += 1
    return todo[:count], Room(writes=room.writes - count, bytes=room.bytes - size)
