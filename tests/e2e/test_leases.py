"""Leases that go with their group, on real etcd and real processes (schedule S14)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from chaos.planned import Load, loaded
from meshkit.errors import LeaseLost, MeshError
from meshkit.keys import RegionalKeys
from meshkit.ordinals import LeaseId
from meshkit.store.txn import Put, Txn, prefix_range
from tests.e2e.conftest import CLUSTERS, Rig
from tests.e2e.test_kills import ready

LEASE = LeaseId(0x5EED)
KEYS = tuple(f"/orders/leased-{n}".encode() for n in range(3))
TTL_S = 5


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def kept_alive(load: Load) -> AsyncIterator[None]:
    """A client that renews its lease wherever it finds it, and never grants it anew."""

    async def renew() -> None:
        while True:
            for store in load.stores.values():
                with contextlib.suppress(MeshError):
                    await store.keep_alive(LEASE)
            await asyncio.sleep(0.4)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def hang(load: Load, cluster: str) -> bool:
    try:
        return await load.stores[cluster].lease_keys(LEASE) == KEYS
    except LeaseLost:
        return False


async def homes(load: Load) -> list[str]:
    return [name for name in CLUSTERS if await hang(load, name)]


async def there(load: Load, cluster: str) -> int:
    found = await load.stores[cluster].range(prefix_range(b"/orders/leased-"), count_only=True)
    return found.count


@pytest.mark.e2e
@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_a_client_keeps_its_lease_across_failovers_and_a_kill(rig: Rig) -> None:
    """S14 with an etcd that expires leases by itself: under the same id at each new cluster and
    back at the first, for longer than its TTL; the replicator that opens one epoch is killed."""
    async with loaded(rig.sandbox, guarded=1, bare=0) as load:
        await ready(load)
        first = await load.active()
        await load.stores[first].grant(ttl_s=TTL_S, lease_id=LEASE)
        async with kept_alive(load):
            puts = tuple(Put(key, b"alive", LEASE) for key in KEYS)
            await load.stores[first].commit(Txn(operations=puts))
            begun_s = time.monotonic()
            killed = None
            for target in (*(name for name in CLUSTERS if name != first), first):
                if target == CLUSTERS[-1]:
                    rig.arm("agent.open.acted")
                move = await load.move(target)
                assert move.phase == "succeeded", move.failover
                await until(lambda target=target: hang(load, target))
                killed = killed or rig.hit("agent.open.acted")
                rig.revive()
            await until(lambda: _is_over(begun_s + 2 * TTL_S))
            counts = [await there(load, name) for name in CLUSTERS]
            where = await homes(load)
        await until(lambda: _are_gone(load))
        left = [await _below(load, name, RegionalKeys.attachments) for name in CLUSTERS]
        quarantined = [await _below(load, name, RegionalKeys.quarantines) for name in CLUSTERS]

    assert killed is not None
    assert counts == [len(KEYS)] * len(CLUSTERS)
    assert where == [first]
    assert left == quarantined == [0] * len(CLUSTERS)


async def _is_over(at_s: float) -> bool:
    return time.monotonic() > at_s


async def _are_gone(load: Load) -> bool:
    return [await there(load, name) for name in CLUSTERS] == [0] * len(CLUSTERS)


async def _below(load: Load, cluster: str, prefix: bytes) -> int:
    return (await load.stores[cluster].range(prefix_range(prefix), count_only=True)).count
