"""Clocks: the manual one moves only when told to, and wakes sleepers in their order."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.clock import ManualClock, SystemClock, settle


async def sleep_and_note(
    clock: ManualClock, duration_ms: int, woken: list[tuple[int, int]]
) -> None:
    await clock.sleep_ms(duration_ms)
    woken.append((duration_ms, clock.now_ms()))


def test_time_stands_still_until_it_is_told_to_move() -> None:
    clock = ManualClock(5)

    assert (clock.now_ms(), clock.wall_ms()) == (5, 5)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 60))
def test_sleepers_wake_in_the_order_of_their_deadlines_at_exactly_them(
    durations_ms: list[int], advance_ms: int
) -> None:
    async def scenario() -> list[tuple[int, int]]:
        clock = ManualClock(0)
        woken: list[tuple[int, int]] = []
        sleepers = [asyncio.ensure_future(sleep_and_note(clock, d, woken)) for d in durations_ms]
        await settle()
        await clock.advance_ms(advance_ms)
        assert clock.now_ms() == advance_ms
        for sleeper in sleepers:
            sleeper.cancel()
        return woken

    assert asyncio.run(scenario()) == sorted((d, d) for d in durations_ms if d <= advance_ms)


async def test_a_sleeper_that_sleeps_again_is_woken_within_one_advance() -> None:
    clock = ManualClock(0)
    ticks: list[int] = []

    async def tick() -> None:
        while True:
            await clock.sleep_ms(10)
            ticks.append(clock.now_ms())

    ticking = asyncio.ensure_future(tick())
    await clock.advance_ms(35)
    ticking.cancel()

    assert ticks == [10, 20, 30]


async def test_a_cancelled_sleeper_does_not_stop_the_clock() -> None:
    clock = ManualClock(0)
    woken: list[tuple[int, int]] = []
    cancelled = asyncio.ensure_future(clock.sleep_ms(10))
    sleeper = asyncio.ensure_future(sleep_and_note(clock, 20, woken))
    await settle()
    cancelled.cancel()

    await clock.advance_ms(30)

    assert woken == [(20, 20)]
    assert sleeper.done()


@pytest.mark.parametrize("duration_ms", [0, -5])
async def test_sleeping_for_nothing_only_lets_others_run(duration_ms: int) -> None:
    await ManualClock().sleep_ms(duration_ms)
    await SystemClock().sleep_ms(duration_ms)


def test_the_system_clock_never_goes_back() -> None:
    clock = SystemClock()
    readings = [clock.now_ms() for _ in range(100)]

    assert readings == sorted(readings)
    assert clock.wall_ms() > 1_700_000_000_000
