"""A whole mesh whose coordination etcd is lost or restored: stopped, adopted, and writing again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Self

import attrs
import pytest

from coordinator import adoption
from coordinator.api.bodies import FailoverRequest
from coordinator.failover.record import FailoverKind, Phase
from coordinator.governance.audit import MESH_AUDIT
from coordinator.rejoin.record import RejoinPhase
from meshkit.codec import decode, encode
from meshkit.commands import Command, CommandStep
from meshkit.errors import Conflict, Refused
from meshkit.keys import CoordinationKeys
from meshkit.names import ClusterName, FailoverId
from meshkit.promises import Pact
from meshkit.regional import FenceMode
from meshkit.store.memory_server import Snapshot
from meshkit.store.txn import Put, Txn
from tests.mesh import emergencies
from tests.mesh.emergencies import begin, emergency
from tests.mesh.inmemory import TIMING, MemoryMesh, running
from tests.mesh.losses import OPERATOR, ORDERS, Coordination, asked, fences, permits, until, writes
from tests.mesh.regions import Region, promote, until_counted, until_rejoined


@pytest.fixture
async def mesh() -> AsyncIterator[MemoryMesh]:
    async with running(MemoryMesh(clusters=("a", "b"))) as found:
        await found.apply()
        await found.until_active()
        yield found


def other(name: str) -> str:
    return "b" if name == "a" else "a"


def planned(target: str) -> FailoverRequest:
    request = emergency(target, accept_loss=None)
    return attrs.evolve(request, kind=FailoverKind.PROMOTE, waive=("lag", "pause_budget", "verify"))


async def same(mesh: MemoryMesh) -> bool:
    return await mesh.content("a") == await mesh.content("b")


@pytest.mark.parametrize("bump", [0, 1_000_000])
async def test_s19_a_restored_coordination_etcd_is_adopted_and_writes_go_on(
    mesh: MemoryMesh, bump: int
) -> None:
    """S19: suspended until adopted; then a new epoch under a token of the new incarnation.

    What was written after the snapshot is there, and nobody was promoted.
    """
    outside, active = Coordination(mesh), await mesh.until_active()
    await writes(mesh, active, "1", "before the snapshot")
    snapshot = outside.snapshot()
    await writes(mesh, active, "2", "after the snapshot")
    await outside.moves_on()
    before = await outside.authority()
    outside.restore(snapshot, bump=bump)
    await outside.suspends("a", "b")

    answer = await outside.adopt()

    assert (answer["changed"], answer["number"], answer["problems"]) == (True, 2, [])
    await outside.goes_on("a", "b")
    await writes(mesh, active, "3", "after the adoption")
    await until(lambda: same(mesh))
    assert set(await mesh.content(other(active))) == {b"/orders/1", b"/orders/2", b"/orders/3"}
    after = await outside.authority()
    assert (after.active, after.epoch) == (before.active, before.epoch + 1)
    assert after.token.incarnation == 2
    assert after.token > before.token
    found = await permits(mesh, "a", "b")
    assert [(where, permit.token) for where, permit in found] == [(active, after.token)]
    audit = await mesh.operations().audit(MESH_AUDIT, after=0, limit=100)
    entry = next(e for e in audit["entries"] if e["action"] == "coordination.adopted")
    assert (entry["actor"], entry["facts"]["reason"]) == ("operator/alice", "all members lost")
    assert (await mesh.operations().verify_audit(MESH_AUDIT))["ok"]
    assert (await mesh.operations().verify_audit(ORDERS))["ok"]


async def test_an_empty_coordination_etcd_is_described_again_and_adopted(mesh: MemoryMesh) -> None:
    """Gone for good: descriptors come from the operator's files, authority from the fences."""
    outside, active = Coordination(mesh), await mesh.until_active()
    await writes(mesh, active, "1", "before")
    await outside.moves_on()
    outside.set_up_anew()
    await outside.suspends("a", "b")
    nothing = await outside.preview()
    assert any("no cluster is described" in problem for problem in nothing["problems"])

    await mesh.apply()
    await outside.adopt()

    await outside.goes_on("a", "b")
    await writes(mesh, active, "2", "after")
    await until(lambda: same(mesh))
    assert set(await mesh.content(other(active))) == {b"/orders/1", b"/orders/2"}
    assert (await outside.authority()).active == active


async def test_a_group_that_only_the_regions_know_must_be_described_first(mesh: MemoryMesh) -> None:
    outside = Coordination(mesh)
    await outside.moves_on()
    outside.set_up_anew()
    await outside.suspends("a", "b")
    await mesh.apply(group="other", prefix="/other/")

    async def told() -> bool:
        problems = (await outside.preview())["problems"]
        return any("group orders" in p and "/orders/" in p for p in problems)

    await until(told)
    with pytest.raises(Refused, match="group orders"):
        await outside.adopting().adopt(asked(), OPERATOR)


async def test_a_healthy_coordination_etcd_is_not_adopted(mesh: MemoryMesh) -> None:
    with pytest.raises(Refused, match="not suspended"):
        await Coordination(mesh).adopting().adopt(asked(), OPERATOR)
    assert (await Coordination(mesh).authority()).epoch == 1


async def test_what_was_not_shown_is_not_done(mesh: MemoryMesh) -> None:
    outside = Coordination(mesh)
    await outside.moves_on()
    outside.set_up_anew()
    await outside.suspends("a", "b")
    await mesh.apply()

    async def is_free() -> bool:
        return not (await outside.preview())["problems"]

    await until(is_free)
    with pytest.raises(Conflict, match="something else"):
        await outside.adopting().adopt(asked(expect_plan="another"), OPERATOR)


async def test_s19_a_command_of_the_old_incarnation_is_never_obeyed_again(
    mesh: MemoryMesh,
) -> None:
    """S19: however late it arrives, and whatever its revision is."""
    outside, active = Coordination(mesh), await mesh.until_active()
    await outside.moves_on()
    outside.set_up_anew()
    await outside.suspends("a", "b")
    await mesh.apply()
    await outside.adopt()
    await outside.goes_on("a", "b")
    await writes(mesh, active, "1", "after")
    authority = await outside.authority()
    late = Command(
        group=ORDERS,
        cluster=ClusterName(active),
        step=CommandStep.DRAIN,
        incarnation=1,
        epoch=authority.epoch,
        failover=FailoverId("f-late"),
    )

    key = CoordinationKeys.command(ClusterName(active), ORDERS)
    await mesh.coordination.commit(Txn(operations=(Put(key, encode(late)),)))
    await writes(mesh, active, "2", "after the late command")
    await until(lambda: same(mesh))

    (fence,) = await fences(mesh, active)
    assert (fence.mode, fence.epoch) == (FenceMode.OPEN, authority.epoch)
    assert fence.command_token.incarnation == 2
    item = await mesh.coordination.get(key)
    assert item is not None
    assert decode(Command, item.value) == late


async def test_a_region_that_was_away_goes_on_by_itself_when_it_is_back(mesh: MemoryMesh) -> None:
    """Its marks may all have been passed by then: the incarnation's name tells it."""
    outside, active = Coordination(mesh), await mesh.until_active()
    standby = other(active)
    snapshot = outside.snapshot()
    await outside.moves_on()
    await Region(mesh, standby).die()
    outside.restore(snapshot, bump=1_000_000)
    await outside.suspends(active)
    with pytest.raises(Refused, match=f"{standby} does not say"):
        await outside.adopting().adopt(asked(), OPERATOR)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions wait as long as a permit of a region that is dead may live in these tests."""
    monkeypatch.setattr(adoption, "WAIT_MS", TIMING.regional_ttl_ms + 500)


class Watcher:
    """Looks all the time at how many regions have a permit."""

    def __init__(self, mesh: MemoryMesh) -> None:
        self.mesh = mesh
        self.most = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self.most = max(self.most, len(await permits(self.mesh, *self.mesh.clusters)))
            await asyncio.sleep(0.005)


async def promoted_after_the_snapshot(mesh: MemoryMesh, outside: Coordination) -> Snapshot:
    """`a` dies after it saw the snapshot's state, `b` is promoted and writes, and dies too."""
    await writes(mesh, "a", "1", "before the snapshot")
    await until(lambda: same(mesh))
    snapshot = outside.snapshot()
    await outside.moves_on()
    await Region(mesh, "a").die()
    await emergencies.until(mesh, await begin(mesh, emergency("b")), Phase.SUCCEEDED)
    await writes(mesh, "b", "2", "in epoch 2")
    await Region(mesh, "b").die()
    return snapshot


@pytest.mark.usefixtures("patient")
async def test_a_waived_region_that_was_ahead_is_superseded_and_loses_nothing_silently(
    mesh: MemoryMesh,
) -> None:
    """The region that is away has an open fence of a higher epoch than anybody who answers knows.

    It is gone on without; when it is back it accepts nothing, and what only it has is set aside.
    """
    outside = Coordination(mesh)
    async with Watcher(mesh) as watcher:
        outside.restore(await promoted_after_the_snapshot(mesh, outside))
        Region(mesh, "a").come_back()
        await outside.suspends("a")
        shown = await outside.preview("b")
        assert [r["answer"] for r in shown["regions"]] == ["stopped", "waived"]
        assert any("set aside" in warning for warning in shown["warnings"])
        await outside.adopt("b")
        await writes(mesh, "a", "3", "after the adoption")
        assert (await outside.authority()).epoch > 1_000

        Region(mesh, "b").come_back()
        await outside.goes_on("b")

        await until_rejoined(mesh, "b", RejoinPhase.HELD, RejoinPhase.SUCCEEDED)
        counted = await until_counted(mesh, "b")
    assert watcher.most == 1
    assert counted
    assert b"/orders/2" not in await mesh.content("a")
    (fence,) = await fences(mesh, "b")
    assert fence.mode is not FenceMode.OPEN


@pytest.mark.usefixtures("patient")
async def test_a_region_whose_fences_say_more_than_was_adopted_stays_suspended(
    mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: epochs that nobody saw are not left out, so two clusters open the same one.

    The region that was away accepts nothing all the same, and says why it does not go on.
    """
    monkeypatch.setattr(adoption, "EPOCHS_UNSEEN_MAX", 0)
    outside = Coordination(mesh)
    async with Watcher(mesh) as watcher:
        outside.restore(await promoted_after_the_snapshot(mesh, outside))
        Region(mesh, "a").come_back()
        await outside.suspends("a")
        await outside.adopt("b")
        await writes(mesh, "a", "3", "in another epoch 2")
        Region(mesh, "b").come_back()

        async def is_told() -> bool:
            shown = await mesh.operations().cluster(ClusterName("b"))
            return shown["suspended"] is not None and "knows less" in shown["suspended"]["reason"]

        await until(is_told)
        await writes(mesh, "a", "4", "and goes on")
    assert watcher.most == 1
    assert await outside.is_stopped("b")


async def test_authority_stays_with_a_region_that_is_away_if_others_saw_it_promoted(
    mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is promoted by an adoption: the group waits for its cluster, or for an emergency.

    So there is nothing that the others would have to wait for here.
    """
    monkeypatch.setattr(adoption, "WAIT_MS", 1)
    outside = Coordination(mesh)
    await writes(mesh, "a", "1", "before the snapshot")
    await until(lambda: same(mesh))
    snapshot = outside.snapshot()
    await outside.moves_on()
    await promote(mesh, "b")
    before = await outside.authority()
    await Region(mesh, "b").die()
    outside.restore(snapshot)
    await outside.suspends("a")

    await outside.adopt("b")
    await outside.goes_on("a")

    after = await outside.authority()
    assert (after.active, after.epoch, after.token) == ("b", before.epoch, before.token)
    assert await permits(mesh, "a") == []
    unknown = Pact(group=ORDERS, epoch=after.epoch, cluster=after.active, members=(after.active,))
    pact = await mesh.coordination.get(CoordinationKeys.pact(ORDERS))
    assert pact is not None
    assert decode(Pact, pact.value) == unknown, "it may go on by promise: that is not known"
    Region(mesh, "b").come_back()
    await writes(mesh, "b", "2", "where it went on")

    async def lapses() -> bool:
        return await mesh.coordination.get(CoordinationKeys.pact(ORDERS)) is None

    await until(lapses)
    assert await permits(mesh, "a") == []
    (fence,) = await fences(mesh, "a")
    assert fence.mode is not FenceMode.OPEN


async def test_a_region_for_which_no_mark_fell_stops_when_another_tells(mesh: MemoryMesh) -> None:
    """It was away since before the snapshot, so the restored etcd looks like the one it knew."""
    outside = Coordination(mesh)
    await writes(mesh, "a", "1", "before")
    await until(lambda: same(mesh))
    await Region(mesh, "a").die()
    await outside.moves_on("b")
    snapshot = outside.snapshot()
    await outside.moves_on("b")
    outside.restore(snapshot, bump=1_000_000)
    await outside.suspends("b")

    Region(mesh, "a").come_back()

    await outside.suspends("a")
    await outside.adopt()
    await writes(mesh, "a", "2", "after")
    await until(lambda: same(mesh))


async def test_a_planned_failover_that_was_in_flight_ends_and_loses_nothing(
    mesh: MemoryMesh,
) -> None:
    """The snapshot knows it as running, and what it did goes on: fences decide where writes are."""
    outside = Coordination(mesh)
    await writes(mesh, "a", "1", "before")
    await until(lambda: same(mesh))
    failover = await begin(mesh, planned("b"))
    await emergencies.until_step(mesh, failover, "drain", every_s=0)
    snapshot = outside.snapshot()
    await Region(mesh, "b").die()
    await outside.moves_on("a")
    outside.restore(snapshot)
    Region(mesh, "b").come_back()
    async with Watcher(mesh) as watcher:
        await outside.suspends("a", "b")
        await outside.adopt()
        ended = await emergencies.until(mesh, failover)
        assert ended.phase is Phase.SUPERSEDED
        assert ended.problem is not None
        assert "adopted" in ended.problem.happened
        await writes(mesh, (await outside.authority()).active, "2", "after")
        await until(lambda: same(mesh))
    assert watcher.most == 1
    assert set(await mesh.content("b")) == {b"/orders/1", b"/orders/2"}


async def test_a_copy_that_an_emergency_had_frozen_follows_again(
    mesh: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost between freeze and pivot: the source is sealed, the target held, nobody decides."""
    emergencies.hears_of_no_seal(monkeypatch)
    monkeypatch.setattr("replicator.rescue.TELL_MS_MAX", 0)
    outside = Coordination(mesh)
    await writes(mesh, "a", "1", "before")
    await until(lambda: same(mesh))
    failover = await begin(mesh, emergency("b", accept_loss=None, no_fence_wait=True))
    await emergencies.until_step(mesh, failover, "consent")
    snapshot = outside.snapshot()
    await outside.moves_on()
    outside.restore(snapshot)
    await outside.suspends("a", "b")

    await outside.adopt()

    await writes(mesh, "a", "2", "after")
    await until(lambda: same(mesh))
    (fence,) = await fences(mesh, "b")
    assert fence.mode is FenceMode.SUPERSEDED
