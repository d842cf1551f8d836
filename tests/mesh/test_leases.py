"""Claims about leased keys in a whole mesh that moves (schedule S14, docs/leases.md)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from coordinator.failover.record import Phase
from coordinator.mesh import read_mesh
from coordinator.registry import Registry
from meshkit.errors import Conflict, LeaseLost, MeshError
from meshkit.keys import RegionalKeys
from meshkit.model import Group, GroupPolicy, LeasePolicy
from meshkit.names import ClusterName
from meshkit.ordinals import LeaseId
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import KeyValue, Put, Txn, prefix_range
from tests.mesh import emergencies
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import GROUP, move, until_equal, until_in_step

DEADLINE_S = 30
LEASE = LeaseId(7_001)
KEY = b"/orders/leased"
TTL_S = 2


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await holds():
            await asyncio.sleep(0.02)


async def lives(store: MemoryStore, lease: LeaseId = LEASE) -> bool:
    try:
        await store.time_to_live(lease)
    except LeaseLost:
        return False
    return True


async def at(mesh: MemoryMesh, cluster: str, key: bytes = KEY) -> KeyValue | None:
    return await mesh.stores[cluster].get(key)


async def hangs(mesh: MemoryMesh, cluster: str, lease: LeaseId = LEASE) -> bool:
    item = await at(mesh, cluster)
    return item is not None and item.lease == lease


async def stored(mesh: MemoryMesh, cluster: str, prefix: bytes) -> int:
    return (await mesh.stores[cluster].range(prefix_range(prefix), count_only=True)).count


@contextlib.asynccontextmanager
async def kept_alive(mesh: MemoryMesh) -> AsyncIterator[None]:
    """A client that renews its lease wherever it finds it, and never grants it anew."""

    async def renew() -> None:
        while True:
            for store in mesh.stores.values():
                with contextlib.suppress(MeshError):
                    await store.keep_alive(LEASE)
            await asyncio.sleep(TTL_S / 10)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def begin(mesh: MemoryMesh, *, policy: LeasePolicy = LeasePolicy.REFUSE) -> None:
    await mesh.apply()
    spec = Group(
        name=GROUP,
        prefixes=("/orders/",),
        members=tuple(ClusterName(name) for name in mesh.clusters),
        policy=GroupPolicy(leases=policy),
    )
    registry = Registry(store=mesh.coordination, clock=mesh.clock)
    view = await read_mesh(mesh.coordination)
    await registry.put_group(spec, mesh=view, active=None, actor="operator/test")
    await until_in_step(mesh)
    await mesh.stores["a"].grant(ttl_s=TTL_S, lease_id=LEASE)


@pytest.mark.slow
async def test_a_lease_kept_alive_goes_with_its_group_there_on_and_back() -> None:
    """S14, whole: the client goes on under the same id at each new cluster, for longer than the
    TTL; nothing runs out at a passive one; and at last the key runs out where it is active."""
    mesh = MemoryMesh(clusters=("a", "b", "c"))
    async with running(mesh):
        await begin(mesh)
        async with mesh.gate() as gate:
            async with kept_alive(mesh):
                await gate.write((Put(KEY, b"alive", LEASE),))
                await until_equal(mesh)
                for target in ("b", "c", "a"):
                    phase = await move(mesh, target, f"to {target}")
                    await until(lambda target=target: hangs(mesh, target))
                    await gate.write((Put(b"/orders/after", target.encode()),))
                    await until_equal(mesh)
                    await asyncio.sleep(TTL_S * 0.6)
                    await until_in_step(mesh)

                    homes = [name for name in mesh.clusters if await lives(mesh.stores[name])]
                    leased = [name for name in mesh.clusters if await hangs(mesh, name)]

                    assert phase is Phase.SUCCEEDED
                    assert (homes, leased) == ([target], [target])
            await until(lambda: _is_gone(mesh, "a"))
        states = await until_equal(mesh)

    assert all(KEY not in state for state in states.values())
    for name in ("b", "c"):
        assert await stored(mesh, name, RegionalKeys.attachments) == 0
        assert await stored(mesh, name, RegionalKeys.quarantines) == 0


async def _is_gone(mesh: MemoryMesh, cluster: str) -> bool:
    return await at(mesh, cluster) is None


@pytest.mark.slow
async def test_a_lease_that_runs_out_at_the_old_cluster_takes_no_key_and_none_at_failback() -> None:
    """S14: a client that comes late finds key and lease at the new cluster, for a full TTL."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await begin(mesh)
        await mesh.stores["a"].revoke(LEASE)
        await mesh.stores["a"].grant(ttl_s=6, lease_id=LEASE)
        async with mesh.gate() as gate:
            await gate.write((Put(KEY, b"alive", LEASE),))
            there = await move(mesh, "b", "there")
            await until(lambda: hangs(mesh, "b"))
            ttl = await mesh.stores["b"].lease_ttl(LEASE)
            gone_at_a = not await lives(mesh.stores["a"])
            states = await until_equal(mesh)
            await until_in_step(mesh)
            back = await move(mesh, "a", "back")
            await until(lambda: hangs(mesh, "a"))
        after = await until_equal(mesh)

    assert (there, back) == (Phase.SUCCEEDED, Phase.SUCCEEDED)
    assert ttl.granted_s == 6
    assert gone_at_a
    assert [state[KEY] for state in states.values()] == [b"alive", b"alive"]
    assert [state[KEY] for state in after.values()] == [b"alive", b"alive"]


async def taken_at_b(mesh: MemoryMesh) -> None:
    """Something else at b lives under the same lease id."""
    await mesh.stores["b"].grant(ttl_s=1_000, lease_id=LEASE)
    await mesh.stores["b"].commit(Txn(operations=(Put(b"/elsewhere", b"v", LEASE),)))


@pytest.mark.slow
async def test_an_id_that_is_somebody_elses_is_refused_and_the_old_cluster_goes_on() -> None:
    """Hanging keys on a stranger's lease would let the stranger delete them."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await begin(mesh)
        await taken_at_b(mesh)
        async with kept_alive(mesh), mesh.gate() as gate:
            await gate.write((Put(KEY, b"alive", LEASE),))
            phase = await move(mesh, "b", "there", waive=("leases",))
            await gate.write((Put(b"/orders/after", b"at a"),))
            states = await until_equal(mesh)

            assert phase is Phase.ROLLED_BACK
            assert await hangs(mesh, "a")
            assert states[ClusterName("b")][KEY] == b"alive"
            assert (await at(mesh, "b", b"/elsewhere")).lease == LEASE
            await until(lambda: _has_none(mesh, "b", RegionalKeys.lease_claims))


async def _has_none(mesh: MemoryMesh, cluster: str, prefix: bytes) -> bool:
    return await stored(mesh, cluster, prefix) == 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", [LeasePolicy.DROP, LeasePolicy.REMAP])
async def test_a_policy_lets_a_group_move_though_an_id_is_somebody_elses(
    policy: LeasePolicy,
) -> None:
    """Without the lease, or under a new one; either way everybody's copies know it."""
    mesh = MemoryMesh(clusters=("a", "b", "c"))
    async with running(mesh):
        await begin(mesh, policy=policy)
        await taken_at_b(mesh)
        async with mesh.gate() as gate:
            await gate.write((Put(KEY, b"alive", LEASE),))
            phase = await move(mesh, "b", "there")
            await until(lambda: _has_none(mesh, "b", RegionalKeys.attachments))
            await gate.write((Put(b"/orders/after", b"1"),))
            await until_equal(mesh)
            item = await at(mesh, "b")
            known = [await stored(mesh, name, RegionalKeys.attachments) for name in ("a", "c")]

            assert phase is Phase.SUCCEEDED
            assert item is not None
            assert item.lease != LEASE
            assert bool(item.lease) is (policy is LeasePolicy.REMAP)
            assert known == ([1, 1] if policy is LeasePolicy.REMAP else [0, 0])
            with pytest.raises(Conflict):
                await mesh.stores["b"].grant(ttl_s=5, lease_id=LEASE)


@pytest.mark.slow
@pytest.mark.parametrize("is_taken", [False, True])
async def test_leases_come_along_in_an_emergency_and_never_lock_it_out(*, is_taken: bool) -> None:
    """What the copy hangs on is stored beside it: the dead region is not asked. An id that is
    somebody else's is left behind, also where the policy is to refuse."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await begin(mesh)
        if is_taken:
            await taken_at_b(mesh)
        async with kept_alive(mesh), mesh.gate() as gate:
            await gate.write((Put(KEY, b"alive", LEASE),))
            await until_equal(mesh)
            await emergencies.kill_region(mesh, "a")

            request = emergencies.emergency("b")
            record = await emergencies.until(mesh, await emergencies.begin(mesh, request))
            await until(lambda: _has_none(mesh, "b", RegionalKeys.attachments))
            item = await at(mesh, "b")

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert item is not None
    assert item.value == b"alive"
    assert item.lease == (0 if is_taken else LEASE)
