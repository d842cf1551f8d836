"""What a replicator process knows of its region's history, whether it leads or stands by.

It outlives terms: a successor that has looked for hours knows how the store is compacted, where
one that begins to look when it is elected knows nothing.
"""

from __future__ import annotations

import asyncio

import structlog

from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import Compacted, MeshError, Unreachable
from meshkit.keys import CoordinationKeys, RegionalKeys, last_part
from meshkit.mirror import PrefixMirror
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Incarnation, Revision, Sequence
from meshkit.regional import RegionIncarnation
from meshkit.status import StandbyPosition
from meshkit.store.port import Store
from replicator.lag import Anchor
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.pulse import Pulse
from replicator.retention import Retention
from replicator.segments import SegmentMap
from replicator.source import load_segments
from replicator.spool.keep import Demand, Standby, demand
from replicator.spool.reading import Blocking, SpoolReading, on_a_thread
from replicator.spool.spooler import Spool, SpoolSettings
from replicator.together import together

_log = structlog.get_logger()

_ANY_KEY = (RegionalKeys.fence_index, b"")
_FIRST = Revision(1)


class LocalHistory:
    """Looks at the regional etcd every few seconds, and keeps the spool if there is to be one."""

    def __init__(
        self,
        *,
        cluster: ClusterName,
        regional: Store,
        coordination: Store,
        clock: Clock,
        spool: SpoolSettings | None = None,
        blocking: Blocking = on_a_thread,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.retention = Retention(limits=limits)
        self._cluster = cluster
        self._store = regional
        self._clock = clock
        self._limits = limits
        self._settings = spool
        self._blocking = blocking
        self._spool: Spool | None = None
        self._spool_problem = ""
        self._incarnation: Incarnation | None = None
        self._looked = Pulse()
        self._positions = PrefixMirror(
            coordination, CoordinationKeys.standby_positions(cluster), clock=clock
        )

    # --- what is known -------------------------------------------------------------------------

    def headroom_ms(self, position: Sequence) -> int | None:
        """Return how long, at least, until `position` is compacted away; None: unknown."""
        return self.retention.headroom_ms(position, now_ms=self._clock.now_ms())

    def spool(self, incarnation: Incarnation) -> Spool | None:
        """Return the spool of this incarnation's log, if there is one."""
        spool = self._spool
        return spool if spool is not None and spool.incarnation == incarnation else None

    @property
    def spool_bytes(self) -> int | None:
        """How much disk the spool takes; None where there is none."""
        return self._spool.size_bytes if self._spool is not None else None

    @property
    def spool_problem(self) -> str:
        """Return why the spool is not filled though it should be, or nothing."""
        return self._spool.problem if self._spool is not None else self._spool_problem

    @property
    def positions_stored(self) -> frozenset[ClusterName]:
        """The standbys of which something is written down."""
        return frozenset(ClusterName(last_part(key)) for key in self._positions.entries)

    def stored_position(self, target: ClusterName, incarnation: Incarnation) -> Sequence | None:
        """Return from where a target may have to be served, as it was last written down."""
        key = CoordinationKeys.standby_position(self._cluster, target)
        item = self._positions.entries.get(key)
        stored = decode(StandbyPosition, item.value) if item is not None else None
        return stored.sequence if stored and stored.incarnation == incarnation else None

    def standbys(self, incarnation: Incarnation) -> tuple[Standby, ...] | None:
        """Return how far every standby is, as it was last written down; None: nobody has read it.

        Only of this incarnation's log: a standby of another one is copied anyway.
        """
        if not self._positions.ready.is_set():
            return None
        now_ms = self._clock.now_ms()
        found = []
        for item in self._positions.entries.values():
            stored = decode(StandbyPosition, item.value)
            if stored.incarnation == incarnation:
                age_ms = self.retention.age_ms(stored.sequence, now_ms=now_ms)
                found.append(Standby(target=stored.target, position=stored.sequence, age_ms=age_ms))
        return tuple(found)

    # --- looking -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look and keep until cancelled; a store that does not answer is looked at later."""
        parts = [self._look_on(), self._positions.run()]
        if self._settings is not None:
            parts.append(self._keep_spool(self._settings))
        await together(*parts)

    async def _look_on(self) -> None:
        while True:
            try:
                await self.look()
            except MeshError as error:
                _log.debug("history.not_seen", why=str(error))
            await self._clock.sleep_ms(self._limits.history_look_ms)

    async def _keep_spool(self, settings: SpoolSettings) -> None:
        """Run the spool of the etcd's incarnation; another incarnation gets another spool."""
        running: asyncio.Future[None] | None = None
        incarnation: Incarnation | None = None
        try:
            while True:
                if self._incarnation != incarnation:
                    await _end(running)
                    incarnation, running = self._incarnation, None
                    if incarnation is not None:
                        running = asyncio.ensure_future(self._run_spool(settings, incarnation))
                await self._looked.wait()
        finally:
            await _end(running)

    async def _run_spool(self, settings: SpoolSettings, incarnation: Incarnation) -> None:
        while True:
            try:
                self._spool = Spool(
                    settings,
                    store=self._store,
                    clock=self._clock,
                    cluster=self._cluster,
                    incarnation=incarnation,
                    demand=lambda after: self._demand(settings, incarnation, after),
                    blocking=self._blocking,
                    limits=self._limits,
                )
                self._spool_problem = ""
                await self._spool.run()
            except (MeshError, OSError) as error:
                self._spool_problem = f"there is no spool: {error}"
                _log.error("spool.failed", why=str(error))
                await self._clock.sleep_ms(self._limits.history_look_ms)
            finally:
                self._spool = None

    def _demand(
        self, settings: SpoolSettings, incarnation: Incarnation, after: Sequence | None
    ) -> Demand | None:
        """Return what must be spooled; None while not enough is known to decide."""
        standbys, compacted = self.standbys(incarnation), self.retention.compacted
        if standbys is None or compacted is None:
            return None
        return demand(standbys, compacted=compacted, spooled_after=after, late_ms=settings.late_ms)

    async def look(self) -> None:
        """Look once.

        Raises:
            Unreachable: the store does not answer.
        """
        sent_ms = self._clock.now_ms()
        found = await self._store.range((RegionalKeys.incarnation, b""))
        head = found.revision
        if found.items:
            self._incarnation = decode(RegionIncarnation, found.items[0].value).incarnation
        if head < self.retention.head:
            _log.warning("history.went_back", head=head, after=self.retention.head)
            self.retention = Retention(limits=self._limits)
        self._looked.beat()
        anchor = Anchor(sent_ms=sent_ms, received_ms=self._clock.now_ms(), revision=head)
        compacted = await self._compacted(self.retention.compacted or Revision(0))
        seen = self.retention.on_look(anchor, compacted)
        if seen is not None:
            _log.info(
                "history.compacted",
                revision=seen.revision,
                kept_ms=seen.kept_ms,
                kept_revisions=seen.kept_revisions,
            )

    async def _compacted(self, known: Revision) -> Revision:
        """Return up to where the store is compacted now, which is `known` or more."""
        at = max(known, _FIRST)
        try:
            await self._store.range(_ANY_KEY, revision=at, keys_only=True)
        except Compacted:
            return await self._refused_at(at)
        return known

    async def _refused_at(self, start: Revision) -> Revision:
        """Ask for a watch of what is gone: only its refusal says up to where it is gone."""
        refused = asyncio.ensure_future(self._refusal(start))
        waiting = asyncio.ensure_future(self._clock.sleep_ms(self._limits.history_look_ms))
        try:
            await asyncio.wait({refused, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if refused.done():
                return refused.result()
            # This member has not heard of the compaction yet, another one has.
            raise Unreachable("no member says how far the history is compacted")
        finally:
            refused.cancel()
            waiting.cancel()
            await asyncio.gather(refused, waiting, return_exceptions=True)

    async def _refusal(self, start: Revision) -> Revision:
        try:
            async with self._store.watch(_ANY_KEY, start=start) as items:
                async for _ in items:
                    pass
        except Compacted as error:
            return Revision(error.compact_revision)
        raise Unreachable("the watch ended without an answer")


async def _end(running: asyncio.Future[None] | None) -> None:
    if running is not None:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


HistoryAt = tuple[SegmentMap, SpoolReading | None]
"""The segments at a position, and what of the spool follows it where etcd's history does not."""


async def history_at(
    store: Store, spool: Spool | None, position: Sequence, *, group: GroupName | None = None
) -> HistoryAt:
    """Return the segments at a position; and the spool, where etcd's history begins too late.

    With a `group` no more than its own need be there: a thousand that are copied at once would
    otherwise read those of all a thousand times.

    Raises:
        Compacted: neither of them has it.
    """
    try:
        return await load_segments(store, Revision(position), group=group), None
    except Compacted:
        reading = await spool.open_at(position) if spool is not None else None
        if reading is None:
            raise
        _log.info("history.spooled", position=position)
        return reading.segments, reading
