"""Promises 1 and 2 on real processes: moves in a row, under load."""

import asyncio
import os

import pytest

from chaos.planned import loaded, pause_line
from tests.e2e.conftest import CLUSTERS, Rig

MOVES = int(os.environ.get("MESH_E2E_MOVES", "50"))


@pytest.mark.e2e
@pytest.mark.timeout(400)
async def test_fifty_planned_failovers_in_a_row_lose_nothing(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    """No acknowledged write is lost, never do two clusters accept, and all end up identical."""
    async with loaded(rig.sandbox, guarded=3, bare=1, interval_s=0.008) as load:
        for number in range(MOVES):
            written = len(load.history.writes)
            move = await load.move(CLUSTERS[(number + 1) % len(CLUSTERS)])
            assert move.phase == "succeeded", move.failover
            async with asyncio.timeout(30):
                while len(load.history.writes) < written + 40:
                    await asyncio.sleep(0.02)
        await load.stop_writers()
        verdicts = await load.verdicts(acknowledged_min=20 * MOVES)

    with capsys.disabled():
        print(f"\n  {pause_line(load.pauses())}; {len(load.history.acknowledged())} writes")
    assert [verdict for verdict in verdicts if not verdict.is_valid] == []
    assert len(load.pauses()) == MOVES
