"""An event loop in virtual time, with processes that can be stopped, woken and killed in it.

Nothing waits: when nobody can run, time jumps to the next timer. Callbacks run in the order in
which they were made ready, tasks hash by number, and no thread or socket exists, so a program whose
randomness is seeded runs the same way each time.

A `Domain` is a process. Whatever is scheduled from within it carries it along (a context variable);
while it is stopped, nothing of it runs and time goes on, as under SIGSTOP, and once it is killed
nothing of it ever runs again: no handler, no `finally`, as under SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import heapq
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

STEPS_WITHOUT_TIME_MAX = 200_000
"""Callbacks at one instant; more is a busy loop."""


class State(enum.Enum):
    """What the scheduler does with a process."""

    RUNNING = "running"
    STOPPED = "stopped"
    DEAD = "dead"


class Domain:
    """Everything that one process has scheduled."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.RUNNING
        self.parked: list[Job] = []
        self.context = copy_context()
        self.context.run(_DOMAIN.set, self)

    def __repr__(self) -> str:
        return f"<Domain {self.name} {self.state.value}>"


_DOMAIN: ContextVar[Domain | None] = ContextVar("domain", default=None)


def current_domain() -> Domain | None:
    """Return the process whose code is running; None for the world around them."""
    return _DOMAIN.get()


class Stuck(Exception):
    """The simulation itself cannot go on: a busy loop, or nothing that could ever happen."""


class Job(asyncio.TimerHandle):
    """A callback that is due, now or at a time."""

    __slots__ = ("arguments", "call", "context", "is_cancelled", "when_ns")

    def __init__(
        self,
        call: Callable[..., object],
        arguments: tuple[Any, ...],
        context: Context,
        when_ns: int,
    ) -> None:
        self.call = call
        self.arguments = arguments
        self.context = context
        self.when_ns = when_ns
        self.is_cancelled = False

    def __repr__(self) -> str:
        return f"<Job {self.call!r} at {self.when_ns}>"

    def cancel(self) -> None:
        """Do not call."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Return whether it will not be called."""
        return self.is_cancelled

    def when(self) -> float:
        """Return when it is due, in seconds of the loop's time."""
        return self.when_ns / NS_PER_S


class SimTask(asyncio.Task[T]):
    """A task that hashes by its number, so that sets of tasks have the same order each time."""

    def __init__(
        self,
        number: int,
        work: Generator[Any, None, T] | Coroutine[Any, Any, T],
        **more: Any,
    ) -> None:
        self._number = number
        super().__init__(work, **more)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.AbstractEventLoop):
    """The event loop. Time begins at one second, counted in nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = NS_PER_S
        self.steps = 0
        """Callbacks run so far: a part of what must repeat."""
        self.failures: list[dict[str, Any]] = []
        """What nobody caught."""
        self.outside = copy_context()
        """The context of the world around the processes: networks, servers, the harness."""
        self._ready: deque[Job] = deque()
        self._timers: list[tuple[int, int, Job]] = []
        self._count = 0
        self._is_closed = False
        self._is_running = False

    # --- running -------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Run until the future is done; time goes as far as it has to.

        Raises:
            Stuck: a busy loop, or nothing is ever going to happen.
        """
        assert asyncio.iscoroutine(future), "the simulation is a coroutine"
        task: asyncio.Task[T] = self.create_task(future)
        with self._as_running():
            while not task.done():
                if not self._ready:
                    self._go_to_next_timer()
                self._run_ready(task)
        return task.result()

    def _run_ready(self, until: asyncio.Future[Any]) -> None:
        """Run what is ready. The innermost loop of everything: it is written to be quick."""
        ready, steps = self._ready, 0
        running, next_job = State.RUNNING, self._ready.popleft
        while ready:
            job = next_job()
            if job.is_cancelled:
                continue
            context = job.context
            domain = context.get(_DOMAIN)
            if domain is not None and domain.state is not running:
                domain.parked.append(job)
                continue
            steps += 1
            try:
                context.run(job.call, *job.arguments)
            except Exception as error:  # noqa: BLE001 -- as every event loop does
                self.call_exception_handler({"message": f"in {job!r}", "exception": error})
            if steps > STEPS_WITHOUT_TIME_MAX:
                raise Stuck(f"a busy loop: {job!r} in {domain!r}")
            if until.done():
                break
        self.steps += steps

    def _go_to_next_timer(self) -> None:
        timers, pop = self._timers, heapq.heappop
        while timers:
            when_ns, _, job = pop(timers)
            if not job.is_cancelled:
                break
        else:
            raise Stuck("nothing will ever happen again")
        self.now_ns = max(self.now_ns, when_ns)
        self._ready.append(job)
        while timers and timers[0][0] <= self.now_ns:
            self._ready.append(pop(timers)[2])

    @contextlib.contextmanager
    def _as_running(self) -> Iterator[None]:
        assert not self._is_running, "a loop runs once at a time"
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._finish_generator)
        asyncio._set_running_loop(self)  # noqa: SLF001 -- documented as for loops' authors
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
            asyncio._set_running_loop(None)  # noqa: SLF001
            sys.set_asyncgen_hooks(*hooks)

    def _finish_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._is_closed:
            self.create_task(generator.aclose())

    # --- processes -----------------------------------------------------------------------------

    def stop_domain(self, domain: Domain) -> None:
        """Run nothing of a process until it is woken."""
        if domain.state is State.RUNNING:
            domain.state = State.STOPPED

    def wake_domain(self, domain: Domain) -> None:
        """Let a stopped process go on; all that came due meanwhile is due now."""
        if domain.state is State.STOPPED:
            self.revive_domain(domain)

    def kill_domain(self, domain: Domain) -> None:
        """Never run anything of a process again."""
        domain.state = State.DEAD

    def revive_domain(self, domain: Domain) -> None:
        """Let even a killed process run: only for taking a finished simulation apart."""
        domain.state = State.RUNNING
        self._ready.extend(domain.parked)
        domain.parked = []

    # --- what asyncio asks of a loop -----------------------------------------------------------

    def time(self) -> float:
        """Return virtual seconds."""
        return self.now_ns / NS_PER_S

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> Job:
        """Call as soon as everything that is ready has run."""
        job = Job(callback, args, copy_context() if context is None else context, self.now_ns)
        self._ready.append(job)
        return job

    def call_at_ns(
        self,
        when_ns: int,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Job:
        """Call at a time in nanoseconds."""
        job = Job(callback, args, copy_context() if context is None else context, when_ns)
        self._count += 1
        heapq.heappush(self._timers, (when_ns, self._count, job))
        return job

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> Job:
        """Call after `delay` seconds."""
        when_ns = self.now_ns + max(0, round(delay * NS_PER_S))
        return self.call_at_ns(when_ns, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> Job:
        """Call at `when` in seconds."""
        return self.call_at_ns(round(when * NS_PER_S), callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Run a coroutine as a task."""
        self._count += 1
        return SimTask(self._count, coro, loop=self, name=name or "task", context=context)

    def is_running(self) -> bool:
        """Return whether it runs."""
        return self._is_running

    def is_closed(self) -> bool:
        """Return whether it was closed."""
        return self._is_closed

    def close(self) -> None:
        """Forget everything that is due."""
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()

    def get_debug(self) -> bool:
        """Return that asyncio's debug mode is off."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody caught; the harness judges it."""
        self.failures.append(context)
