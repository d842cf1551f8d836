"""A group moves by itself when its region dies, as its policy says; in the whole mesh, in memory."""

import asyncio

import attrs
import pytest

from chaos.checkers import check_one_writer
from chaos.history import History
from coordinator.failover.record import Failover, Phase
from coordinator.mesh import read_mesh
from coordinator.registry import Registry
from meshkit.model import FailoverMode, GroupPolicy
from tests.mesh.emergencies import (
    DEADLINE_S,
    GROUP,
    OPERATOR,
    acknowledged,
    kill_region,
    until_written,
    writing,
)
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import until_in_step

pytestmark = pytest.mark.slow

POLICY = GroupPolicy(
    failover=FailoverMode.AUTOMATIC,
    automatic_after_ms=1_500,
    automatic_cool_down_ms=0,
    automatic_loss_records_max=100_000,
    automatic_loss_seconds_max=60,
)


async def set_policy(mesh: MemoryMesh, policy: GroupPolicy) -> None:
    seen = await read_mesh(mesh.coordination)
    group = attrs.evolve(seen.group(GROUP), policy=policy)
    registry = Registry(store=mesh.coordination, clock=mesh.clock)
    await registry.put_group(group, mesh=seen, active=None, actor="operator/test")


async def until_ended(mesh: MemoryMesh, count: int = 1) -> Failover:
    """Return the newest failover once there are so many, and it has ended."""
    async with asyncio.timeout(3 * DEADLINE_S):
        while True:
            found = (await mesh.operations().failovers(GROUP))["failovers"]
            if len(found) >= count and found[0]["ended_ms"] is not None:
                return (await mesh.operations().failover(found[0]["id"])).record
            await asyncio.sleep(0.05)


async def test_a_group_moves_by_itself_when_its_region_dies_and_its_clients_go_on() -> None:
    """Nobody asks for it; one cluster writes at any time; and it is told who began it and why."""
    mesh = MemoryMesh()
    history = History()
    async with running(mesh):
        await mesh.apply()
        await set_policy(mesh, POLICY)
        await until_in_step(mesh)
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 60)
            await kill_region(mesh, "a")

            record = await until_ended(mesh)

            await until_written(history, 20, at=record.target)
        view = await mesh.operations().group(GROUP)
        again = await mesh.operations().automatic.acknowledge(GROUP, None, "seen", OPERATOR)
        content = await mesh.content(record.target)

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.automatic
    assert record.requested_by == "coordinator"
    assert (view["active"], view["epoch"]) == (record.target, 2)
    assert view["automatic"]["needs_acknowledgement"]
    assert view["automatic"]["last"]["failover"] == record.id
    assert again["changed"]
    assert check_one_writer(history).is_valid
    assert record.emergency.loss is not None
    certain = record.emergency.loss.target.certain
    assert certain is not None
    at_a = acknowledged(history, at="a")
    kept = [w for w in at_a if w.revision is not None and w.revision <= certain]
    assert [w for w in kept if w.key not in content] == []
