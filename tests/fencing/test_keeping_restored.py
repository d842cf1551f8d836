"""A member that forgot what it opened lets nobody go on who was superseded."""

from collections.abc import AsyncIterator

import pytest

from meshkit.codec import decode, encode
from meshkit.keys import RegionalKeys
from meshkit.ordinals import Epoch
from meshkit.promises import PromisesRefused
from meshkit.regional import Fence, FenceMode
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from tests.fencing.kept import C, KeptWorld
from tests.fencing.region import B, G, Replicator, token_of


@pytest.fixture
async def world() -> AsyncIterator[KeptWorld]:
    world = KeptWorld()
    yield world
    await world.close()


def mode_at_a(world: KeptWorld) -> FenceMode:
    item = world.now(world.regional, RegionalKeys.fence(G))
    assert item is not None
    return decode(Fence, item.value).mode


async def lost(world: KeptWorld) -> Replicator:
    """Return the leading replicator of A while B and C let it go on."""
    replicator = await world.keeping()
    replicator.coordination.partition()
    await world.until(lambda: replicator.chain.kept == (G,))
    return replicator


async def test_whoever_was_told_of_a_newer_epoch_does_not_go_on_though_it_is_forgotten(
    world: KeptWorld,
) -> None:
    """B opens, tells A so, and is restored: it promises again, and C never heard of the epoch."""
    replicator = await lost(world)
    await world.freeze(B)
    await world.until(lambda: world.permit is None)
    await world.clock.advance_ms(10_000)
    assert mode_at_a(world) is FenceMode.OPEN, "that a copy is frozen proves nothing"
    assert await world.open(B)
    await world.until(lambda: mode_at_a(world) is FenceMode.DRAINED)
    world.passive[B] = MemoryStore(clock=world.clock)
    await world.follow(world.passive[B], epoch=1)

    await world.always(lambda: world.permit is None, for_ms=20_000)

    assert replicator.chain.kept == ()


async def test_a_command_to_open_that_waits_proves_it_too(world: KeptWorld) -> None:
    await lost(world)
    waits = PromisesRefused(group=G, epoch=Epoch(2), command_token=token_of(2))
    put = Put(RegionalKeys.promises_refused(G), encode(waits))
    await world.passive[C].commit(Txn(operations=(put,)))

    await world.until(lambda: mode_at_a(world) is FenceMode.DRAINED)

    assert world.permit is None


async def test_an_etcd_that_is_empty_promises_nothing(world: KeptWorld) -> None:
    await lost(world)

    world.passive[B] = MemoryStore(clock=world.clock)

    await world.until(lambda: world.permit is None)
    await world.always(lambda: world.permit is None, for_ms=20_000)
    assert world.promise_of(B) is None
