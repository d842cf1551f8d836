"""A SIGKILL at every step boundary of a planned failover, of whoever stands there.

Each time the failover ends in succeeded or rolled back without an operator, and promises 1 and 2
hold for what clients were told. That the fault took effect is checked, not assumed.
"""

import asyncio
import time

import pytest

from chaos.planned import Load, loaded
from cli.sandbox.process import MeshProcess
from tests.e2e.conftest import CLUSTERS, Rig

REMOTE_STEPS = ("catch_up", "drain", "converge", "open", "reverse")
STORED_STEPS = ("verify", *REMOTE_STEPS)
"""Steps in hand when a coordinator stores; `check` is passed in the beginning (tests/model)."""
ENDINGS = ("succeeded", "rolled_back")
DEADLINE_S = 60

COORDINATOR_POINTS = [
    f"coordinator.{side}-save.{step}" for step in STORED_STEPS for side in ("before", "after")
]
AGENT_POINTS = [
    f"agent.{step}.{when}" for step in REMOTE_STEPS for when in ("received", "acted", "answered")
]
SMOKE = {
    "coordinator.after-save.drain",
    "coordinator.before-save.converge",
    "agent.converge.received",
    "agent.drain.acted",
    "agent.open.acted",
    "agent.undrain.acted",
}
"""What `make test` runs; `make chaos` runs every boundary, and CI runs both."""


def boundaries(points: list[str], *, smoke: set[str] = SMOKE) -> list[object]:
    """Return the points as parameters; those outside the smoke set are marked chaos."""
    return [p if p in smoke else pytest.param(p, marks=pytest.mark.chaos) for p in points]


async def next_target(load: Load) -> str:
    active = await load.active()
    return CLUSTERS[(CLUSTERS.index(active) + 1) % len(CLUSTERS)]


async def ready(load: Load) -> None:
    """Wait until nothing stands in the way of a failover to any member."""
    await load.ready(timeout_s=DEADLINE_S)


async def struck(rig: Rig, point: str) -> MeshProcess:
    """Wait until the failpoint has fired and its process is gone."""
    async with asyncio.timeout(DEADLINE_S):
        while (process := rig.hit(point)) is None:
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(process.wait_gone, 5.0), "the fault had no effect"
    return process


async def writes_go_on(load: Load) -> None:
    """Wait until writes are acknowledged again."""
    count = len(load.history.acknowledged())
    async with asyncio.timeout(DEADLINE_S):
        while len(load.history.acknowledged()) < count + 20:
            await asyncio.sleep(0.02)


async def judged(load: Load) -> list[object]:
    await load.stop_writers()
    verdicts = await load.verdicts(acknowledged_min=20)
    return [verdict for verdict in verdicts if not verdict.is_valid]


@pytest.mark.e2e
@pytest.mark.timeout(180)
@pytest.mark.parametrize("point", boundaries(COORDINATOR_POINTS + AGENT_POINTS))
async def test_one_process_killed_at_a_step_boundary(rig: Rig, point: str) -> None:
    """The leading coordinator, or the replicator in charge: its successor finishes."""
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        rig.arm(point)
        failover = await load.begin(await next_target(load))
        await struck(rig, point)

        ended = await load.settled(str(failover["id"]))

        assert ended["phase"] in ENDINGS, ended
        await writes_go_on(load)
        rig.revive()
        assert await judged(load) == []


@pytest.mark.e2e
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "point", boundaries([f"agent.{s}.acted" for s in REMOTE_STEPS], smoke={"agent.drain.acted"})
)
async def test_both_replicators_of_a_region_killed(rig: Rig, point: str) -> None:
    """Held at most while the region's replicators stay down; then it goes on by itself."""
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        rig.arm(point)
        failover = await load.begin(await next_target(load))
        victim = await struck(rig, point)
        for process in rig.siblings(victim):
            await asyncio.to_thread(process.kill)
        down_until = time.monotonic() + 4
        while time.monotonic() < down_until:
            await asyncio.sleep(0.1)

        rig.revive()
        ended = await load.settled(str(failover["id"]))

        assert ended["phase"] in ENDINGS, ended
        await writes_go_on(load)
        assert await judged(load) == []


@pytest.mark.e2e
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "point",
    boundaries(["agent.undrain.received", "agent.undrain.acted", "coordinator.after-save.undrain"]),
)
async def test_a_kill_while_a_failover_is_undone(rig: Rig, point: str) -> None:
    """The target's replicators are stopped, so it cannot converge and the drain is undone."""
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        target = await next_target(load)
        rig.arm("agent.converge.received", "stop")
        rig.arm(point)
        failover = await load.begin(target)
        async with asyncio.timeout(DEADLINE_S):
            while (stopped := rig.hit("agent.converge.received")) is None:
                await asyncio.sleep(0.01)
        for process in rig.siblings(stopped):
            process.pause()
        await load.api.post(f"/v1/failovers/{failover['id']}/abort", {"reason": "test"})
        await struck(rig, point)

        ended = await load.settled(str(failover["id"]))

        assert ended["phase"] == "rolled_back", ended
        for process in rig.siblings(stopped):
            process.resume()
        rig.revive()
        await writes_go_on(load)
        assert await judged(load) == []
