"""Leaving a cluster: every group that can moves, and one that cannot holds nobody."""

import asyncio
from collections import Counter

import attrs
import pytest

from coordinator.api.bodies import FailoverRequest
from coordinator.api.evacuating import Evacuating
from coordinator.failover.record import FailoverKind
from coordinator.mesh import read_mesh
from meshkit.codec import decode, encode
from meshkit.errors import InvalidInput, NotFound
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Group, Seal
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch
from meshkit.peer import PeerIdentity
from meshkit.store.txn import Put, Txn, prefix_range
from tests.mesh.inmemory import MemoryMesh, running

A, B, C = ClusterName("a"), ClusterName("b"), ClusterName("c")
OPERATOR = PeerIdentity(role="operator", name="test")
GROUPS = 12
DEADLINE_S = 60


def asked(**more: object) -> FailoverRequest:
    request = FailoverRequest(
        target=None,
        kind=FailoverKind.PROMOTE,
        expect_epoch=None,
        reason="maintenance",
        change="",
        waive=(),
        dry_run=False,
        request_id="leave-a",
    )
    return attrs.evolve(request, **more)  # type: ignore[arg-type]


async def with_groups(mesh: MemoryMesh, count: int) -> None:
    """Describe groups g00, g01, ... and wait until every copy of each is in step."""
    await mesh.apply("g00", "/g00/")
    item = await mesh.coordination.get(CoordinationKeys.group(GroupName("g00")))
    assert item is not None
    first = decode(Group, item.value)
    for number in range(1, count):
        name = GroupName(f"g{number:02d}")
        group = attrs.evolve(first, name=name, prefixes=(f"/{name}/",))
        put = Put(CoordinationKeys.group(name), encode(group))
        await mesh.coordination.commit(Txn(operations=(put,)))
    async with asyncio.timeout(DEADLINE_S):
        while not await all_fit(mesh, count):
            await asyncio.sleep(0.05)


async def all_fit(mesh: MemoryMesh, count: int) -> bool:
    evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)
    rows = (await evacuating.evacuate(A, asked(dry_run=True), OPERATOR))["groups"]
    return len(rows) == count and all(row["outcome"] == "would_move" for row in rows)


async def ended(mesh: MemoryMesh, evacuating: Evacuating) -> dict[str, object]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            progress = await evacuating.progress(A, "leave-a")
            if not progress["under_way"]:
                return progress
            await asyncio.sleep(0.05)


async def actives(mesh: MemoryMesh) -> Counter[str]:
    authorities = (await read_mesh(mesh.coordination)).authorities.values()
    return Counter(str(seen.record.active) for seen in authorities)


@pytest.mark.slow
async def test_every_group_moves_and_one_that_cannot_does_not_hold_the_others() -> None:
    mesh = MemoryMesh()
    async with running(mesh):
        await with_groups(mesh, GROUPS)
        stuck = GroupName("g05")
        seal = encode(Seal(group=stuck, epoch=Epoch(1), failover=FailoverId("f-else")))
        await mesh.coordination.commit(Txn(operations=(Put(CoordinationKeys.seal(stuck), seal),)))
        evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)

        answer = await evacuating.evacuate(A, asked(), OPERATOR)
        progress = await ended(mesh, evacuating)
        again = await evacuating.evacuate(A, asked(), OPERATOR)

        outcomes = {row["group"]: row["outcome"] for row in answer["groups"]}
        assert outcomes.pop("g05") == "refused"
        assert set(outcomes.values()) == {"begun"}
        assert progress["moved"] == GROUPS - 1
        assert await actives(mesh) == Counter({"a": 1, "b": GROUPS - 1})
        permits = await mesh.stores["b"].range(prefix_range(RegionalKeys.permits))
        assert len(permits.items) == GROUPS - 1
        assert [row["outcome"] for row in again["groups"]] == ["refused"]


@pytest.mark.slow
async def test_a_cluster_is_left_for_the_one_that_is_named() -> None:
    mesh = MemoryMesh()
    async with running(mesh):
        await with_groups(mesh, 3)
        evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)

        await evacuating.evacuate(A, asked(target=C), OPERATOR)
        await ended(mesh, evacuating)

        assert await actives(mesh) == Counter({"c": 3})


async def test_a_cluster_is_not_left_for_itself_or_for_nowhere() -> None:
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)

        with pytest.raises(InvalidInput):
            await evacuating.evacuate(A, asked(target=A), OPERATOR)
        with pytest.raises(NotFound):
            await evacuating.evacuate(A, asked(target=ClusterName("mars")), OPERATOR)
        with pytest.raises(NotFound):
            await evacuating.progress(ClusterName("mars"), "leave-a")


async def under_way(mesh: MemoryMesh, moved_min: int) -> None:
    """Wait until so many groups have moved, and not all."""
    async with asyncio.timeout(DEADLINE_S):
        while (await actives(mesh))["b"] < moved_min:
            await asyncio.sleep(0.001)


@pytest.mark.slow
async def test_a_coordinator_that_is_killed_on_the_way_leaves_nothing_half_moved() -> None:
    """Its successor goes on from the records, whatever of a shared transaction it had heard."""
    mesh = MemoryMesh()
    async with running(mesh):
        await with_groups(mesh, GROUPS)
        evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)

        await evacuating.evacuate(A, asked(), OPERATOR)
        await under_way(mesh, 1)
        leading = await mesh.coordination.get(CoordinationKeys.coordinator_leader)
        assert leading is not None
        await mesh.processes[leading.value.decode()].kill()
        await ended(mesh, evacuating)

        assert await actives(mesh) == Counter({"b": GROUPS})
        permits = await mesh.stores["b"].range(prefix_range(RegionalKeys.permits))
        assert len(permits.items) == GROUPS
        assert not (await mesh.stores["a"].range(prefix_range(RegionalKeys.permits))).items


@pytest.mark.slow
async def test_a_source_that_is_killed_on_the_way_is_left_by_its_successor() -> None:
    """Whoever leads next has not watched what was written past the cuts, and looks itself."""
    mesh = MemoryMesh(replicators_each=2)
    async with running(mesh):
        await with_groups(mesh, GROUPS)
        evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)

        await evacuating.evacuate(A, asked(), OPERATOR)
        await under_way(mesh, 1)
        leading = await mesh.stores["a"].get(RegionalKeys.replicator_leader)
        assert leading is not None
        await mesh.processes[leading.value.decode()].kill()
        await ended(mesh, evacuating)

        assert await actives(mesh) == Counter({"b": GROUPS})
        async with asyncio.timeout(DEADLINE_S):
            while (await mesh.operations().group(GroupName("g00")))["active"] != "b":
                await asyncio.sleep(0.05)
