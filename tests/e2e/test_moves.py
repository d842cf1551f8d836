"""Promises 1 and 2 on real processes: moves in a row, under load."""

import asyncio
import os

import pytest

from chaos.cycles.losses import is_guarded
from chaos.planned import Load, loaded, pause_line
from tests.e2e.conftest import CLUSTERS, Rig

MOVES = int(os.environ.get("MESH_E2E_MOVES", "50"))
BETWEEN_MOVES = 100
"""So many guarded writes are acknowledged before the next move. How fast they come is the machine's
affair, and printed; P1 and P3 of the bench judge speed."""


@pytest.mark.e2e
@pytest.mark.timeout(400)
async def test_fifty_planned_failovers_in_a_row_lose_nothing(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    """No acknowledged write is lost, never do two clusters accept, and all end up identical.

    Under guarded writes all the time: between two moves at least a hundred are acknowledged.
    """
    async with loaded(rig.sandbox, guarded=4, bare=1, interval_s=0.006) as load:
        await written(load)
        for number in range(MOVES):
            move = await load.move(CLUSTERS[(number + 1) % len(CLUSTERS)])
            assert move.phase == "succeeded", move.failover
            await written(load)
        await load.stop_writers()
        verdicts = await load.verdicts(acknowledged_min=BETWEEN_MOVES * MOVES)

    with capsys.disabled():
        print(f"\n  {pause_line(load.pauses())}; {guarded_writes(load)} guarded writes")
    assert [verdict for verdict in verdicts if not verdict.is_valid] == []
    assert len(load.pauses()) == MOVES


async def written(load: Load) -> None:
    """Wait until as many guarded writes as there have to be between two moves were acknowledged."""
    before = guarded_writes(load)
    async with asyncio.timeout(30):
        while guarded_writes(load) < before + BETWEEN_MOVES:
            await asyncio.sleep(0.05)


def guarded_writes(load: Load) -> int:
    """Return how many guarded writes were acknowledged so far."""
    return sum(map(is_guarded, load.history.acknowledged()))
