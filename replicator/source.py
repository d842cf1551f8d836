"""An etcd's history as records: one watch of the whole key space, filtered here.

Seeing the event of revision R proves that everything up to R was delivered, because every
revision has an event; progress notifications are ignored (S28: some servers send them ahead).
A long backlog is read by several watches, where the server's version allows it (`catch_up`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.errors import Compacted, MeshError
from meshkit.keys import ROOT, RegionalKeys
from meshkit.names import GroupName
from meshkit.ordinals import LeaseId, Revision, Sequence
from meshkit.store.port import LateChanges, RevisionChanges, Store
from meshkit.store.txn import KeyRange, prefix_range
from replicator.catch_up import CatchUp, NotByMany, is_trusted
from replicator.lease_terms import LeaseTerms
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.messages import SegmentStanding
from replicator.pulse import Pulse
from replicator.record import LeaseTerm, Record
from replicator.segments import Segment, SegmentMap
from replicator.shared_watch import WatchAll, alone
from replicator.spool.reading import SpoolReading
from replicator.weight import changes_bytes

_log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class SourceBatch:
    """Everything of the log in `(after, through]`."""

    after: Sequence
    through: Sequence
    records: tuple[Record, ...]


class Tail:
    """Follows a store from a position. `run` fills a bounded backlog, `next_batch` drains it.

    Invariant: `segments` is the fold up to and including `position` (and the record after it, while
    that one is handed out in pieces), and of every revision in the
    backlog up to `_known_through` it is known what its leases were granted for.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        after: Sequence,
        segments: SegmentMap,
        watch: WatchAll | None = None,
        terms: LeaseTerms | None = None,
        spooled: SpoolReading | None = None,
        takes_pieces: bool = False,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._spooled = spooled
        self.segments = segments
        self.position = after
        self._store = store
        self._watch = watch or alone(store)
        self._limits = limits
        self._backlog: deque[tuple[RevisionChanges, int]] = deque()
        """Revisions, and what each weighs."""
        self._backlog_bytes = 0
        self._read_through = Revision(after)
        self._by_one_through = Revision(0)
        self._terms = terms or LeaseTerms(store, clock=clock)
        self._known_through = Revision(after)
        self._leases: dict[Revision, Mapping[LeaseId, LeaseTerm]] = {}
        self._unasked: dict[Revision, frozenset[LeaseId]] = {}
        """The leases of what is in the backlog past `_known_through`."""
        self._takes_pieces = takes_pieces
        self._pieces: deque[Record] = deque()
        self.pulse = Pulse()

    @property
    def has_backlog(self) -> bool:
        """Whether `next_batch` would return at once."""
        return bool(self._backlog or self._pieces)

    @property
    def has_full_frame(self) -> bool:
        """Whether more waits than the next batch may hold."""
        limits = self._limits
        is_long = len(self._backlog) >= limits.frame_writes_max
        return is_long or self._backlog_bytes >= limits.frame_bytes_max

    async def run(self) -> None:
        """Read until cancelled: first what is spooled, if given, then the store.

        Raises:
            Compacted: history from the position on is gone.
            Unreachable: the store cannot be reached.
        """
        if self._spooled is not None:
            await self._read_spooled(self._spooled)
        is_behind = True
        while is_behind:
            head = await self._far_head()
            while head is not None:
                await self._catch_up(head)
                head = await self._far_head()
            is_behind = await self._follow()

    async def _read_spooled(self, spooled: SpoolReading) -> None:
        """Read to the spool's end. Its blocks cover every revision, so nothing is left out."""
        assert Revision(spooled.position) == self._read_through, (
            "the spool goes on where this begins"
        )
        async for block in spooled.blocks():
            for changes in block.revisions:
                await self._put(changes)
            if block.through > self._read_through:
                await self._put(RevisionChanges(revision=Revision(block.through), changes=()))
        _log.info("spool.read", after=spooled.position, through=self._read_through)
        await self._check_history()

    async def _check_history(self) -> None:
        """Make sure that the store still has what was read last, and so all that follows it.

        A watch that begins at exactly the compacted revision may miss a delete in it.

        Raises:
            Compacted: it has not.
        """
        at = self._read_through
        await self._store.range((RegionalKeys.fence_index, b""), revision=at, keys_only=True)

    async def _follow(self) -> bool:
        """Read by one watch; return when that is no longer enough, or False if it has ended."""
        start = Revision(self._read_through + 1)
        asked_at = self._read_through
        async with self._watch(start) as items:
            if self._spooled is not None:
                await self._check_history()
            async for item in items:
                if not isinstance(item, RevisionChanges):
                    continue
                had_to_wait = await self._put(item)
                # Only who was held up falls behind; the head is asked for now and then.
                if had_to_wait and item.revision - asked_at > self._limits.catch_up_revisions:
                    asked_at = item.revision
                    if await self._far_head() is not None:
                        return True
        return False

    async def _put(self, changes: RevisionChanges) -> bool:
        """Append to the backlog; return whether there was no room for more."""
        self._read_through = max(self._read_through, changes.revision)
        weight_bytes = changes_bytes(changes)
        self._backlog.append((changes, weight_bytes))
        self._backlog_bytes += weight_bytes
        if leases := _leases_of(changes):
            self._unasked[changes.revision] = leases
        self.pulse.beat()
        has_waited = False
        while self._backlog_bytes > self._limits.source_backlog_bytes_max:
            has_waited = True
            await self.pulse.wait()
        return has_waited

    async def _far_head(self) -> Revision | None:
        """Return the store's head if it is far, and can be reached by several watches."""
        if self._read_through < self._by_one_through:
            return None
        try:
            head = (
                await self._store.range((RegionalKeys.fence_index, b""), keys_only=True)
            ).revision
            if head - self._read_through <= self._limits.catch_up_revisions:
                return None
            version = (await self._store.status()).version
        except MeshError as error:
            # The one watch has a patience of its own, and says what is wrong.
            _log.info("catch_up.not_tried", why=str(error))
            return None
        if not is_trusted(version):
            _log.info("catch_up.not_tried", version=version, head=head)
            self._by_one_through = head
            return None
        return head

    async def _catch_up(self, head: Revision) -> None:
        reading = CatchUp(
            self._store,
            after=self._read_through,
            head=head,
            put=self._put,
            limits=self._limits,
        )
        try:
            await reading.run()
        except NotByMany as error:
            _log.warning("catch_up.given_up", why=str(error), at=self._read_through, head=head)
            self._by_one_through = head

    async def wait_backlog(self) -> None:
        """Return once `take` or `next_batch` would return something at once."""
        while not self._backlog:
            await self.pulse.wait()

    def take(self, bytes_max: int) -> list[RevisionChanges]:
        """Return revisions that are there, at least one, as they are; the caller folds them in."""
        taken: list[RevisionChanges] = []
        size_bytes = 0
        while self._backlog and (not taken or size_bytes < bytes_max):
            changes, weight_bytes = self._backlog.popleft()
            self._unasked.pop(changes.revision, None)
            self._backlog_bytes -= weight_bytes
            size_bytes += weight_bytes
            if changes.revision > self.position:
                self.position = Sequence(changes.revision)
                taken.append(changes)
        self.pulse.beat()
        return taken

    async def next_batch(self) -> SourceBatch:
        """Wait for something to be there, and return what is there, up to a frame's limits.

        With `takes_pieces` a record that is too large to travel whole comes in pieces, one in each
        batch; only the last one covers it.
        """
        if self._pieces:
            return self._next_piece()
        await self.wait_backlog()
        await self._learn_leases()
        after = self.position
        records: list[Record] = []
        size_bytes = writes = 0
        while self._backlog:
            changes, weight_bytes = self._backlog[0]
            if changes.revision > self._known_through:
                break
            # Only a record that is alone may exceed a frame: what is together must fit into one
            # transaction of the target.
            if records and (
                size_bytes + weight_bytes > self._limits.frame_bytes_max
                or writes + len(changes.changes) > self._limits.frame_writes_max
            ):
                break
            self._backlog.popleft()
            self._backlog_bytes -= weight_bytes
            if changes.revision <= self.position:
                continue
            self.position = Sequence(changes.revision)
            terms = self._leases.pop(changes.revision, None)
            record = self.segments.advance(changes)
            if record is None:
                continue
            if terms is not None:
                record = record.with_terms(terms)
            if self._is_for_pieces(record):
                self._cut_up(record)
                break
            record = record.bounded(self._limits.record_whole_bytes_max)
            records.append(record)
            size_bytes += record.weight_bytes
            writes += record.writes_count
        self.pulse.beat()
        return SourceBatch(after=after, through=self.position, records=tuple(records))

    def _is_for_pieces(self, record: Record) -> bool:
        limits = self._limits
        is_large = limits.record_whole_bytes_max < record.weight_bytes <= limits.record_bytes_max
        return self._takes_pieces and is_large and not record.marks

    def _cut_up(self, record: Record) -> None:
        limits = self._limits
        self._pieces.extend(
            record.pieces(bytes_max=limits.frame_bytes_max, writes_max=limits.frame_writes_max)
        )
        self.position = Sequence(record.sequence - 1)

    def _next_piece(self) -> SourceBatch:
        after, piece = self.position, self._pieces.popleft()
        if not self._pieces:
            self.position = piece.sequence
        return SourceBatch(after=after, through=self.position, records=(piece,))

    async def _learn_leases(self) -> None:
        """Ask what the leases in the backlog were granted for, before anything of it is taken.

        So what is taken is taken at once, and segments and sender stay together.
        """
        through = self._backlog[-1][0].revision
        if self._unasked:
            asked, self._unasked = self._unasked, {}
            terms = await self._terms.known(frozenset[LeaseId]().union(*asked.values()))
            for revision, leases in asked.items():
                self._leases[revision] = {lease: terms[lease] for lease in leases}
        self._known_through = max(self._known_through, through)


_NO_LEASES = frozenset[LeaseId]()


def _leases_of(changes: RevisionChanges) -> frozenset[LeaseId]:
    """Return the leases that the applications' puts of a revision name; none of an apply."""
    if len(changes.changes) == 1 and not changes.changes[0].item.lease:
        return _NO_LEASES
    if isinstance(changes.changes, LateChanges) and any(
        key.startswith(RegionalKeys.checkpoints) for key in changes.keys
    ):
        return _NO_LEASES
    return frozenset(
        [
            change.item.lease
            for change in changes.changes
            if change.item.lease and not change.key.startswith(ROOT)
        ]
    )


async def load_segments(
    store: Store, revision: Revision, *, group: GroupName | None = None
) -> SegmentMap:
    """Return the segments as they were at `revision`: of all groups, or of one.

    A scope that was written to between its cut and `revision` is dirty; where that can no longer
    be known it counts as dirty.

    Raises:
        Compacted: `revision` is no longer there.
        Unreachable: no member answered.
    """
    prefix = RegionalKeys.segments if group is None else RegionalKeys.segments_of(group)
    result = await store.range(prefix_range(prefix), revision=revision)
    segments = SegmentMap.from_items(result.items)
    dirty: set[GroupName] = set()
    for segment in segments.all_newest():
        if segment.cut is not None and await _was_written_since_cut(store, segment, revision):
            dirty.add(segment.group)
    return SegmentMap.from_items(result.items, dirty=frozenset(dirty))


def standing_of(segment: Segment) -> SegmentStanding:
    """Return how a target is told where a segment stands."""
    return SegmentStanding(
        group=segment.group,
        epoch=segment.epoch,
        token=segment.token,
        lineage=segment.lineage,
        cut=Sequence(segment.cut) if segment.cut is not None else None,
    )


async def _was_written_since_cut(store: Store, segment: Segment, revision: Revision) -> bool:
    assert segment.cut is not None
    for prefix in segment.prefixes:
        keys: KeyRange = prefix_range(prefix)
        try:
            before = await store.range(keys, revision=segment.cut, count_only=True)
            newer = await store.range(
                keys, revision=revision, modified_after=segment.cut, keys_only=True, limit=1
            )
        except Compacted:
            return True
        # Nothing newer and as many keys as at the cut: nothing was deleted either.
        if newer.items or newer.count != before.count:
            return True
    return False
