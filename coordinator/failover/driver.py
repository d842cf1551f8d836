"""Drives one failover: take in what happened, decide what to remember, store it, wait.

Cancel it, or kill the process, at any await: whoever leads next drives on from the record. It
reacts to answers and to changes of the record at once, and polls nothing.

Time limits run on this process's monotonic clock. A successor begins a step's time anew (slower,
never wrong); but the pause budget it begins with what the wall clock says is left of it, so that
a chain of dying coordinators cannot pause writes for ever. A wrong wall clock can only end the
pause early, which undoes the drain; and of a failover that has only just begun, by no more than
half of its budget, since whoever began it may have another clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs
import structlog

from coordinator import comparison
from coordinator.failover import machine, passing
from coordinator.failover.described import described
from coordinator.failover.precedence import Precedence, may_wait
from coordinator.failover.record import FENCE, Failover, Phase
from coordinator.failover.repository import (
    AuthorityMovedElsewhere,
    FailoverRepository,
    Loaded,
    loaded_of,
)
from fencing.patience import Signal
from meshkit import failpoints
from meshkit.clock import Clock
from meshkit.commands import Answer
from meshkit.errors import MeshError, RevisionConflict, TermEnded
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import ABSENT, Revision, Token
from meshkit.store.txn import KeyValue

_log = structlog.get_logger()

RETRY_MS = 250
"""How long the driver waits before it goes on after its etcd refused or did not answer."""

HOLDER_LOOK_MS = 1_000
"""A source's proof of life is looked for at least this often, besides after each change."""

_LIVES = (
    "the source neither answered nor let its proof of life run out: it renews its leases but does"
    " not obey. To go on without knowing that it has stopped: --no-fence-wait"
)

AnswerOf = Callable[[ClusterName, GroupName], Answer | None]
CheckAgain = Callable[[Failover], Awaitable[str]]
"""Returns why the failover must not go on, or nothing."""


class Rescuer(Protocol):
    """Finds out what an emergency has to know. Implemented by `coordinator.rescue.Rescue`."""

    async def check(self, record: Failover) -> str:
        """Return why the emergency must not go on, or nothing."""

    async def fence_ended(self, record: Failover) -> machine.FenceEnded | machine.TimedOut | None:
        """Return how surely the source is fenced without its answer; None if it is not yet.

        `TimedOut` if it never will be.
        """

    async def state(self, record: Failover) -> machine.LossStated:
        """State what may be lost."""


Compare = Callable[[Failover], Awaitable[machine.StepDone | machine.StepFailed]]
"""Has the target's copy compared, and returns what came of the step."""


@attrs.define(kw_only=True, eq=False)
class Driver:
    """Carries one failover to its end."""

    group: GroupName
    failover: FailoverId
    failovers: FailoverRepository
    clock: Clock
    answer_of: AnswerOf
    check_again: CheckAgain
    compare: Compare
    rescue: Rescuer
    precedence: Precedence = attrs.field()
    """Shared by the failovers that one coordinator drives."""
    is_new: bool = False
    """Whether it was begun while this coordinator led."""
    _changed: Signal = attrs.field(factory=Signal, init=False)
    _revision_seen: Revision = attrs.field(default=ABSENT, init=False)
    _revision_loaded: Revision = attrs.field(default=ABSENT, init=False)
    """What is driven on from: to hear of that one again is no news."""
    _seen: KeyValue | None = attrs.field(default=None, init=False)
    _must_reload: bool = attrs.field(default=False, init=False)
    _deadlines: dict[str, int] = attrs.field(factory=dict, init=False)

    @precedence.default
    def _alone(self) -> Precedence:
        return Precedence(clock=self.clock)

    def on_record(self, item: KeyValue) -> None:
        """Note what was stored as the record, perhaps by somebody else."""
        self._revision_seen = max(self._revision_seen, item.mod_revision)
        if item.mod_revision > self._revision_loaded:
            self._seen = item
            self._changed.notify()

    def on_gap(self) -> None:
        """Note that changes may have been missed: the record has to be read again."""
        self._must_reload = True
        self._changed.notify()

    def on_answer(self) -> None:
        """Note that there is a new answer for the group."""
        self._changed.notify()

    async def run(self) -> Phase | None:
        """Drive until it has ended, and return how; None if the record is not there.

        Raises:
            TermEnded: another coordinator leads and drives on.
        """
        try:
            return await self._run()
        finally:
            self.precedence.leave(self.failover)

    async def _run(self) -> Phase | None:
        log = _log.bind(failover_id=self.failover, group=self.group)
        loaded: Loaded | None = None
        while True:
            try:
                if loaded is None or self._is_stale(loaded):
                    loaded = await self._load()
                if loaded is None or loaded.record.phase.is_final:
                    return loaded.record.phase if loaded else None
                self._revision_loaded = loaded.revision
                self.precedence.note(loaded.record)
                event = await self._next_event(loaded)
                if event is not None:
                    loaded = await self._remember(loaded, event)
            except TermEnded:
                raise
            except RevisionConflict:
                loaded = None
            except MeshError as error:
                log.warning("failover.delayed", why=str(error))
                loaded = None
                await self.clock.sleep_ms(RETRY_MS)

    async def _load(self) -> Loaded | None:
        """Return the record as it was last heard of, if that is news, else as it is.

        Whatever is made of one that is not the newest any more is refused when it is stored.
        """
        seen, self._seen = self._seen, None
        if seen is not None and seen.mod_revision > self._revision_loaded and not self._must_reload:
            return loaded_of(seen)
        self._must_reload = False
        return await self.failovers.load(self.group, self.failover)

    # --- what happens --------------------------------------------------------------------------

    async def _next_event(self, loaded: Loaded) -> machine.Event | None:
        """Return what happened, or None when the record should be read again."""
        record = loaded.record
        match machine.decide(record):
            case machine.Perform(step=step):
                return await self._perform(loaded, step)
            case machine.MoveAuthority():
                return machine.AuthorityMoved(token=_token(loaded))
            case machine.AwaitAnswer() if machine.step_in_hand(record).name == FENCE:
                return await self._wait_fenced(loaded)
            case _:
                return await self._wait(loaded)

    async def _wait_fenced(self, loaded: Loaded) -> machine.Event | None:
        """Wait for the source's answer or the end of its proof of life, whichever comes first."""
        record, timer = loaded.record, machine.timer(loaded.record)
        assert timer is not None, "the fence is awaited"
        assert record.awaiting is not None, "the fence is awaited"
        while not self._is_stale(loaded):
            answer = self._news(record)
            if answer is not None:
                return machine.Answered(answer=answer)
            ended = await self.rescue.fence_ended(record)
            if ended is not None:
                return ended
            deadline_ms = self._deadline_ms(timer)
            if self.clock.now_ms() >= deadline_ms:
                return machine.TimedOut(revision=record.awaiting.revision, detail=_LIVES)
            look_ms = min(deadline_ms, self.clock.now_ms() + HOLDER_LOOK_MS)
            await self._changed.wait_until(self.clock, look_ms)
        return None

    async def _perform(self, loaded: Loaded, step: str) -> machine.Event | None:
        record = loaded.record
        done = passing.passed(record, step)
        if done is not None:
            return done
        if step == comparison.CHECK:
            return await self._unless_stale(loaded, self.compare(record))
        if step == "state_loss":
            return await self.rescue.state(record)
        assert step in {"check", "assess"}, f"nobody knows how to carry out {step}"
        check = self.check_again if step == "check" else self.rescue.check
        problem = await check(record)
        if problem:
            return machine.StepFailed(step=step, detail=problem)
        return machine.StepDone(step=step)

    async def _unless_stale(
        self, loaded: Loaded, work: Awaitable[machine.Event]
    ) -> machine.Event | None:
        """Return what comes of `work`, or stop it and return None when the record moves."""
        working = asyncio.ensure_future(work)
        try:
            while not working.done() and not self._is_stale(loaded):
                moved = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait({working, moved}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    moved.cancel()
            return working.result() if working.done() else None
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _wait(self, loaded: Loaded) -> machine.Event | None:
        """Wait for the answer that is awaited, for its time to run out, or for a new record."""
        record, awaiting = loaded.record, loaded.record.awaiting
        limit = machine.timer(record)
        while not self._is_stale(loaded):
            answer = self._news(record)
            timer = machine.retry_timer(record, answer) if answer else limit
            if timer is None:
                if answer is not None:
                    return machine.Answered(answer=answer)
                await self._changed.wait()
            elif self.clock.now_ms() < self._deadline_ms(timer):
                await self._changed.wait_until(self.clock, self._deadline_ms(timer))
            elif answer is not None:
                return machine.Answered(answer=answer)
            else:
                assert awaiting is not None, "only what is awaited has a timer"
                return machine.TimedOut(
                    revision=awaiting.revision, detail=_silence(awaiting.cluster, timer)
                )
        return None

    def _is_stale(self, loaded: Loaded) -> bool:
        return self._must_reload or self._revision_seen > loaded.revision

    def _news(self, record: Failover) -> Answer | None:
        """Return the answer to what is awaited, unless it would change nothing."""
        if record.awaiting is None:
            return None
        answer = self.answer_of(record.awaiting.cluster, self.group)
        return answer if answer is not None and machine.is_news(record, answer) else None

    def _deadline_ms(self, timer: machine.Timer) -> int:
        if timer.key not in self._deadlines:
            spent_ms = 0
            if timer.since_ms is not None:
                # Of one that has only just begun the rest is a difference of clocks.
                most_ms = timer.limit_ms // 2 if self.is_new else timer.limit_ms
                spent_ms = min(max(0, self.clock.wall_ms() - timer.since_ms), most_ms)
            self._deadlines[timer.key] = self.clock.now_ms() + timer.limit_ms - spent_ms
        return self._deadlines[timer.key]

    # --- what to remember ----------------------------------------------------------------------

    async def _remember(self, before: Loaded, event: machine.Event) -> Loaded:
        """Store what follows from `event`, with every step that needs nothing but storing."""
        now_ms = self.clock.wall_ms()
        first = machine.advance(before.record, event, now_ms=now_ms)
        if first is before.record:
            return before
        if may_wait(first) and not may_wait(before.record):
            await self.precedence.let_pass(self.failover)
        after, passed = self._go_on(before, first, now_ms=now_ms)
        what = ", ".join([described(before.record, event), *passed])
        step = machine.step_in_hand(before.record).name
        failpoints.reach(f"coordinator.before-save.{step}")
        try:
            stored = await self.failovers.save(before, after, what=what)
        except AuthorityMovedElsewhere as error:
            failed = machine.StepFailed(step="pivot", detail=str(error))
            at_pivot = before.record if isinstance(event, machine.AuthorityMoved) else first
            undoing = machine.advance(at_pivot, failed, now_ms=now_ms)
            stored = await self.failovers.save(before, undoing, what=f"pivot failed: {error}")
        failpoints.reach(f"coordinator.after-save.{step}")
        self._report(stored.record, what)
        return stored

    def _go_on(self, before: Loaded, after: Failover, *, now_ms: int) -> tuple[Failover, list[str]]:
        """Pass the steps that are done by storing them: they ride in the same transaction.

        The pivot's token is the revision that this transaction compares, as it has to be.
        """
        passed: list[str] = []
        while True:
            event: machine.Event
            match machine.decide(after):
                case machine.MoveAuthority():
                    event = machine.AuthorityMoved(token=_token(before))
                case machine.Perform(step=step) if (
                    done := passing.passed(after, step)
                ) is not None:
                    event = done
                case _:
                    return after, passed
            passed.append(described(after, event))
            after = machine.advance(after, event, now_ms=now_ms)

    def _report(self, record: Failover, what: str) -> None:
        log = _log.bind(failover_id=self.failover, group=self.group, phase=record.phase.value)
        log.info("failover.went_on", what=what, cut=record.cut)
        if record.problem is not None:
            log.warning("failover.has_problem", happened=record.problem.happened)


def _token(loaded: Loaded) -> Token:
    return Token(incarnation=loaded.record.incarnation, revision=loaded.revision)


def _silence(cluster: ClusterName, timer: machine.Timer) -> str:
    if timer.key == "pause":
        return f"the pause budget of {timer.limit_ms} ms ran out before {cluster} answered"
    return f"{cluster} did not answer within {timer.limit_ms} ms"
