"""All streams out of this region: accepts targets, serves each one, and knows how far each lags.

Serves only while this process leads its region; a target that dials another is told so at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.errors import MeshError
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Incarnation, Sequence
from meshkit.pauses import ReplicationPause
from meshkit.status import Lag, StreamState, StreamStatus
from meshkit.store.port import Store
from replicator.anchors import HeadTracker
from replicator.group_lag import TargetLag, target_lag, told_of
from replicator.lag import StreamLag
from replicator.lease_terms import LeaseTerms
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.link.port import LinkLost, SourceEnd
from replicator.local_history import LocalHistory
from replicator.messages import Hello, Refusal, RefusalCode
from replicator.outbound_session import OutboundSession
from replicator.pausing import Pauses
from replicator.pulse import Pulse
from replicator.shared_watch import SharedWatch
from replicator.throttle import Throttle
from replicator.together import together

_log = structlog.get_logger()

RATE_INTERVAL_MS = 1_000


@attrs.define(kw_only=True)
class _Target:
    """What is remembered of a target between its connections."""

    lag: StreamLag
    session: OutboundSession | None = None
    task: asyncio.Task[None] | None = None
    problem: str = "never connected"
    rate_at_ms: int = 0
    rate_from: int = 0
    rate: float = 0.0


class Outbound:
    """The source's side of all streams. `run` reads the head; `serve` takes each connection."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        cluster: ClusterName,
        incarnation: Incarnation,
        is_leading: Callable[[], bool] = lambda: True,
        history: LocalHistory | None = None,
        pauses: Pauses | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._history = history
        self._pauses = pauses
        if pauses is not None:
            pauses.on_change(self._nudge)
        self._store = store
        self._clock = clock
        self._cluster = cluster
        self._incarnation = incarnation
        self._is_leading = is_leading
        self._limits = limits
        self.shared_watch = SharedWatch(store, clock=clock, limits=limits)
        self._heads = HeadTracker(store, clock, limits=limits)
        self._terms = LeaseTerms(store, clock=clock)
        self._pulse = Pulse()
        self._targets: dict[ClusterName, _Target] = {}
        self._throttle = Throttle(limits.copy_bytes_per_s_max)
        self._is_running = False
        self._is_told = False

    async def run(self) -> None:
        """Read the head until cancelled; then every connection is ended."""
        self._is_running = True
        try:
            await together(self._heads.run(), self._announce(), self.shared_watch.run())
        finally:
            self._is_running = False
            for target in self._targets.values():
                if target.task is not None:
                    target.task.cancel()

    async def _announce(self) -> None:
        while True:
            await self._heads.pulse.wait()
            self._pulse.beat()

    def set_targets(self, targets: Iterable[ClusterName]) -> None:
        """Report on exactly these clusters, also before they connect; not on this one itself."""
        self._is_told = True
        wanted = {target for target in targets if target != self._cluster}
        for target in wanted - self._targets.keys():
            self._target(target)
        for name in [n for n, t in self._targets.items() if n not in wanted]:
            if self._targets[name].session is None:
                del self._targets[name]

    # --- serving -------------------------------------------------------------------------------

    async def serve(self, connection: SourceEnd, peer: ClusterName | None) -> None:
        """Serve one connection until it ends; `peer` is who the link has verified it to be."""
        try:
            hello = await self._hello(connection)
            refusal = self._refusal(hello, peer)
            if refusal is not None:
                await connection.send(refusal)
                return
            await self._serve_target(connection, hello)
        except MeshError as error:
            _log.info("target.lost", why=str(error), peer=peer)
        finally:
            await connection.close()

    async def _hello(self, connection: SourceEnd) -> Hello:
        receiving = asyncio.ensure_future(connection.receive())
        waiting = asyncio.ensure_future(self._clock.sleep_ms(self._limits.hello_ms_max))
        try:
            await asyncio.wait({receiving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                raise LinkLost("the target did not say hello")
            message = receiving.result()
        finally:
            receiving.cancel()
            waiting.cancel()
        if not isinstance(message, Hello):
            raise LinkLost("the target did not say hello first")
        return message

    def _leads(self) -> bool:
        return self._is_running and self._is_leading()

    def _refusal(self, hello: Hello, peer: ClusterName | None) -> Refusal | None:
        if not self._leads():
            text = f"this replicator of {self._cluster} does not lead"
            return Refusal(code=RefusalCode.NOT_LEADING, text=text)
        if peer is not None and peer != hello.target:
            text = f"certificate of {peer}, hello of {hello.target}"
            return Refusal(code=RefusalCode.WRONG_IDENTITY, text=text)
        if hello.source != self._cluster:
            text = f"this is {self._cluster}, not {hello.source}"
            return Refusal(code=RefusalCode.WRONG_SOURCE, text=text)
        return None

    async def _serve_target(self, connection: SourceEnd, hello: Hello) -> None:
        target = self._target(hello.target)
        if target.task is not None:
            # The target dialled anew: what is left of its older connection only stands in the way.
            target.task.cancel()
            await asyncio.wait({target.task})
        session = OutboundSession(
            connection=connection,
            hello=hello,
            store=self._store,
            clock=self._clock,
            cluster=self._cluster,
            incarnation=self._incarnation,
            heads=self._heads,
            lag=target.lag,
            pulse=self._pulse,
            watch=self.shared_watch.watch,
            terms=self._terms,
            is_leading=self._leads,
            history=self._history,
            is_held=lambda: self._is_held(hello.target),
            throttle=self._throttle,
            limits=self._limits,
        )
        task = asyncio.ensure_future(session.run())
        target.session, target.task, target.problem = session, task, ""
        try:
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                target.problem = str(error)
                raise error
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            if target.session is session:
                target.session = target.task = None
            self._pulse.beat()

    def _is_held(self, target: ClusterName) -> bool:
        """Return whether nothing is to be sent: it is paused, or nobody knows whether it is."""
        if self._pauses is None:
            return False
        return not self._pauses.ready.is_set() or self._pause(target) is not None

    def _pause(self, target: ClusterName) -> ReplicationPause | None:
        return self._pauses.of_stream(self._cluster, target) if self._pauses else None

    def _nudge(self) -> None:
        for target in self._targets.values():
            if target.session is not None:
                target.session.nudge()

    def _target(self, name: ClusterName) -> _Target:
        if name not in self._targets:
            self._targets[name] = _Target(lag=StreamLag(limits=self._limits))
        return self._targets[name]

    # --- how far they are ----------------------------------------------------------------------

    def lag(self, target: ClusterName, group: GroupName | None = None) -> Lag:
        """Return how far a target lags, evaluated now: in all, or in one group."""
        return self._lag_of(target).of(group)

    def _lag_of(self, target: ClusterName) -> TargetLag:
        known = self._targets.get(target)
        if known is None or not self._is_running:
            return TargetLag()
        return target_lag(
            known.lag,
            self._heads.times,
            now_ms=self._clock.now_ms(),
            is_paused=self._pause(target) is not None,
            asked=known.session.groups_asked if known.session else (),
            limits=self._limits,
        )

    def statuses(self) -> list[StreamStatus]:
        """Return one status per target, lag evaluated now."""
        return [self._status(name, target) for name, target in sorted(self._targets.items())]

    async def wait_caught_up(
        self, target: ClusterName, *, lag_ms_max: int, group: GroupName | None = None
    ) -> Lag:
        """Return once `target` is streaming and lags no more than this.

        With `group`, other groups that are out of step do not stand in the way.
        """
        while True:
            lag = self.lag(target, group)
            is_known = lag.lag_ms is not None and lag.error_bound_ms is not None
            is_close = is_known and (lag.lag_ms or 0) <= lag_ms_max
            if is_close and lag.state is StreamState.STREAMING:
                return lag
            await self._pulse.wait()

    def _status(self, name: ClusterName, target: _Target) -> StreamStatus:
        session, lag = target.session, self._lag_of(name)
        return StreamStatus(
            source=self._cluster,
            target=name,
            incarnation=self._incarnation,
            lag=lag.whole,
            head=Sequence(self._heads.head),
            applied=target.lag.acknowledged,
            records_per_second=self._rate(target),
            groups_out_of_step=tuple(sorted(lag.behind)),
            tells=lag.tells,
            in_step=lag.in_step,
            behind=told_of(lag.behind.values()),
            copies=session.copies.progress() if session else (),
            at_ms=self._clock.wall_ms(),
            problem=self._problem(name, target),
            headroom_ms=self._headroom_ms(name),
            is_spooled=self._is_spooled(name),
        )

    def _problem(self, name: ClusterName, target: _Target) -> str:
        pause = self._pause(name)
        if pause is not None:
            why = f": {pause.reason}" if pause.reason else ""
            return f"{pause.what} is paused by {pause.by}{why}"
        return (
            target.session.problem if target.session and target.session.problem else target.problem
        )

    # --- what they still need ------------------------------------------------------------------

    def needs(self) -> dict[ClusterName, Sequence | None] | None:
        """Return from where each target may have to be served; None where it is not known.

        None altogether before it was said who the targets are.
        """
        return {name: self._needed(name) for name in self._targets} if self._is_told else None

    def _needed(self, name: ClusterName) -> Sequence | None:
        target = self._targets[name]
        needed = target.session.needed if target.session else target.lag.stored
        if needed is None and self._history is not None:
            return self._history.stored_position(name, self._incarnation)
        return needed

    def _headroom_ms(self, name: ClusterName) -> int | None:
        needed = self._needed(name)
        if self._history is None or needed is None:
            return None
        return self._history.headroom_ms(needed)

    def _is_spooled(self, name: ClusterName) -> bool:
        spool = self._history.spool(self._incarnation) if self._history else None
        needed = self._needed(name)
        return spool is not None and needed is not None and spool.holds(needed)

    def _rate(self, target: _Target) -> float:
        now_ms = self._clock.now_ms()
        elapsed_ms = now_ms - target.rate_at_ms
        if elapsed_ms >= RATE_INTERVAL_MS:
            count = target.lag.acknowledged_records
            target.rate = (count - target.rate_from) * 1000 / elapsed_ms
            target.rate_at_ms, target.rate_from = now_ms, count
        return target.rate
