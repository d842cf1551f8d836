"""Claims about readings that many share: fresh, few, and nobody's end is another's."""

import asyncio

import attrs
import pytest

from meshkit.clock import ManualClock, settle
from meshkit.errors import Unreachable
from meshkit.shared_reads import REST, REST_MS_MAX, SharedReads


@attrs.define
class Source:
    value: int = 0
    reads: int = 0
    gate: asyncio.Event = attrs.field(factory=asyncio.Event)
    is_down: bool = False

    async def read(self) -> int:
        self.reads += 1
        seen = self.value
        await self.gate.wait()
        if self.is_down:
            raise Unreachable("down")
        return seen


async def test_who_asks_during_a_reading_gets_the_next_one() -> None:
    source = Source()
    shared = SharedReads(source.read)
    first = asyncio.create_task(shared.read())
    await settle()
    source.value = 1

    others = [asyncio.create_task(shared.read()) for _ in range(100)]
    await settle()
    source.gate.set()

    assert await first == 0
    assert set(await asyncio.gather(*others)) == {1}
    assert source.reads == 2


async def test_the_end_of_the_one_who_reads_does_not_end_the_others() -> None:
    source = Source()
    shared = SharedReads(source.read)
    first = asyncio.create_task(shared.read())
    await settle()
    second = asyncio.create_task(shared.read())
    others = [asyncio.create_task(shared.read()) for _ in range(3)]
    await settle()

    first.cancel()
    await settle()
    second.cancel()
    await settle()
    source.gate.set()

    assert await asyncio.gather(*others) == [0, 0, 0]


async def test_all_who_share_a_reading_learn_that_it_failed() -> None:
    source = Source(is_down=True)
    shared = SharedReads(source.read)
    tasks = [asyncio.create_task(shared.read()) for _ in range(3)]
    await settle()
    source.gate.set()

    for task in tasks:
        with pytest.raises(Unreachable):
            await task


async def test_with_a_clock_a_long_reading_is_followed_by_a_rest_that_more_can_share() -> None:
    clock, source = ManualClock(), Source()
    shared = SharedReads(source.read, clock=clock)
    first = asyncio.create_task(shared.read())
    await settle()
    await clock.advance_ms(50)
    source.gate.set()
    assert await first == 0

    source.value = 1
    early = asyncio.create_task(shared.read())
    await settle()
    await clock.advance_ms(REST * 50 - 1)
    await settle()
    source.value = 2
    late = asyncio.create_task(shared.read())
    await settle()
    assert source.reads == 1
    await clock.advance_ms(1)

    assert await early == await late == 2
    assert source.reads == 2


async def test_a_reading_alone_waits_for_nothing_and_no_rest_is_longer_than_its_limit() -> None:
    clock, source = ManualClock(), Source()
    shared = SharedReads(source.read, clock=clock)
    first = asyncio.create_task(shared.read())
    await settle()
    assert source.reads == 1
    await clock.advance_ms(5_000)
    source.gate.set()
    await first

    second = asyncio.create_task(shared.read())
    await settle()
    await clock.advance_ms(REST_MS_MAX)
    assert await second == 0
