"""Promises 1 and 2 on real processes: moves in a row, under load."""

import asyncio
import os

import pytest

from chaos.checkers import Verdict, check_rate
from chaos.cycles.losses import is_guarded
from chaos.planned import Load, loaded, pause_line
from tests.e2e.conftest import CLUSTERS, Rig

MOVES = int(os.environ.get("MESH_E2E_MOVES", "50"))
GUARDED_PER_S_MIN = 150
"""Of some four hundred that are offered; a busy machine of two cores takes 215 to 230."""


@pytest.mark.e2e
@pytest.mark.timeout(400)
async def test_fifty_planned_failovers_in_a_row_lose_nothing(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    """No acknowledged write is lost, never do two clusters accept, and all end up identical.

    At a few hundred guarded writes a second: what was acknowledged outside the pauses is counted.
    """
    async with loaded(rig.sandbox, guarded=4, bare=1, interval_s=0.006) as load:
        for number in range(MOVES):
            move = await load.move(CLUSTERS[(number + 1) % len(CLUSTERS)])
            assert move.phase == "succeeded", move.failover
            acknowledged = len(load.history.acknowledged())
            async with asyncio.timeout(30):
                while len(load.history.acknowledged()) < acknowledged + 40:
                    await asyncio.sleep(0.02)
        await load.stop_writers()
        verdicts = await load.verdicts(acknowledged_min=20 * MOVES)
        verdicts.append(rate(load))

    with capsys.disabled():
        print(f"\n  {pause_line(load.pauses())}; guarded writes besides: {verdicts[-1].detail}")
    assert [verdict for verdict in verdicts if not verdict.is_valid] == []
    assert len(load.pauses()) == MOVES


def rate(load: Load) -> Verdict:
    """Judge how many guarded writes were acknowledged a second, outside the pauses."""
    guarded = [write for write in load.history.acknowledged() if is_guarded(write)]
    times = [write.return_ns for write in guarded]
    return check_rate(
        "guarded writes",
        guarded,
        from_ns=min(times),
        to_ns=max(times),
        per_s_min=GUARDED_PER_S_MIN,
        besides=load.pauses(),
    )
