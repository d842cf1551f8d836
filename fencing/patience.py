"""Waiting no longer than one means to, on a `Clock`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from meshkit.clock import Clock
from meshkit.errors import OutcomeUnknown

T = TypeVar("T")


async def within(clock: Clock, timeout_ms: int, work: Coroutine[None, None, T]) -> T:
    """Return what `work` returns, or stop it after `timeout_ms` of the clock's time.

    Raises:
        OutcomeUnknown: it had not ended by then; what it asked for may still happen.
    """
    task = asyncio.ensure_future(work)
    timer = asyncio.ensure_future(clock.sleep_ms(timeout_ms))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise OutcomeUnknown(f"no answer within {timeout_ms} ms")
    finally:
        timer.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif not task.cancelled():
            # Taken note of, also where we are stopped in the moment in which it failed.
            task.exception()


class Signal:
    """Wakes everyone who waits when something has changed. It remembers nothing."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}
        """In the order in which they came, so that a simulation is the same each time."""

    def notify(self) -> None:
        """Wake all who wait now."""
        woken, self._waiting = self._waiting, {}
        for waiting in woken:
            _wake(waiting)

    async def wait(self) -> None:
        """Return at the next `notify`."""
        waiting = self._next()
        try:
            await waiting
        finally:
            self._waiting.pop(waiting, None)

    async def wait_until(self, clock: Clock, deadline_ms: int) -> None:
        """Return at the next `notify`, or when the clock reaches the deadline."""
        waiting = self._next()
        timer = asyncio.ensure_future(clock.sleep_ms(max(0, deadline_ms - clock.now_ms())))
        timer.add_done_callback(lambda _: _wake(waiting))
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.pop(waiting, None)

    def _next(self) -> asyncio.Future[None]:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = None
        return waiting


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def give_way() -> None:
    """Go on being cancelled, if that was lost.

    A task group whose task fails in the very moment in which the group is cancelled raises the
    failure, and whoever handles that would go on for ever.

    Raises:
        asyncio.CancelledError: the present task is being cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
