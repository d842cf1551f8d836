"""What a coordinator may say of when a source stopped, by what it saw itself."""

from __future__ import annotations

import pytest

from coordinator.lookout import LOOK_MS, SEEN_LATE_MS, Lookout, permit_ended_ms
from meshkit.clock import ManualClock, settle
from meshkit.codec import Stored, encode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Holder
from meshkit.ordinals import Epoch, Incarnation, Sequence
from meshkit.status import LogHead
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Delete, Put, Txn
from tests.coordinator.fake_region import ORDERS, A, background


async def put(store: MemoryStore, key: bytes, record: Stored) -> None:
    await store.commit(Txn(operations=(Put(key, encode(record)),)))
    await settle()


async def put_head(store: MemoryStore, clock: ManualClock, sequence: int) -> None:
    head = LogHead(
        cluster=A,
        incarnation=Incarnation("a-1"),
        sequence=Sequence(sequence),
        at_ms=clock.wall_ms(),
    )
    await put(store, Keys.head(A), head)


def ended_ms(lookout: Lookout, clock: ManualClock) -> int:
    now_ms = clock.now_ms()
    sight = lookout.sight(A, ORDERS)
    return permit_ended_ms(sight, ended_ms=now_ms, now_ms=now_ms, wall_ms=clock.wall_ms())


@pytest.mark.parametrize("late_ms", [1, LOOK_MS - 1])
async def test_a_source_had_stopped_when_its_proof_of_life_was_first_missed(late_ms: int) -> None:
    """Told within one reading: its last head was not there yet at the reading before."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    lookout = Lookout(store=store.connect(), clock=clock)
    holder = Holder(group=ORDERS, epoch=Epoch(1), cluster=A)
    async with background(lookout.run(), lookout.holders.run()):
        await put(store, Keys.holder(ORDERS), holder)
        await put_head(store, clock, 1)
        await clock.advance_ms(200)
        await clock.advance_ms(late_ms)
        await put_head(store, clock, 2)
        last_ms = clock.wall_ms()
        await clock.advance_ms(9_000)
        await store.commit(Txn(operations=(Delete(Keys.holder(ORDERS)),)))
        await clock.advance_ms(60_000)

        assert ended_ms(lookout, clock) == last_ms + 9_000 + SEEN_LATE_MS + late_ms


async def test_a_source_that_lived_again_unseen_is_not_said_to_have_stopped_before() -> None:
    """Its proof of life came and went while the watch was broken; its last head tells."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    cut_off = store.connect()
    lookout = Lookout(store=cut_off, clock=clock)
    holder = Holder(group=ORDERS, epoch=Epoch(1), cluster=A)
    async with background(lookout.run(), lookout.holders.run()):
        await put(store, Keys.holder(ORDERS), holder)
        await put_head(store, clock, 1)
        await store.commit(Txn(operations=(Delete(Keys.holder(ORDERS)),)))
        await clock.advance_ms(1_000)
        cut_off.partition()
        await clock.advance_ms(30_000)
        await put(store, Keys.holder(ORDERS), holder)
        await put_head(store, clock, 2)
        lived_ms = clock.wall_ms()
        await clock.advance_ms(9_000)
        await store.commit(Txn(operations=(Delete(Keys.holder(ORDERS)),)))
        cut_off.heal()
        await clock.advance_ms(5_000)

        assert ended_ms(lookout, clock) >= lived_ms + 9_000


async def test_a_head_that_we_see_late_is_not_thought_younger_than_it_is() -> None:
    """We were cut off when it was stored: the time in which writes may be lost is longer then."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    cut_off = store.connect()
    lookout = Lookout(store=cut_off, clock=clock)
    holder = Holder(group=ORDERS, epoch=Epoch(1), cluster=A)
    async with background(lookout.run(), lookout.holders.run()):
        await put(store, Keys.holder(ORDERS), holder)
        await put_head(store, clock, 1)
        await clock.advance_ms(1_000)
        cut_off.partition()
        await put_head(store, clock, 2)
        last_ms = clock.wall_ms()
        await clock.advance_ms(9_000)
        await store.commit(Txn(operations=(Delete(Keys.holder(ORDERS)),)))
        cut_off.heal()
        await clock.advance_ms(5_000)

        assert ended_ms(lookout, clock) >= last_ms + 9_000
