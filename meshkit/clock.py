"""Time as a port. Pure code takes `now_ms`; shells read it from a `Clock`."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in milliseconds, and the one way to wait."""

    def now_ms(self) -> int:
        """Return monotonic milliseconds; comparable only within this process."""

    def wall_ms(self) -> int:
        """Return UTC milliseconds since 1970, for people to read; never for decisions."""

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return after `duration_ms` of this clock's time."""


class SystemClock:
    """The machine's clock. Counts time in suspend (CLOCK_BOOTTIME) where the system has it."""

    def __init__(self) -> None:
        self._clock_id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now_ms(self) -> int:
        """Return monotonic milliseconds, suspend included."""
        return time.clock_gettime_ns(self._clock_id) // 1_000_000

    def wall_ms(self) -> int:
        """Return UTC milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(max(0, duration_ms) / 1000)


class ManualClock:
    """A clock that moves only when told to, for tests and simulation.

    Sleepers wake in order of their deadlines as `advance_ms` passes them.
    """

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self._now_ms = now_ms
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    def now_ms(self) -> int:
        """Return the time last advanced to."""
        return self._now_ms

    def wall_ms(self) -> int:
        """Return the same time; wall and monotonic do not differ here."""
        return self._now_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        """Wait until the clock has been advanced past the deadline."""
        if duration_ms <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        self._sleepers.append((self._now_ms + duration_ms, self._count, future))
        await future

    async def advance_ms(self, duration_ms: int) -> None:
        """Move time forward, waking each sleeper at its own deadline and letting tasks run."""
        target = self._now_ms + duration_ms
        await settle()
        while True:
            due = sorted(s for s in self._sleepers if s[0] <= target and not s[2].done())
            if not due:
                break
            self._now_ms = max(self._now_ms, due[0][0])
            self._sleepers.remove(due[0])
            due[0][2].set_result(None)
            await settle()
        self._sleepers = [s for s in self._sleepers if not s[2].done()]
        self._now_ms = max(self._now_ms, target)
        await settle()

    def jump_ms(self, duration_ms: int) -> None:
        """Move time forward at once, as for a process that was stopped: nothing runs meanwhile."""
        self._now_ms += duration_ms


async def settle(rounds: int = 20) -> None:
    """Let every task that can run do so: yields to the loop a fixed number of times."""
    for _ in range(rounds):
        await asyncio.sleep(0)
