"""A process that is stopped (SIGSTOP), slept through a failover, and wakes: nothing changes.

Stopping longer than every lease is the fault that finds the bugs that kills do not: the process
wakes with everything it believed still in hand.
"""

import asyncio
import signal
import subprocess
import sys
import time

import pytest

from chaos.history import Outcome
from chaos.planned import Load, loaded
from chaos.writer import from_json
from cli.sandbox.process import wait_stopped
from tests.e2e.conftest import Rig
from tests.e2e.test_kills import (
    DEADLINE_S,
    boundaries,
    judged,
    next_target,
    ready,
    writes_go_on,
)

ENDINGS = ("succeeded", "rolled_back")
POINTS = [
    "coordinator.before-save.drain",
    # Converge's answer is stored with the pivot: this one wakes with the pivot in hand (S20).
    "coordinator.before-save.converge",
    "coordinator.after-save.converge",
    "agent.drain.received",
    "agent.drain.acted",
    "agent.open.received",
    "agent.open.acted",
]
SMOKE = {"coordinator.before-save.converge", "agent.drain.acted", "agent.open.received"}
"""What `make test` runs; `make chaos` runs the others."""


async def standing(load: Load) -> tuple[str, int]:
    view = await load.api.get(f"/v1/groups/{load.group}")
    return view["active"], view["epoch"]


async def steady(load: Load, *, seconds: float) -> set[tuple[str, int]]:
    """Return every (active, epoch) that was seen during a while."""
    seen = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        seen.add(await standing(load))
        await asyncio.sleep(0.1)
    return seen


@pytest.mark.e2e
@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", boundaries(POINTS, smoke=SMOKE))
async def test_a_process_stopped_in_a_failover_changes_nothing_when_it_wakes(
    rig: Rig, point: str
) -> None:
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        rig.arm(point, "stop")
        failover = await load.begin(await next_target(load))
        async with asyncio.timeout(DEADLINE_S):
            while (stopped := rig.hit(point)) is None:
                await asyncio.sleep(0.01)
        ended = await load.settled(str(failover["id"]))
        assert ended["phase"] in ENDINGS, ended
        await writes_go_on(load)
        before = await standing(load)

        stopped.resume()
        seen = await steady(load, seconds=2.0)

        assert seen == {before}
        await writes_go_on(load)
        assert await judged(load) == []


@pytest.mark.e2e
@pytest.mark.timeout(120)
async def test_a_region_whose_replicators_sleep_stops_and_goes_on(rig: Rig) -> None:
    """Without its replicators the permit lapses; when they wake, writes go on in the same epoch."""
    async with loaded(rig.sandbox, guarded=2, bare=0) as load:
        await ready(load)
        active, epoch = await standing(load)
        for process in rig.sandbox.replicators[active]:
            process.pause()
        async with asyncio.timeout(DEADLINE_S):
            while load.gates[0].active is not None:
                await asyncio.sleep(0.02)

        for process in rig.sandbox.replicators[active]:
            process.resume()
        await writes_go_on(load)

        assert await standing(load) == (active, epoch)
        assert await judged(load) == []


@pytest.mark.e2e
@pytest.mark.timeout(120)
async def test_a_writer_stopped_across_a_failover_writes_nothing_to_the_old_cluster(
    rig: Rig,
) -> None:
    """It wakes with the old permit in hand; its next write is refused there and goes on."""
    async with loaded(rig.sandbox, guarded=1, bare=1) as load:
        await ready(load)
        name = f"sleeper-{time.time_ns():x}"
        command = [sys.executable, "-m", "chaos.writer", "--sandbox"]
        command += [str(rig.sandbox.directory), "--name", name]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout is not None
            lines = [await asyncio.to_thread(writer.stdout.readline) for _ in range(30)]
            writer.send_signal(signal.SIGSTOP)
            wait_stopped(writer.pid)
            move = await load.move(await next_target(load))
            assert move.phase == "succeeded"
            await steady(load, seconds=2.5)

            writer.send_signal(signal.SIGCONT)
            lines += [await asyncio.to_thread(writer.stdout.readline) for _ in range(100)]
            writer.terminate()
            rest, _ = await asyncio.to_thread(writer.communicate, timeout=10)
        finally:
            writer.kill()
        written = [from_json(line) for line in (*lines, *rest.splitlines())]
        for write in written:
            load.history.record(write)

        active, epoch = await standing(load)
        assert (written[-2].cluster, written[-2].epoch) == (active, epoch)
        assert written[0].epoch == epoch - 1
        assert sum(write.outcome is Outcome.INFO for write in written) <= 2
        assert await judged(load) == []
