"""One stream into this region: dials a source's leading replicator and applies what it sends.

It forgets everything when the connection ends: where to go on from is in the checkpoints.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

import structlog

from meshkit.clock import Clock
from meshkit.errors import MeshError, StoreReplaced, TermEnded
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Incarnation, Sequence
from meshkit.pauses import ReplicationPause
from meshkit.store.port import Store
from meshkit.store.txn import Guard
from replicator.applier import Applier, StreamBroken
from replicator.arrivals import Arrivals
from replicator.batch import MainBatch
from replicator.copy_in import CopyIn
from replicator.draft import Hold, Stale
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.link.port import Dialer, LinkLost, TargetEnd
from replicator.messages import CopyPage, Refusal, SideFrame, SideRefused, Welcome
from replicator.out_of_step import OutOfStepHere
from replicator.pulse import Pulse
from replicator.receiver import GapSeen, Receiver, ReceiverEvent, SourceChanged, SourceSilent, Work
from replicator.refused import NotLeading, refused_by
from replicator.region import RegionMirror
from replicator.region_state import RegionState
from replicator.resend_request import ResendRequest
from replicator.side_requests import SideRequests
from replicator.stalls import STALLS, stall_reason
from replicator.together import together

_log = structlog.get_logger()

T = TypeVar("T")

TICK_MS_MAX = 100
"""Time is looked at least this often."""


class InboundStream:
    """Keeps one stream from `source` going while its region's term lasts.

    `replaced`: incarnations of its log that an operator has declared to be over. `has_given_up`
    tells whether a cluster's stream has been gone for longer than an epoch waits.
    """

    def __init__(
        self,
        *,
        source: ClusterName,
        me: ClusterName,
        store: Store,
        clock: Clock,
        dialer: Dialer,
        mirror: RegionMirror,
        term_guard: Guard | None = None,
        has_given_up: Callable[[ClusterName], bool] = lambda _: False,
        is_exact: Callable[[GroupName], bool] = lambda _: False,
        paused: Callable[[], Mapping[GroupName, ReplicationPause]] = dict,
        endpoints: tuple[str, ...] = (),
        limits: Limits = DEFAULT_LIMITS,
        rng: random.Random | None = None,
    ) -> None:
        self.source = source
        self.endpoints = endpoints
        self.replaced: frozenset[Incarnation] = frozenset()
        self.problem = "not connected yet"
        self.down_since_ms: int | None = clock.now_ms()
        """Since when the source has not been heard of; None while it is connected."""
        self.is_over = False
        self._me, self._clock = me, clock
        self._dialer, self._mirror, self._limits = dialer, mirror, limits
        self._rng = rng or random.Random()  # noqa: S311 -- spreads redials, keeps no secret
        self.applier = Applier(
            store,
            me=me,
            source=source,
            term_guard=term_guard,
            has_given_up=has_given_up,
            is_exact=is_exact,
            limits=limits,
        )
        self._copies = CopyIn(store, self.applier, clock=clock)
        self._pulse = Pulse()
        self._demand = Sequence(0)
        self._stored_at_ms = 0
        self.resend = ResendRequest(self.nudge)
        self._requests = SideRequests(source, paused=paused, limits=limits)
        self._out_of_step = OutOfStepHere(source, paused=paused)
        self.arrivals = Arrivals(now_ms=clock.now_ms())
        self.receiver: Receiver | None = None

    @property
    def position(self) -> Sequence:
        """How far the source's log is applied, in memory."""
        return self.applier.position

    def problems(self) -> str:
        """Return what is wrong with this stream, or nothing."""
        sides = "; ".join(f"{g}: {why}" for g, why in sorted(self._requests.problems.items()))
        return "; ".join(text for text in (self.problem, sides) if text)

    def demand(self, sequence: Sequence) -> None:
        """Somebody waits for the checkpoint to be stored at `sequence` or beyond."""
        self._demand = max(self._demand, sequence)
        self._pulse.beat()

    def nudge(self) -> None:
        """The region's fences or checkpoints, or what is paused, may have moved: look again."""
        self._pulse.beat()

    # --- connecting ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Dial, apply, and dial again, until cancelled or until the source is another log.

        Raises:
            TermEnded: another replicator leads this region.
        """
        failures = 0
        while True:
            for endpoint in self.endpoints:
                try:
                    await self._session(endpoint)
                except TermEnded:
                    raise
                except StoreReplaced as error:
                    self._lose(str(error))
                    self.is_over = True
                    _log.error("stream.stopped", source=self.source, why=str(error))
                    return
                except NotLeading as error:
                    self._lose(str(error))
                except MeshError as error:
                    was_up = self.down_since_ms is None
                    self._lose(str(error))
                    if was_up:
                        failures = 0
                        _log.warning("stream.lost", source=self.source, why=str(error))
            failures += 1
            await self._clock.sleep_ms(self._redial_ms(failures))

    def _redial_ms(self, failures: int) -> int:
        limits = self._limits
        bounded = min(limits.redial_ms_min << min(failures - 1, 16), limits.redial_ms_max)
        return self._rng.randint(bounded // 2, bounded)

    def _lose(self, problem: str) -> None:
        self.problem = problem
        self._requests.reset()
        if self.down_since_ms is None:
            self.down_since_ms = self._clock.now_ms()

    async def _session(self, endpoint: str) -> None:
        own = await self.applier.begin(replaced=self.replaced)
        receiver = Receiver(
            source=self.source,
            target=self._me,
            incarnation=own.incarnation if own else None,
            position=own.sequence if own else None,
            now_ms=self._clock.now_ms(),
            resend=self.resend.begin(own),
            limits=self._limits,
        )
        self._requests.reset()
        self._copies.reset()
        connection = await self._dialer.dial(self.source, endpoint)
        self.receiver = receiver
        try:
            await connection.send(receiver.hello())
            await together(
                self._read(connection, receiver),
                self._write(connection, receiver),
                self._tick(receiver),
                self._apply(receiver),
                self._copies.answer(receiver, self._pulse),
            )
        finally:
            self.receiver = None
            self.resend.on_lost(receiver.resend)
            await connection.close()

    # --- the four tasks of a connection --------------------------------------------------------

    async def _read(self, connection: TargetEnd, receiver: Receiver) -> None:
        while True:
            message = await connection.receive()
            if isinstance(message, Refusal):
                raise refused_by(message)
            now_ms = self._clock.now_ms()
            self.arrivals.on_message(message, now_ms=now_ms)
            receiver.receive(message, now_ms=now_ms)
            self.resend.conclude(receiver.resend)
            self._pulse.beat()

    async def _write(self, connection: TargetEnd, receiver: Receiver) -> None:
        while True:
            messages = receiver.messages_to_send(now_ms=self._clock.now_ms())
            for message in messages:
                await connection.send(message)
            if messages:
                await self._clock.sleep_ms(self._limits.ack_spacing_ms)
            else:
                await self._pulse.wait()

    async def _tick(self, receiver: Receiver) -> None:
        while True:
            now_ms = self._clock.now_ms()
            await self._clock.sleep_ms(max(1, min(receiver.deadline_ms() - now_ms, TICK_MS_MAX)))
            now_ms = self._clock.now_ms()
            if now_ms >= receiver.deadline_ms():
                receiver.on_deadline(now_ms=now_ms)
            self._pulse.beat()

    async def _apply(self, receiver: Receiver) -> None:
        insist = partial(self._insist, receiver)
        while True:
            self.resend.check(receiver.resend)
            for event in receiver.events():
                await insist(self._on_event, event)
            await insist(self._look_again)
            receiver.keep_pace(self.applier.pace)
            work = receiver.next_work()
            if work is None:
                self.arrivals.on_applied(self.applier.position)
                if not await insist(self._store_idle_progress):
                    await self._pulse.wait()
                continue
            await insist(self._apply_work, work)
            await insist(self._applied)

    async def _insist(
        self, receiver: Receiver, step: Callable[..., Awaitable[T]], *what: object
    ) -> T:
        """Do one step; while the region's etcd takes nothing, wait and do it again.

        Each step settles what the one before it left, so that nothing is done twice.
        """
        tries = 0
        while True:
            try:
                result = await step(receiver, *what)
            except LinkLost:
                raise
            except STALLS as error:
                tries += 1
                self._stall(receiver, error)
                await self._clock.sleep_ms(self._redial_ms(tries))
            else:
                if tries:
                    self.problem = receiver.stalled = ""
                    _log.info("stream.goes_on", source=self.source, tries=tries)
                return result

    def _stall(self, receiver: Receiver, error: MeshError) -> None:
        self.applier.forget()
        self.applier.pace.on_failed()
        if not receiver.stalled:
            _log.warning("stream.stalled", source=self.source, why=str(error))
        self.problem = receiver.stalled = stall_reason(self._me, error)
        self._pulse.beat()

    async def _apply_work(self, receiver: Receiver, work: Work) -> None:
        match work:
            case MainBatch():
                await self._apply_main(receiver, work)
            case CopyPage():
                self._requests.on_page(work.group)
                result = await self._copies.apply(work)
                await self._after_side(receiver, work.group, result)
            case SideFrame():
                result = await self.applier.apply_side(work)
                await self._after_side(receiver, work.group, result)

    # --- applying ------------------------------------------------------------------------------

    async def _apply_main(self, receiver: Receiver, batch: MainBatch) -> None:
        while True:
            before, began_ms = self.applier.durable, self._clock.now_ms()
            hold = await self.applier.apply_main(batch)
            now_ms = self._clock.now_ms()
            if self.applier.durable != before:
                self._stored_at_ms = now_ms
            if hold is None:
                self.applier.pace.on_done(now_ms - began_ms, is_filled=receiver.has_more)
                self.problem = ""
                self._requests.on_records(batch.records)
                self.arrivals.on_applied(self.applier.position, batch.records)
                return
            await self._on_hold(receiver, hold)

    async def _on_hold(self, receiver: Receiver, hold: Hold) -> None:
        """Wait until something may have changed, and have the region read again."""
        if self.problem != hold.reason:
            self.problem = hold.reason
            _log.info("stream.held", source=self.source, why=hold.reason)
        await self._see_out_of_step(receiver)
        receiver.on_progress(self.applier.position, self.applier.durable)
        self._pulse.beat()
        await self._pulse.wait()
        for event in receiver.events():
            await self._on_event(receiver, event)
        self.applier.forget()

    async def _after_side(
        self, receiver: Receiver, group: GroupName, result: Stale | Hold | None
    ) -> None:
        if isinstance(result, Stale):
            self.applier.forget()
            self._requests.on_stale(group)
        elif isinstance(result, Hold):
            _log.error("group.held", group=group, source=self.source, why=result.reason)
            await self.applier.join_again(result, group)
            shield = (await self.applier.region()).shield()
            now_ms = self._clock.now_ms()
            self._requests.on_held(receiver, group, result.reason, shield=shield, now_ms=now_ms)

    async def _applied(self, receiver: Receiver) -> None:
        await self._see_out_of_step(receiver)
        receiver.on_applied(self.applier.position, self.applier.durable)
        self._pulse.beat()

    async def _see_out_of_step(self, receiver: Receiver) -> RegionState:
        """See of which groups what is applied does not speak, before it is acknowledged."""
        state = await self.applier.region()
        receiver.out_of_step = self._out_of_step.look(state, now_ms=self._clock.now_ms())
        return state

    async def _store_idle_progress(self, receiver: Receiver) -> bool:
        """Store progress that carried no record, now and then or when somebody waits for it."""
        applier = self.applier
        if applier.position <= applier.durable or applier.known is None:
            return False
        is_wanted = applier.durable < self._demand <= applier.position
        is_due = self._clock.now_ms() - self._stored_at_ms >= self._limits.checkpoint_idle_ms
        if not is_wanted and not is_due:
            return False
        await applier.store_checkpoint()
        self._stored_at_ms = self._clock.now_ms()
        await self._applied(receiver)
        return True

    # --- events --------------------------------------------------------------------------------

    async def _on_event(self, receiver: Receiver, event: ReceiverEvent) -> None:
        match event:
            case Welcome():
                await self._on_welcome(receiver, event)
            case SideRefused():
                await self._on_side_refused(event)
            case GapSeen():
                raise StreamBroken(f"expected what follows {event.expected}, found {event.after}")
            case SourceSilent():
                raise LinkLost(f"nothing heard of {self.source}")
            case SourceChanged():
                raise StoreReplaced(event.text)

    async def _on_welcome(self, receiver: Receiver, welcome: Welcome) -> None:
        self.down_since_ms = None
        self.problem = ""
        self._stored_at_ms = self._clock.now_ms()
        while welcome.is_fresh:
            hold = await self.applier.apply_fresh(welcome)
            if hold is None:
                _log.info("stream.begun", source=self.source, start=welcome.start)
                break
            await self._on_hold(receiver, hold)
        self.problem = ""
        await self._applied(receiver)
        _log.info("stream.connected", source=self.source, start=welcome.start)

    async def _on_side_refused(self, refused: SideRefused) -> None:
        self._requests.on_refused(refused.group, refused.reason)
        if refused.epoch:
            await self.applier.apply_refused(refused.group, refused.epoch)

    # --- groups out of step --------------------------------------------------------------------

    async def _look_again(self, receiver: Receiver) -> None:
        """Ask for a side stream of every group that is out of step with this source."""
        known = self.applier.known
        if known is not None and self._mirror.has_moved(known):
            self.applier.forget()
        state = await self._see_out_of_step(receiver)
        version, now_ms = self.applier.joins_version, self._clock.now_ms()
        if not self._requests.is_due(version, now_ms=now_ms):
            return
        for group in self._requests.look(receiver, state, version=version, now_ms=now_ms):
            self._copies.forget(group)
            _log.info("group.join_asked", source=self.source, group=group)
        self._pulse.beat()
