"""One connection of a target to this source: what it is sent, and where side streams are read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from meshkit.clock import Clock
from meshkit.errors import Compacted, Refused
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence
from meshkit.regional import JoinPhase
from meshkit.store.port import Store
from replicator.anchors import HeadTracker
from replicator.backlog import stays_within_bound
from replicator.beginning import beginning_of
from replicator.copies import Copies, Pacing
from replicator.lag import StreamLag
from replicator.lease_terms import LeaseTerms
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.linger import Linger
from replicator.link.port import LinkLost, SourceEnd
from replicator.local_history import HistoryAt, LocalHistory, history_at
from replicator.messages import Compared, Hello, Join, Leave, RefusalCode
from replicator.pulse import Pulse, either
from replicator.segments import SegmentMap
from replicator.sender import Acknowledged, ProtocolBroken, Sender, SenderEvent, Silent
from replicator.shared_watch import WatchAll
from replicator.source import Tail
from replicator.spool.reading import SpoolReading
from replicator.throttle import Throttle
from replicator.together import Scope

_log = structlog.get_logger()

TICK_MS_MAX = 50


class SessionEnded(Refused):
    """This connection is no longer served."""

    code = "session_ended"


class OutboundSession:
    """Serves one target after it was accepted."""

    def __init__(
        self,
        *,
        connection: SourceEnd,
        hello: Hello,
        store: Store,
        clock: Clock,
        cluster: ClusterName,
        incarnation: Incarnation,
        heads: HeadTracker,
        lag: StreamLag,
        pulse: Pulse,
        watch: WatchAll,
        terms: LeaseTerms,
        throttle: Throttle,
        is_leading: Callable[[], bool],
        history: LocalHistory | None = None,
        is_held: Callable[[], bool] = lambda: False,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._history = history
        self.target = hello.target
        self.problem = ""
        self._connection = connection
        self._hello = hello
        self._store = store
        self._clock = clock
        self._incarnation = incarnation
        self._heads = heads
        self._lag = lag
        self._outbound_pulse = pulse
        self._watch = watch
        self._terms = terms
        self._is_leading = is_leading
        self._is_held = is_held
        self._limits = limits
        self._linger = Linger(clock, limits)
        self._pulse = Pulse()
        self._sender = Sender(
            source=cluster, incarnation=incarnation, now_ms=clock.now_ms(), limits=limits
        )
        self._applied = Sequence(0)
        """What the target had applied when the connection began."""
        self._tail: Tail | None = None
        self._cuts: dict[GroupName, Sequence] = {}
        self._parked: dict[GroupName, Join] = {}
        self._sides: dict[GroupName, tuple[Join, asyncio.Task[None]]] = {}
        pace = Pacing(clock=clock, throttle=throttle, is_held=is_held)
        self.copies = Copies(self._sender, self._pulse, pace, store, terms=terms, limits=limits)

    def nudge(self) -> None:
        """Whether the stream is held may have changed: look again."""
        self._pulse.beat()

    @property
    def groups_asked(self) -> frozenset[GroupName]:
        """The groups of which the target has asked for a side stream."""
        return frozenset({*self._parked, *self._sides})

    @property
    def needed(self) -> Sequence | None:
        """The oldest position from which the target may have to be served; None: unknown yet."""
        if self._lag.stored is None:
            return None
        return min((self._lag.stored, *self._cuts.values()))

    async def run(self) -> None:
        """Serve until the connection ends.

        Raises:
            LinkLost, SessionEnded, BeyondBound, Compacted, Unreachable: why it ended.
        """
        self._sender.receive(self._hello, now_ms=self._clock.now_ms())
        self._sender.events()
        tail = await self._begin()
        if tail is None:
            await self._send_due()
            return
        self._tail = tail
        tasks = Scope()
        for part in (
            self._read(tasks),
            self._write(),
            self._tick(),
            tail.run(),
            self._pump(tail, tasks),
            stays_within_bound(self._store, self._clock, self._stored, self._heads, self._limits),
        ):
            tasks.start(part)
        try:
            await tasks.wait()
        finally:
            self._lag.on_disconnected()

    def _stored(self) -> Sequence | None:
        return None if self._is_held() else self._lag.stored

    # --- beginning -----------------------------------------------------------------------------

    async def _begin(self) -> Tail | None:
        """Answer the hello; None if it was refused."""
        position = self._hello.position
        if self._hello.incarnation not in (None, self._incarnation):
            text = (
                f"this cluster's history is {self._incarnation}, the checkpoint is of"
                f" {self._hello.incarnation}"
            )
            self._sender.refuse(RefusalCode.WRONG_INCARNATION, text)
            return None
        asked_at_ms = self._clock.wall_ms()
        head = (await self._store.range((RegionalKeys.fence_index, b""), keys_only=True)).revision
        if position is not None and position > head:
            text = f"position {position} is beyond the head {head}: history went back"
            self._sender.refuse(RefusalCode.AHEAD, text)
            return None
        begun = await beginning_of(
            self._hello, self._store, head, history_at=self._history_at, limits=self._limits
        )
        self._sender.welcome(
            begun.start,
            is_fresh=begun.is_fresh,
            segments=begun.standings,
            resend_refused=begun.resend_refused,
        )
        self._sender.on_head(head, wall_ms=asked_at_ms)
        self._applied = begun.applied
        now_ms, tells = self._clock.now_ms(), self._hello.tells_out_of_step
        self._lag.on_connected(begun.applied, is_fresh=begun.is_fresh, now_ms=now_ms, tells=tells)
        _log.info("target.welcomed", target=self.target, start=begun.start, is_fresh=begun.is_fresh)
        return self._tail_after(begun.start, begun.segments, begun.spooled)

    async def _history_at(self, at: Sequence, group: GroupName | None = None) -> HistoryAt:
        spool = self._history.spool(self._incarnation) if self._history else None
        return await history_at(self._store, spool, at, group=group)

    def _tail_after(
        self, after: Sequence, segments: SegmentMap, spooled: SpoolReading | None
    ) -> Tail:
        return Tail(
            self._store,
            clock=self._clock,
            after=after,
            segments=segments,
            spooled=spooled,
            watch=self._watch,
            terms=self._terms,
            takes_pieces=self._hello.takes_pieces,
            limits=self._limits,
        )

    # --- the tasks of a connection -------------------------------------------------------------

    async def _read(self, tasks: Scope) -> None:
        while True:
            message = await self._connection.receive()
            self._sender.receive(message, now_ms=self._clock.now_ms())
            for event in self._sender.events():
                self._on_event(event, tasks)
            self._pulse.beat()

    async def _write(self) -> None:
        while True:
            if not await self._send_due():
                await self._pulse.wait()

    async def _send_due(self) -> bool:
        if messages := self._sender.messages_to_send(now_ms=self._clock.now_ms()):
            for message in messages:
                await self._connection.send(message)
            self._pulse.beat()
        return bool(messages)

    async def _tick(self) -> None:
        while True:
            wait_ms = self._sender.deadline_ms() - self._clock.now_ms()
            await self._clock.sleep_ms(max(1, min(wait_ms, TICK_MS_MAX)))
            if not self._is_leading():
                raise SessionEnded("this replicator no longer leads its region")
            heads = self._heads
            self._sender.on_head(heads.head, wall_ms=self._clock.wall_ms() - heads.age_ms)
            now_ms = self._clock.now_ms()
            if now_ms >= self._sender.deadline_ms():
                self._sender.on_deadline(now_ms=now_ms)
                for event in self._sender.events():
                    self._on_event(event, None)
                self._pulse.beat()

    async def _pump(self, tail: Tail, tasks: Scope) -> None:
        while True:
            while self._is_held() or not self._sender.has_room:
                await self._pulse.wait()
            while not tail.has_backlog:
                await tail.pulse.wait()
            if self._is_held():
                continue
            await self._linger.before_frame(is_full=tail.has_full_frame)
            batch = await tail.next_batch()
            was_behind = self._sender.read_through < self._applied
            self._lag.on_read(batch.through, batch.records)
            self._sender.on_batch(batch.through, batch.records)
            is_past = was_behind and self._sender.read_through >= self._applied
            if is_past:
                self._sender.flush()
            if self._parked and (is_past or any(record.marks for record in batch.records)):
                for join in list(self._parked.values()):
                    self._begin_side(join, tasks)
            self._pulse.beat()

    def _on_event(self, event: SenderEvent, tasks: Scope | None) -> None:
        match event:
            case Acknowledged():
                self.problem, self._linger.apply_ms = event.stalled, event.apply_ms
                self._lag.is_stalled = bool(event.stalled)
                now_ms, told = self._clock.now_ms(), event.out_of_step
                self._lag.on_acknowledged(
                    event.applied, stored=event.durable, now_ms=now_ms, out_of_step=told
                )
                self._outbound_pulse.beat()
            case Join():
                assert tasks is not None, "joins come from the target"
                self._end_side(event.group)
                self._begin_side(event, tasks)
            case Leave():
                side = self._sides.get(event.group)
                parked = self._parked.get(event.group)
                if event.number in (side and side[0].number, parked and parked.number):
                    self._end_side(event.group)
            case Compared():
                self.copies.on_compared(event)
            case Silent():
                raise LinkLost(f"nothing heard of {self.target}")
            case ProtocolBroken():
                raise SessionEnded(event.reason)

    # --- side streams --------------------------------------------------------------------------

    def _end_side(self, group: GroupName) -> None:
        self._parked.pop(group, None)
        side = self._sides.pop(group, None)
        if side is not None:
            side[1].cancel()

    def _begin_side(self, join: Join, tasks: Scope) -> None:
        """Serve a join, or park it until the log shows the epoch it asks for."""
        assert self._tail is not None
        if self._sender.read_through < self._applied:
            self._parked[join.group] = join
            return
        newest = self._tail.segments.newest(join.group)
        if newest is None or newest.opened == 0 or newest.epoch < join.epoch:
            if join.group not in self._parked:
                reason = f"epoch {join.epoch} has not begun in the log of {self._sender.source}"
                self._sender.refuse_side(join, epoch=Epoch(0), reason=reason)
            self._parked[join.group] = join
            return
        self._parked.pop(join.group, None)
        if newest.epoch > join.epoch:
            reason = f"the newest epoch here is {newest.epoch}"
            self._sender.refuse_side(join, epoch=newest.epoch, reason=reason)
            return
        self._sides[join.group] = (join, tasks.start(self._serve_side(join)))

    async def _serve_side(self, join: Join) -> None:
        try:
            await self._copy_and_follow(join)
        finally:
            if (side := self._sides.get(join.group)) and side[0].number == join.number:
                self._cuts.pop(join.group, None)
                del self._sides[join.group]
                self._outbound_pulse.beat()

    async def _copy_and_follow(self, join: Join) -> None:
        resume: Join | None = join if join.phase is not JoinPhase.JOINING else None
        while True:
            while self._sender.is_mid_record:  # A cut before it would only meet it again.
                await self._pulse.wait()
            cut = resume.sequence if resume else self._new_cut(join)
            if cut is None:
                return
            self._cuts[join.group] = cut
            while self._sender.sent_through < cut:
                await self._pulse.wait()
            try:
                segments, spooled = await self._history_at(cut, join.group)
                if resume is None or resume.phase is JoinPhase.COPYING:
                    cursor = resume.cursor if resume else None
                    await self._copy(join, segments, cut, cursor)
                await self._follow(join, cut, self._tail_after(cut, segments, spooled))
            except Compacted as error:
                newest = self._tail.segments.newest(join.group) if self._tail else None
                if newest is not None and newest.cut is not None and int(newest.cut) == int(cut):
                    reason = f"the end of epoch {join.epoch} is compacted away here: {error}"
                    self._sender.refuse_side(join, epoch=Epoch(0), reason=reason)
                    self._parked[join.group] = join
                    self._pulse.beat()
                    return
                _log.warning("copy.compacted", group=join.group, target=self.target)
                resume = None
                # Where the main stream stands may be gone too: then it reads on, or ends.
                while self._sender.read_through <= cut:
                    await self._pulse.wait()
            else:
                return

    def _new_cut(self, join: Join) -> Sequence | None:
        """Return where a copy is taken: where the main stream is, or where the segment ended."""
        assert self._tail is not None
        self._sender.flush()
        self._pulse.beat()
        newest = self._tail.segments.newest(join.group)
        if newest is None or newest.epoch != join.epoch:
            epoch = newest.epoch if newest else Epoch(0)
            self._sender.refuse_side(join, epoch=epoch, reason=f"the newest epoch is {epoch}")
            return None
        # Past its cut the scope holds what this cluster applies from the successor.
        return Sequence(newest.cut) if newest.cut is not None else self._sender.sent_through

    async def _copy(
        self, join: Join, segments: SegmentMap, cut: Sequence, cursor: bytes | None
    ) -> None:
        segment = segments.newest(join.group)
        prefixes = segment.prefixes if segment else ()
        _log.info("copy.begun", group=join.group, target=self.target, cut=cut)
        await self.copies.send(join, prefixes, cut=cut, cursor=cursor)

    async def _follow(self, join: Join, cut: Sequence, tail: Tail) -> None:
        self._sender.follow(join.number, join.group, cut)
        self._pulse.beat()
        if not self._sender.has_side(join.number):
            return
        reading = asyncio.ensure_future(tail.run())
        try:
            while self._sender.has_side(join.number):
                if reading.done():
                    reading.result()
                is_wanted = self._sender.wants_side(join.number) and not self._is_held()
                if not is_wanted or not tail.has_backlog:
                    await either(self._pulse, tail.pulse, reading)
                    continue
                batch = await tail.next_batch()
                own = (record.restricted(join.group) for record in batch.records)
                self._sender.on_side_read(
                    join.number, batch.through, tuple(r for r in own if r is not None)
                )
                self._pulse.beat()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
