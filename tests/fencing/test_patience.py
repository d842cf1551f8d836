"""Waiting for no longer than one should, and being cancelled while a group fails."""

from __future__ import annotations

import asyncio

import pytest

from fencing.patience import Signal, give_way
from meshkit.clock import ManualClock, settle


async def test_a_cancellation_is_not_lost_to_a_failure_of_the_same_moment() -> None:
    """A leader whose term ends just as its process is told to stop does not lead again."""
    began, handled = asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("the term ended")

    async def lead() -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(fails())
            except* ValueError:
                handled.set()
            give_way()

    leading = asyncio.create_task(lead())
    await began.wait()
    leading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await leading
    assert handled.is_set()


async def test_nobody_gives_way_who_is_not_cancelled() -> None:
    give_way()


async def test_whoever_stops_waiting_for_a_signal_is_forgotten() -> None:
    """A driver that waits a thousand times between two signals must not grow."""
    clock, signal = ManualClock(), Signal()
    for _ in range(3):
        waiting = asyncio.ensure_future(signal.wait_until(clock, clock.now_ms() + 10))
        await clock.advance_ms(10)
        await waiting
        waiting = asyncio.ensure_future(signal.wait())
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    assert not signal._waiting


async def test_a_signal_wakes_all_that_wait_and_none_that_come_later() -> None:
    """It remembers nothing."""
    clock, signal = ManualClock(), Signal()
    first = asyncio.ensure_future(signal.wait_until(clock, clock.now_ms() + 10_000))
    second = asyncio.ensure_future(signal.wait())
    await settle()

    signal.notify()
    late = asyncio.ensure_future(signal.wait())
    await asyncio.gather(first, second)
    await settle()

    assert not late.done()
    late.cancel()
