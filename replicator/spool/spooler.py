"""Fills the spool while a standby is behind, and lets others read from it.

It reads the store by a watch of its own, so it can slow nobody: what does not fit on the disk is
dropped, the oldest first, and the standby that needed it is copied.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.errors import Compacted, MeshError
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision, Sequence
from meshkit.store.port import Store
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.segments import Segment, SegmentMap
from replicator.source import Tail, load_segments
from replicator.spool.blocks import Block, essence
from replicator.spool.files import SpoolFiles, drop_folder, folder_bytes, segments_after
from replicator.spool.keep import Demand
from replicator.spool.reading import Blocking, SpoolReading, begin_reading, on_a_thread
from replicator.together import Scope

_log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class SpoolSettings:
    """Where the spool lies, how large it may become, and when it begins."""

    directory: Path
    bytes_max: int
    late_ms: int
    """A standby that has been behind for so long is spooled for."""


class Spool:
    """The spool of one incarnation's log. `run` fills it, `open_at` reads from it.

    Invariant: the files are contiguous, and unless they are full they hold everything that the
    demand asks for and that was read.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        *,
        store: Store,
        clock: Clock,
        cluster: ClusterName,
        incarnation: Incarnation,
        demand: Callable[[Sequence | None], Demand | None],
        blocking: Blocking = on_a_thread,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.problem = ""
        self.incarnation = incarnation
        self._settings = settings
        self._store = store
        self._clock = clock
        self._demand = demand
        self._blocking = blocking
        self._limits = limits
        self._synced_ms = 0
        self._files = SpoolFiles(
            settings.directory,
            cluster=cluster,
            incarnation=incarnation,
            file_bytes_max=min(limits.spool_file_bytes_max, max(1, settings.bytes_max // 5)),
        )

    @property
    def after(self) -> Sequence | None:
        """The position from which on everything is here; None if nothing is."""
        return self._files.after

    @property
    def through(self) -> Sequence | None:
        """Up to where everything is here."""
        return self._files.through

    @property
    def size_bytes(self) -> int:
        """How much disk this incarnation's files take."""
        return self._files.size_bytes

    def holds(self, position: Sequence) -> bool:
        """Whether whoever has stored `position` can go on from here."""
        return self._files.holds(position)

    async def open_at(self, position: Sequence) -> SpoolReading | None:
        """Return a reading that goes on after `position`; None: it is not here."""
        return await begin_reading(self._files, position, blocking=self._blocking)

    async def run(self) -> None:
        """Keep what is to be kept until cancelled; then it is synced and closed."""
        try:
            while True:
                try:
                    await self._keep()
                except (MeshError, OSError) as error:
                    self._say(f"the spool is not filled: {error}")
                await self._clock.sleep_ms(self._limits.spool_look_ms)
        finally:
            self._files.close()

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.warning("spool.interrupted", why=problem)
        self.problem = problem

    async def _keep(self) -> None:
        """Fill until nobody needs it, or until it has to begin elsewhere."""
        wanted = self._demand(self._files.after)
        if wanted is None:
            return
        if wanted.after is None:
            if self._files.files:
                _log.info("spool.emptied", through=self._files.through, lost=wanted.lost)
                await self._blocking(self._files.clear)
            self._say("")
            return
        start, segments = await self._begin(wanted.after)
        _log.info("spool.begun", after=start, targets=wanted.targets)
        tail = Tail(
            self._store, clock=self._clock, after=start, segments=segments, limits=self._limits
        )
        self._say("")
        scope = Scope()
        reading = scope.start(tail.run())

        async def fill() -> None:
            await self._fill(tail)
            reading.cancel()

        scope.start(fill())
        await scope.wait()

    async def _begin(self, wanted: Sequence) -> tuple[Sequence, SegmentMap]:
        """Return where to go on reading: behind what is there, if what follows it can be had."""
        files = self._files
        if files.through is not None and files.holds(wanted):
            through, segments = files.through, await self._blocking(self._segments_at_end)
            try:
                # Whoever begins at what is compacted might miss a delete in it.
                await self._store.range(
                    (RegionalKeys.fence_index, b""), revision=Revision(through), keys_only=True
                )
            except Compacted:
                _log.warning("spool.history_lost", through=through)
            else:
                return through, segments
        await self._blocking(files.clear)
        return wanted, await load_segments(self._store, Revision(wanted))

    def _segments_at_end(self) -> SegmentMap:
        assert self._files.through is not None
        found = self._files.blocks(self._files.through)
        assert found is not None, "the newest file holds its own end"
        return segments_after(*found)

    async def _fill(self, tail: Tail) -> None:
        look_at_ms = self._clock.now_ms() + self._limits.spool_look_ms
        while True:
            await self._backlog_or_time(tail)
            if tail.has_backlog:
                await self._clock.sleep_ms(self._limits.spool_linger_ms)
                await self._append_from(tail)
            if self._clock.now_ms() >= look_at_ms:
                if not await self._is_still_wanted():
                    return
                look_at_ms = self._clock.now_ms() + self._limits.spool_look_ms

    async def _backlog_or_time(self, tail: Tail) -> None:
        waits = [
            asyncio.ensure_future(tail.wait_backlog()),
            asyncio.ensure_future(self._clock.sleep_ms(self._limits.spool_look_ms)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _is_still_wanted(self) -> bool:
        """Drop what nobody needs; return False if filling must stop, or begin further back."""
        wanted = self._demand(self._files.after)
        if wanted is None:
            return True
        if wanted.after is None or (self.after is not None and wanted.after < self.after):
            return False
        needed = wanted.after
        await self._blocking(lambda: self._files.drop_through(needed))
        return True

    async def _append_from(self, tail: Tail) -> None:
        before, after = tail.segments.all_newest(), tail.position
        revisions = []
        for changes in tail.take(self._limits.spool_block_bytes):
            kept = essence(changes, tail.segments)
            if kept is not None:
                revisions.append(kept)
        block = Block(after=after, through=tail.position, revisions=tuple(revisions))
        await self._make_room()
        try:
            await self._append(block, before)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(self._files.files) < 2:
                raise
            await self._drop_oldest("the disk is full")
            await self._append(block, before)

    async def _append(self, block: Block, before: tuple[Segment, ...]) -> None:
        now_ms = self._clock.now_ms()
        is_due = now_ms - self._synced_ms >= self._limits.spool_sync_ms

        def write() -> None:
            self._files.append(block, before=before)
            if is_due:
                self._files.sync()

        await self._blocking(write)
        if is_due:
            self._synced_ms = now_ms

    # --- room ----------------------------------------------------------------------------------

    async def _make_room(self) -> None:
        """Drop the oldest while there is too much: other incarnations, then this one's files."""
        files, bytes_max = self._files, self._settings.bytes_max
        if files.size_bytes + self._limits.spool_block_bytes > bytes_max // 2:
            await self._blocking(self._drop_others)
        while files.size_bytes + self._limits.spool_block_bytes > bytes_max:
            if len(files.files) < 2:
                break
            await self._drop_oldest("the spool is full")

    def _drop_others(self) -> None:
        """Other incarnations get what this one leaves."""
        others = self._files.others()
        while others and self._files.size_bytes + sum(map(folder_bytes, others)) > (
            self._settings.bytes_max - self._limits.spool_block_bytes
        ):
            _log.warning("spool.incarnation_dropped", incarnation=others[0].name)
            drop_folder(others.pop(0))

    async def _drop_oldest(self, why: str) -> None:
        oldest = self._files.files[0]
        _log.warning("spool.dropped", after=oldest.after, through=oldest.through, why=why)
        await self._blocking(self._files.drop_oldest)
