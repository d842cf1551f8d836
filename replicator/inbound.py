"""All streams into this region, and waiting for what they bring.

Runs while the region's term lasts. One stream for each other cluster of the mesh; they know of
each other only what an epoch's lineage needs: how far a parent is applied, and whether it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import CorruptRecord, MeshError, Refused, TermEnded
from meshkit.keys import RegionalKeys, last_part, parts_below
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence, Token
from meshkit.regional import Checkpoint, GroupCheckpoint
from meshkit.store.port import Store
from meshkit.store.txn import Guard
from replicator.arrivals import TakenIn
from replicator.awaited import AwaitedGroups, AwaitedPositions
from replicator.inbound_stream import InboundStream
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.link.port import Dialer
from replicator.pausing import Pauses
from replicator.pulse import Pulse
from replicator.region import RegionMirror
from replicator.resend import Resend
from replicator.shared_watch import WatchAll
from replicator.together import Scope

_log = structlog.get_logger()


class Inbound:
    """Keeps one stream per source. `set_sources` may be called at any time."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        cluster: ClusterName,
        dialer: Dialer,
        term_guard: Guard | None = None,
        pauses: Pauses | None = None,
        watch: WatchAll | None = None,
        limits: Limits = DEFAULT_LIMITS,
        rng: random.Random | None = None,
    ) -> None:
        self.mirror = RegionMirror(store, clock=clock, watch=watch)
        self._store = store
        self._clock = clock
        self._cluster = cluster
        self._dialer = dialer
        self._term_guard = term_guard
        self._pauses = pauses
        if pauses is not None:
            pauses.on_change(self.refresh)
        self._limits = limits
        self._rng = rng or random.Random()  # noqa: S311 -- spreads redials, keeps no secret
        self._streams: dict[ClusterName, InboundStream] = {}
        self._running: dict[ClusterName, asyncio.Task[None]] = {}
        self._sources: dict[ClusterName, tuple[str, ...]] = {}
        self._exact: frozenset[GroupName] = frozenset()
        self._replaced: dict[ClusterName, frozenset[Incarnation]] = {}
        self._pulse = Pulse()
        self._positions: defaultdict[ClusterName, AwaitedPositions] = defaultdict(AwaitedPositions)
        self._incarnations: dict[ClusterName, Incarnation | None] = {}
        self._changes = AwaitedGroups()
        self._began_ms = clock.now_ms()
        self.mirror.on_change(self._on_region_change)

    # --- running -------------------------------------------------------------------------------

    def set_sources(self, sources: Mapping[ClusterName, tuple[str, ...]]) -> None:
        """Stream from exactly these clusters, at these endpoints; never from this one itself."""
        self._sources = {c: e for c, e in sources.items() if c != self._cluster}
        self._pulse.beat()

    def set_exact(self, groups: Iterable[GroupName]) -> None:
        """Let every value of these groups' keys arrive, and of the others the last of a batch."""
        self._exact = frozenset(groups)

    def set_replaced(self, replaced: Mapping[ClusterName, frozenset[Incarnation]]) -> None:
        """Follow none of these logs any more: an operator has declared them to be over."""
        for source in {*replaced, *self._replaced}:
            if replaced.get(source) != self._replaced.get(source) and source in self._streams:
                # Whether it has stopped or is refused over and over: it begins anew.
                self._running.pop(source).cancel()
                del self._streams[source]
        self._replaced = dict(replaced)
        self._pulse.beat()

    async def run(self) -> None:
        """Keep the streams going until cancelled.

        Raises:
            TermEnded: another replicator leads this region.
        """
        tasks = Scope()
        tasks.start(self.mirror.run())
        tasks.start(self._keep_streams(tasks))
        try:
            await tasks.wait()
        finally:
            self._streams.clear()
            self._running.clear()

    async def _keep_streams(self, tasks: Scope) -> None:
        await self.mirror.ready.wait()
        while True:
            self._adjust(tasks)
            self._wake_all_waiting()
            await self._pulse.wait()

    def _adjust(self, tasks: Scope) -> None:
        for source in [s for s in self._streams if s not in self._sources]:
            self._running.pop(source).cancel()
            del self._streams[source]
        for source, endpoints in self._sources.items():
            stream = self._streams.get(source)
            if stream is None:
                stream = self._streams[source] = self._stream(source)
                self._running[source] = tasks.start(stream.run())
            stream.endpoints = endpoints
            stream.replaced = self._replaced.get(source, frozenset())

    def _stream(self, source: ClusterName) -> InboundStream:
        return InboundStream(
            source=source,
            me=self._cluster,
            store=self._store,
            clock=self._clock,
            dialer=self._dialer,
            mirror=self.mirror,
            term_guard=self._term_guard,
            has_given_up=self._has_given_up,
            is_exact=lambda group: group in self._exact,
            paused=self._pauses.groups if self._pauses else dict,
            endpoints=self._sources[source],
            limits=self._limits,
            rng=self._rng,
        )

    def _has_given_up(self, source: ClusterName) -> bool:
        """Return whether an epoch need not wait for this cluster's stream any longer."""
        stream = self._streams.get(source)
        gone_since_ms = self._began_ms if stream is None else stream.down_since_ms
        if gone_since_ms is None:
            return False
        return self._clock.now_ms() - gone_since_ms >= self._limits.parent_patience_ms

    def _on_region_change(self, changed: frozenset[bytes]) -> None:
        for key in changed:
            self._wake_waiting(key)
        for stream in self._streams.values():
            stream.nudge()

    def _wake_waiting(self, key: bytes) -> None:
        """Wake whoever waits for what this key says."""
        parts = parts_below(RegionalKeys.checkpoints, key)
        if parts is None:
            self._changes.on_change(GroupName(last_part(key)))
        elif len(parts) == 2:
            self._changes.on_change(GroupName(parts[1]))
        elif len(parts) > 2:
            self._changes.wake_all()
        else:
            self._wake_positions(ClusterName(parts[0]))

    def _wake_positions(self, source: ClusterName) -> None:
        try:
            own = self.mirror.checkpoint(source)
        except CorruptRecord:
            own = None  # Whoever waits for it is told.
        incarnation = own.incarnation if own else None
        if own is None or incarnation != self._incarnations.get(source):
            self._positions[source].wake_all()
        else:
            self._positions[source].on_position(own.sequence)
        self._incarnations[source] = incarnation

    def _wake_all_waiting(self) -> None:
        """Other streams than before bring what is waited for."""
        self._changes.wake_all()
        for awaited in self._positions.values():
            awaited.wake_all()

    async def resend(self, source: ClusterName, after: Sequence) -> Resend:
        """Have everything of `source` past `after` sent again, and return what came.

        Raises:
            Refused: it cannot be.
            LinkLost: the connection ended on the way.
        """
        stream = self._streams.get(source)
        if stream is None:
            raise Refused(f"there is no stream from {source}")
        return await stream.resend.ask(after)

    def refresh(self) -> None:
        """Look for groups that have fallen out of step, or may go on (a join or a pause moved)."""
        for stream in self._streams.values():
            stream.nudge()

    # --- what is here --------------------------------------------------------------------------

    def position(self, source: ClusterName) -> Checkpoint | None:
        """Return the stored checkpoint of a source, as last seen."""
        return self.mirror.checkpoint(source)

    def in_step(self, group: GroupName) -> bool:
        """Return whether the group's copy is complete and follows, or nothing has to follow."""
        return self.mirror.fence(group) is not None and not self.mirror.is_out_of_step(group)

    def joins(self) -> tuple[GroupCheckpoint, ...]:
        """Return the checkpoints of the groups that are out of step."""
        return tuple(decode(GroupCheckpoint, item.value) for item in self.mirror.joins().values())

    def problems(self) -> dict[ClusterName, str]:
        """Return what is wrong with each stream that has a problem."""
        found = {source: stream.problems() for source, stream in self._streams.items()}
        return {source: text for source, text in found.items() if text}

    async def wait_applied(
        self, source: ClusterName, incarnation: Incarnation, sequence: Sequence
    ) -> None:
        """Return once a stored checkpoint says that `source` is applied up to `sequence`."""
        while True:
            own = self.mirror.checkpoint(source)
            if own and own.incarnation == incarnation and own.sequence >= sequence:
                return
            stream = self._streams.get(source)
            if stream is not None:
                stream.demand(sequence)
            await self._positions[source].until(sequence)

    async def wait_taken_in(
        self, source: ClusterName, group: GroupName, epoch: Epoch, *, seal: Token, quiet_ms: int
    ) -> TakenIn:
        """Return once the cut made under `seal` is applied, or nothing is heard for `quiet_ms`."""
        while (stream := self._streams.get(source)) is not None:
            taken = stream.arrivals.taken_in(group, epoch, seal=seal)
            silent_ms = self._clock.now_ms() - stream.arrivals.heard_at_ms
            is_idle = stream.receiver is None or stream.receiver.is_idle
            if taken.cut is not None or (is_idle and silent_ms >= quiet_ms):
                # What the main stream brought is not contained in a group that it has skipped.
                is_out = self.mirror.is_out_of_step(group)
                return attrs.evolve(taken, contained_at_ms=None) if is_out else taken
            await self._clock.sleep_ms(self._limits.take_in_look_ms)
        return TakenIn()

    @contextlib.asynccontextmanager
    async def standing_still(self, source: ClusterName) -> AsyncIterator[None]:
        """Store how far `source` is applied, and apply nothing more of it meanwhile."""
        stream = self._streams.get(source)
        if stream is None:
            yield
            return
        applier = stream.applier
        if applier.position > applier.durable and applier.known is not None:
            try:
                await applier.store_checkpoint()
            except TermEnded:
                raise
            except MeshError as error:
                # What is stored already is certain; this would only have said more of it.
                _log.info("checkpoint.not_stored", source=source, why=str(error))
        async with applier.turn:
            yield

    async def wait_follow(self, group: GroupName, epoch: int) -> None:
        """Return once the group is in step here in at least this epoch."""
        while True:
            fence = self.mirror.fence(group)
            if fence and fence.epoch >= epoch and not self.mirror.is_out_of_step(group):
                return
            await self._changes.change_of(group)
