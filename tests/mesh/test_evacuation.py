"""Leaving a cluster: every group that can moves, and one that cannot holds nobody."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest

from coordinator.api.bodies import FailoverRequest
from coordinator.api.evacuating import Evacuating
from coordinator.failover.loss import LossBound
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
from tests.mesh.emergencies import kill_region
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


async def leave_dead(mesh: MemoryMesh, **more: object) -> dict[str, Any]:
    evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)
    request = asked(kind=FailoverKind.EMERGENCY, reason="the region is gone", **more)
    return await evacuating.evacuate(A, request, OPERATOR)


async def settled(mesh: MemoryMesh) -> dict[str, Any]:
    """Return how the evacuation stands once each group has moved, stopped, or waits."""
    evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            progress = await evacuating.progress(A, "leave-a")
            if progress["under_way"] == progress["waiting"]:
                return progress
            await asyncio.sleep(0.05)


async def until_outcome(mesh: MemoryMesh, group: str, outcome: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            rows = (await leave_dead(mesh, dry_run=True))["groups"]
            if {row["group"]: row["outcome"] for row in rows}[group] == outcome:
                return
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def dead_region(*, groups: int) -> AsyncIterator[MemoryMesh]:
    """Region a with several groups, each with a record that nobody else may have, is gone."""
    mesh = MemoryMesh()
    async with running(mesh):
        await with_groups(mesh, groups)
        for number in range(groups):
            put = Put(f"/g{number:02d}/last".encode(), b"word")
            await mesh.stores["a"].commit(Txn(operations=(put,)))
        await kill_region(mesh, "a")
        yield mesh


@pytest.mark.slow
async def test_a_dead_region_is_left_with_the_consent_that_was_given() -> None:
    async with dead_region(groups=3) as mesh:
        await leave_dead(mesh, accept_loss=LossBound(unknown=True))
        progress = await settled(mesh)

        assert (progress["under_way"], progress["waiting"]) == (0, 0)
        assert progress["moved"] == 3
        assert await actives(mesh) == Counter({"b": 3})


@pytest.mark.slow
async def test_without_consent_each_group_waits_with_its_loss_and_a_repeat_gives_consent() -> None:
    """Promise 3: nothing is lost that nobody was told of; and asking twice is harmless."""
    async with dead_region(groups=3) as mesh:
        foreseen = await leave_dead(mesh, dry_run=True)
        begun = await leave_dead(mesh)
        waiting = await settled(mesh)
        joinable = await leave_dead(mesh, dry_run=True)
        repeated = await leave_dead(mesh)
        still = await settled(mesh)
        nothing_accepted = await actives(mesh)
        again = await leave_dead(mesh, accept_loss=LossBound(unknown=True))
        progress = await settled(mesh)
        moved = await actives(mesh)

    assert all(row["loss"]["text"] for row in foreseen["groups"])
    assert foreseen["loss"]["groups"] == 3
    assert {row["outcome"] for row in begun["groups"]} == {"begun"}
    assert (waiting["under_way"], waiting["waiting"], waiting["moved"]) == (3, 3, 0)
    for row in waiting["groups"]:
        assert (row["waits_for_consent"], row["step"], row["target"]) == (True, "consent", "b")
        assert row["loss"]["objections"]
    losses = [row["loss"] for row in waiting["groups"]]
    assert waiting["loss"] == {
        "groups": 3,
        "unbounded": 0,
        "seconds": max(loss["seconds"] for loss in losses),
        "records_known": sum(loss["target"]["records_known"] for loss in losses),
    }
    assert {row["running"]["request_id"] for row in joinable["groups"]} == {"leave-a"}
    assert [row["loss"] for row in joinable["groups"]] == losses
    assert {row["outcome"] for row in repeated["groups"]} == {"under_way"}
    assert still == waiting
    assert nothing_accepted == Counter({"a": 3})
    assert [row["failover"] for row in again["groups"]] == [
        row["failover"] for row in begun["groups"]
    ]
    assert (progress["moved"], progress["waiting"], progress["loss"]) == (3, 0, None)
    assert moved == Counter({"b": 3})


@pytest.mark.slow
async def test_in_an_emergency_too_a_group_that_cannot_move_holds_nobody() -> None:
    """Its only other member is dead as well: it says so, the others are at b."""
    async with dead_region(groups=3) as mesh:
        item = await mesh.coordination.get(CoordinationKeys.group(GroupName("g01")))
        assert item is not None
        lonely = attrs.evolve(decode(Group, item.value), members=(A, C))
        put = Put(CoordinationKeys.group(lonely.name), encode(lonely))
        await mesh.coordination.commit(Txn(operations=(put,)))
        await kill_region(mesh, "c")
        await until_outcome(mesh, "g01", "refused")

        answer = await leave_dead(mesh, accept_loss=LossBound(unknown=True))
        progress = await settled(mesh)

        rows = {row["group"]: row for row in answer["groups"]}
        assert rows["g01"]["outcome"] == "refused"
        assert "target" in rows["g01"]["reason"]
        assert (progress["moved"], len(progress["groups"])) == (2, 2)
        assert await actives(mesh) == Counter({"a": 1, "b": 2})


@pytest.mark.slow
async def test_of_many_groups_the_state_is_read_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A poll of a thousand groups must not read a thousand records."""
    monkeypatch.setattr("coordinator.api.evacuating.SHOWN_IN_FULL_MAX", 1)
    async with dead_region(groups=2) as mesh:
        await leave_dead(mesh)
        evacuating = Evacuating(store=mesh.coordination, clock=mesh.clock)
        async with asyncio.timeout(DEADLINE_S):
            while (await evacuating.progress(A, "leave-a", is_in_full=True))["waiting"] != 2:
                await asyncio.sleep(0.05)

        brief = await evacuating.progress(A, "leave-a")

        assert (brief["under_way"], brief["waiting"], brief["loss"]) == (2, None, None)


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
