"""Every process of the mesh is restarted in turn, as an upgrade does: writes go on meanwhile."""

import asyncio

import pytest

from chaos.history import Outcome
from chaos.planned import Load, loaded
from cli.sandbox.process import MeshProcess
from tests.e2e.conftest import Rig
from tests.e2e.test_kills import DEADLINE_S, judged, ready, writes_go_on


async def watched(load: Load, closed: list[str]) -> None:
    """Note whenever a gate that was open is not."""
    while True:
        closed += [str(gate.routing) for gate in load.gates if gate.active is None]
        await asyncio.sleep(0.005)


async def restarted(process: MeshProcess) -> None:
    """Stop the process in an orderly way, start it, and wait until it stands by."""
    starts = process.log_file.read_text().count(".started")
    await asyncio.to_thread(process.stop)
    process.start()
    async with asyncio.timeout(DEADLINE_S):
        while process.log_file.read_text().count(".started") == starts:
            await asyncio.sleep(0.05)


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_restarting_every_process_in_turn_closes_no_gate_and_loses_no_write(rig: Rig) -> None:
    """A replicator that is told to stop hands over its leases; a standby takes them on."""
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        await asyncio.gather(*(gate.wait_open() for gate in load.gates))
        active = await load.active()
        closed: list[str] = []
        watching = asyncio.create_task(watched(load, closed))
        leading = rig.sandbox.replicators[active]

        for process in [*leading, *rig.sandbox.coordinators]:
            await restarted(process)
        await writes_go_on(load)

        watching.cancel()
        assert closed == []
        assert load.history.count(Outcome.FAIL) == 0
        assert load.history.count(Outcome.INFO) == 0
        handed = "".join(process.log_file.read_text() for process in leading)
        assert "region.handed_over" in handed, "neither of them led"
        assert await judged(load) == []
