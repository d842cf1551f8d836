"""What applying records to this region means: which writes, which fences, which checkpoints. Pure.

The rules, in the order in which they are asked: a group without a fence here is not ours to hold;
a group out of step is left to its side stream; a record below its group's epoch is never applied;
an epoch is applied only on top of exactly its lineage (architecture 5.1 rule 3). What cannot be
decided yet is a `Hold`: the stream waits, nothing is skipped.
"""

from __future__ import annotations

import attrs

from meshkit.names import GroupName
from meshkit.ordinals import NO_TOKEN, NOTHING, Epoch, Sequence
from meshkit.regional import FenceMode, GroupCheckpoint, JoinPhase, ParkedWrite
from meshkit.store.txn import Put
from replicator.attachments import AttachmentChanges
from replicator.batch import MainBatch
from replicator.draft import ApplyPlan, Draft, Held, Hold, Stale, Standpoint
from replicator.lineage import check_may_follow, take_opened, verdict
from replicator.messages import CopyPage, SegmentStanding, SideFrame
from replicator.record import GroupPart, Mark, Opened, Record, Resumed, Scoped, Write
from replicator.region_state import RegionState
from replicator.shield import refusal

_COPY_AGAIN = "no record tells of all that changed: its prefixes, or writes past a drain"


def plan_main(state: RegionState, batch: MainBatch, at: Standpoint) -> ApplyPlan | Hold:
    """Return what to do with a batch of the main stream, or with as much of it as is decided."""
    draft = Draft(state, at)
    for record in batch.records:
        draft.before = Sequence(record.sequence - 1)
        if draft.writes and draft.repeats(record):
            return draft.plan(draft.before)
        try:
            if record.marks or len(record.parts) > 1:
                _check(draft, record)
                _take_record(draft, record)
            else:
                for part in record.parts:
                    take_part(draft, part)
                draft.records += 1
        except Held as held:
            through = Sequence(record.sequence - 1)
            if through > batch.after and record is not batch.records[0]:
                return draft.plan(through)
            return held.hold
    return draft.plan(batch.through)


def plan_side(state: RegionState, frame: SideFrame, at: Standpoint) -> ApplyPlan | Hold:
    """Return what to do with a side frame of a group that follows after its copy."""
    draft = Draft(state, at)
    key = (at.source, frame.group)
    own = state.joins.get(key)
    if own is None or own.phase is not JoinPhase.FOLLOWING or own.sequence != frame.after:
        return Hold(reason=f"side stream of {frame.group} does not continue its checkpoint")
    for record in frame.records:
        if draft.writes and draft.repeats(record):
            through = Sequence(record.sequence - 1)
            draft.joins[key] = attrs.evolve(own, sequence=through)
            return draft.plan(through)
        if _must_copy_again(record, own):
            draft.joins[key] = _again(own, _COPY_AGAIN)
            return draft.plan(record.sequence)
        for part in record.parts:
            if part.epoch != own.epoch:
                continue
            count, owner = draft.shield.refused(part.writes)
            if owner is not None:
                return Hold(reason=refusal(part.group, owner, count))
            _take_writes(draft, part)
        draft.records += 1
    if frame.is_last:
        draft.joins = dict.fromkeys(state.joins_of(frame.group), None)
        if frame.group in state.parked:
            draft.parked[frame.group] = None
    else:
        draft.joins[key] = attrs.evolve(own, sequence=frame.through)
    return draft.plan(frame.through)


def plan_page(
    state: RegionState,
    page: CopyPage,
    at: Standpoint,
    *,
    writes: dict[bytes, Write],
    start: bytes,
    end: bytes,
) -> ApplyPlan | Hold | Stale | None:
    """Return how to make a stretch `[start, end)` of a page with these writes; None if it is."""
    key = (at.source, page.group)
    own = state.followed(key)
    if own is None:
        return Stale()
    owner = state.shield().owner_within((start, end))
    if owner is not None:
        return Hold(reason=refusal(page.group, owner, len(writes)))
    is_done = page.is_final and end == page.end
    after = attrs.evolve(
        own,
        incarnation=at.incarnation,
        phase=JoinPhase.FOLLOWING if is_done else JoinPhase.COPYING,
        sequence=page.cut,
        cursor=end,
        left_at=None if is_done else own.contained,
    )
    if own == after:
        return None
    is_first = page.is_first and start == page.start
    is_at_cut = own.phase is JoinPhase.COPYING and own.sequence == page.cut
    if not is_first and not (is_at_cut and own.cursor <= start):
        return Stale()
    attached = AttachmentChanges(state.attachments)
    attached.take_page(page, writes, start=start, end=end)
    return ApplyPlan(
        through=page.cut, writes=writes, joins={key: after}, attachments=attached.changed
    )


def plan_again(
    state: RegionState,
    group: GroupName,
    reason: str,
    at: Standpoint,
    *,
    parked: ParkedWrite | None = None,
) -> ApplyPlan:
    """Return how to have a group copied from the beginning, and what is told of a refused write."""
    draft = Draft(state, at)
    if parked is not None:
        draft.parked[group] = parked
    own = draft.own_join(group)
    if own is not None and (own.phase, own.reason) != (JoinPhase.JOINING, reason):
        draft.joins[at.source, group] = _again(own, reason)
    return draft.plan(NOTHING)


def plan_fresh(
    state: RegionState,
    segments: tuple[SegmentStanding, ...],
    at: Standpoint,
    *,
    start: Sequence,
    before: Sequence | None,
) -> ApplyPlan | Hold:
    """Return how to begin at `start` although what came before it will never be seen.

    `before` is how far this log was applied when the rest of it was compacted away, if ever: a
    segment that was cut by then has been applied whole.
    """
    draft = Draft(state, at)
    draft.is_durable = True
    draft.before = before
    _join_again(draft)
    for segment in segments:
        fence = draft.fence(segment.group)
        if fence is None or fence.epoch > segment.epoch:
            continue
        if fence.epoch == segment.epoch:
            is_whole = before is not None and segment.cut is not None and segment.cut <= before
            if is_whole or draft.own_join(segment.group) is not None:
                continue
        mark = Opened(
            group=segment.group,
            epoch=segment.epoch,
            token=segment.token,
            lineage=segment.lineage,
        )
        try:
            check_may_follow(draft, fence, mark)
        except Held as held:
            return held.hold
        draft.join(fence, segment.epoch, segment.token, "the stream begins later than the epoch")
    return draft.plan(start)


def _join_again(draft: Draft) -> None:
    """Begin anew with what was being copied from another incarnation of the source."""
    for key, own in draft.state.joins.items():
        fence = draft.fence(key[1])
        is_other = key[0] == draft.at.source and own.incarnation != draft.at.incarnation
        if is_other and fence is not None and fence.mode is FenceMode.SUPERSEDED:
            draft.join(fence, fence.epoch, NO_TOKEN, "the source's etcd is another incarnation")


def plan_refused(state: RegionState, group: GroupName, epoch: Epoch, at: Standpoint) -> ApplyPlan:
    """Return how to go on when the source has only a newer epoch of a group than was asked for."""
    draft = Draft(state, at)
    fence, own = draft.fence(group), draft.own_join(group)
    is_following = fence is not None and own is not None and fence.mode is FenceMode.SUPERSEDED
    if is_following and fence is not None and fence.epoch < epoch:
        draft.join(fence, epoch, NO_TOKEN, f"the source is in epoch {epoch}")
    return draft.plan(Sequence(0))


# --- one record ---------------------------------------------------------------------------------


def _take_record(draft: Draft, record: Record) -> None:
    begin_record(draft, record)
    for part in record.parts:
        take_part(draft, part)
    end_record(draft, record)


def begin_record(draft: Draft, record: Record) -> None:
    """Follow the epochs that open with a record: its writes belong to them."""
    for mark in record.marks:
        if isinstance(mark, Opened):
            _take_opened(draft, mark)


def end_record(draft: Draft, record: Record) -> None:
    """Take the marks that end or change what was open up to and with this record."""
    for mark in record.marks:
        if not isinstance(mark, Opened):
            _take_mark(draft, mark)
    draft.records += 1
    if record.marks:
        # What a mark means depends on the fences as they are, also where it means nothing: only a
        # transaction that compares them makes sure that no newer fence was overlooked.
        draft.is_durable = True


def _take_opened(draft: Draft, mark: Opened) -> None:
    before = draft.fence(mark.group)
    take_opened(draft, mark)
    fence = draft.fence(mark.group)
    is_followed = fence is not before and not draft.joins_of(mark.group)
    if fence is not None and is_followed and draft.state.is_torn(mark.group):
        reason = "a transaction of the epoch before is applied here only in part"
        draft.join(fence, mark.epoch, mark.token, reason)


def _check(draft: Draft, record: Record) -> None:
    """Decide holds before anything of the record is taken, so that it is taken whole or not."""
    for mark in record.marks:
        if isinstance(mark, Opened):
            verdict(draft, mark)
    for part in record.parts:
        check_part(draft, part)


def check_part(draft: Draft, part: GroupPart) -> None:
    """Allow a part to be applied, skipped or joined.

    Raises:
        Held: this cluster is not passive for the group.
    """
    fence = draft.fence(part.group)
    if fence is None or part.epoch < fence.epoch:
        return
    is_own = (part.group, fence.epoch) in draft.state.cuts
    if fence.mode is FenceMode.HELD and draft.joins_of(part.group) and not is_own:
        # Frozen: the main stream goes on without the group, which has its own checkpoint.
        return
    if fence.mode is not FenceMode.SUPERSEDED:
        raise Held(
            Hold(
                reason=f"a record of {part.group} in epoch {part.epoch}, while the fence here is"
                f" {fence.mode.value} in epoch {fence.epoch}"
            )
        )


def take_part(draft: Draft, part: GroupPart) -> bool:
    """Take what one revision changed in a group, unless it is not to be applied; return whether."""
    fence = draft.fence(part.group)
    if fence is None or part.epoch < fence.epoch:
        return False
    check_part(draft, part)
    if part.epoch > fence.epoch:
        # Its opening was seen before this cluster had to do with the group.
        draft.join(fence, part.epoch, NO_TOKEN, f"epoch {part.epoch} had begun before")
    elif not draft.joins_of(part.group):
        count, owner = draft.shield.refused(part.writes)
        if owner is None:
            _take_writes(draft, part)
            return True
        # No longer a true copy, and not promotable as one; the other groups go on.
        draft.refused[part.group] += count
        draft.join(fence, part.epoch, fence.token, refusal(part.group, owner, count))
    return False


def _take_writes(draft: Draft, part: GroupPart) -> None:
    writes = draft.writes
    for write in part.writes:
        if isinstance(write, Put) and write.lease:
            # Passive copies carry no lease: expiry arrives as a delete (architecture 5).
            writes[write.key] = Put(write.key, write.value)
        else:
            writes[write.key] = write
    draft.attachments.take(part)


def _take_mark(draft: Draft, mark: Mark) -> None:
    fence = draft.fence(mark.group)
    if fence is None or fence.epoch != mark.epoch:
        return
    draft.is_durable = True
    if fence.mode is not FenceMode.SUPERSEDED or draft.joins_of(mark.group):
        return
    match mark:
        case Resumed(is_dirty=True):
            draft.join(fence, mark.epoch, fence.token, "its log has a gap that only a copy closes")
        case Scoped():
            draft.join(fence, mark.epoch, fence.token, "its prefixes changed")


def _again(own: GroupCheckpoint, reason: str) -> GroupCheckpoint:
    """Return the checkpoint of a group of which nothing that was copied counts any more."""
    return attrs.evolve(
        own,
        phase=JoinPhase.JOINING,
        sequence=NOTHING,
        cursor=b"",
        reason=reason,
        left_at=own.contained,
    )


def _must_copy_again(record: Record, own: GroupCheckpoint) -> bool:
    return any(
        mark.epoch == own.epoch
        and (isinstance(mark, Scoped) or (isinstance(mark, Resumed) and mark.is_dirty))
        for mark in record.marks
    )
