"""Claims about the loop in virtual time: it jumps, it repeats, and its processes stop and die."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from chaos.sim.clock import SimClock
from chaos.sim.loop import NS_PER_MS, Domain, Stuck, VirtualLoop


def new_loop() -> VirtualLoop:
    return VirtualLoop()  # type: ignore[abstract]


def run(loop: VirtualLoop, work: Coroutine[Any, Any, None]) -> None:
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


async def pass_time(loop: VirtualLoop, duration_ms: int) -> None:
    await SimClock(loop=loop).sleep_ms(duration_ms)


def test_an_hour_of_sleep_takes_no_time_and_timeouts_work() -> None:
    loop = new_loop()

    async def sleep() -> None:
        await pass_time(loop, 3_600_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.Event().wait()

    run(loop, sleep())

    assert loop.now_ns // NS_PER_MS == 1_000 + 3_600_500


def test_a_stopped_process_runs_nothing_and_wakes_with_everything_that_came_due() -> None:
    loop = new_loop()
    seen: list[tuple[str, float]] = []

    async def tick() -> None:
        for number in range(3):
            await pass_time(loop, 100)
            seen.append((str(number), loop.time()))

    async def main() -> None:
        domain = Domain("ticker")
        task = loop.create_task(tick(), context=domain.context)
        await pass_time(loop, 150)
        loop.stop_domain(domain)
        await pass_time(loop, 10000)
        assert len(seen) == 1
        loop.wake_domain(domain)
        await task

    run(loop, main())

    assert [round(at, 3) for _, at in seen] == [1.1, 11.15, 11.25]


def test_a_killed_process_runs_nothing_more_not_even_its_finally() -> None:
    loop = new_loop()
    seen: list[str] = []

    async def work() -> None:
        try:
            await pass_time(loop, 1000)
        finally:
            seen.append("finally")

    async def main() -> None:
        domain = Domain("worker")
        task = loop.create_task(work(), context=domain.context)
        await pass_time(loop, 500)
        loop.kill_domain(domain)
        await pass_time(loop, 10000)
        assert seen == []
        assert not task.done()
        loop.revive_domain(domain)
        await task

    run(loop, main())


def test_what_is_called_in_the_context_outside_does_not_belong_to_the_process_that_called() -> None:
    """An empty context is false: taking the caller's instead would tie messages to their sender."""
    loop = new_loop()
    seen: list[str] = []

    async def send() -> None:
        loop.call_at_ns(loop.now_ns + 1, seen.append, "arrived", context=loop.outside)

    async def main() -> None:
        domain = Domain("sender")
        await loop.create_task(send(), context=domain.context)
        loop.kill_domain(domain)
        await pass_time(loop, 1000)

    run(loop, main())

    assert seen == ["arrived"]


def test_a_busy_loop_and_a_wait_for_nothing_are_found() -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="busy loop"):
        new_loop().run_until_complete(spin())
    with pytest.raises(Stuck, match="nothing will ever happen"):
        new_loop().run_until_complete(wait())


def test_sets_of_tasks_have_the_same_order_each_time() -> None:
    orders = []
    for _ in range(5):
        loop = new_loop()

        async def main() -> None:
            tasks = {asyncio.ensure_future(asyncio.sleep(0, number)) for number in range(20)}
            orders.append([await task for task in tasks])

        run(loop, main())

    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize("rate_ppm", [-4_500, 0, 4_500])
def test_a_clock_that_runs_wrong_never_wakes_a_sleeper_early_by_its_own_reading(
    rate_ppm: int,
) -> None:
    loop = new_loop()
    clock = SimClock(loop=loop, rate_ppm=rate_ppm, began_ms=77_777)

    async def main() -> None:
        for duration_ms in (1, 7, 250, 3_600_000):
            before_ms = clock.now_ms()
            await clock.sleep_ms(duration_ms)
            assert duration_ms <= clock.now_ms() - before_ms <= duration_ms + 1

    run(loop, main())
