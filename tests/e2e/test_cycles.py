"""A whole region is lost under load and won back, again and again, on one sandbox.

Issue 4: SIGKILL and SIGSTOP of etcd, replicators, coordinator and writer; a third cluster ahead of or
behind the promoted one; and each way to ask what was lost gives the clients' own answer.
"""

import asyncio
import itertools
import os
import time
from pathlib import Path

import pytest

from chaos.cycles.draw import Variation, variations
from chaos.cycles.run import live, started
from chaos.cycles.twice import live_twice
from meshkit import failpoints

SMOKE_SEED = 270
CYCLES = int(os.environ.get("MESH_CYCLES", "100"))
SEED = int(os.environ.get("MESH_CYCLES_SEED", "0")) or time.time_ns() % 1_000_000
SANDBOXES = int(os.environ.get("MESH_CYCLES_SANDBOXES", "2"))
"""How many sandboxes share the cycles of `make chaos`: they wait for leases most of their time."""
CYCLE_S_MAX = 180


async def lived(directory: Path, drawn: list[Variation], *, name: str = "") -> list[str]:
    """Run cycles and return what was wrong in the first that was not right."""
    count = 0
    async with started(directory / f"sandbox{name}") as sandbox:
        async for one in live(sandbox, drawn, say=lambda text: print(f"{name}{text}")):
            if one.offences:
                return [f"cycle {one.variation}: {v.check}: {v.detail}" for v in one.offences]
            count += 1
            print(f"{name}{count} of {len(drawn)} cycles are as they have to be", flush=True)
    assert count == len(drawn), "every cycle that was drawn was lived"
    return []


def drawn_from(seed: int, cycles: int) -> list[Variation]:
    print(f"seed {seed}; again: python -m chaos.cycles --seed {seed} --cycles {cycles}")
    return list(itertools.islice(variations(seed), cycles))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(3 * CYCLE_S_MAX)
async def test_three_regions_are_lost_and_won_back(tmp_path: Path) -> None:
    """Promises 1, 3, 5 and 7 (S6, S7, S21): nothing is lost before the point that is stated."""
    assert await lived(tmp_path, drawn_from(SMOKE_SEED, 3)) == []


@pytest.mark.skipif(not CYCLES, reason="MESH_CYCLES is 0")
@pytest.mark.chaos
@pytest.mark.e2e
@pytest.mark.timeout(60 + CYCLES * CYCLE_S_MAX)
async def test_regions_are_lost_and_won_back_again_and_again(tmp_path: Path) -> None:
    """The same, MESH_CYCLES times (100), drawn from a seed that is printed."""
    drawn = drawn_from(SEED, CYCLES)
    shares = [share for n in range(SANDBOXES) if (share := drawn[n::SANDBOXES])]
    async with asyncio.TaskGroup() as tasks:
        lives = [
            tasks.create_task(lived(tmp_path, share, name=f"{n} "))
            for n, share in enumerate(shares, 1)
        ]
    assert [life.result() for life in lives] == [[]] * len(shares)


@pytest.mark.chaos
@pytest.mark.e2e
@pytest.mark.timeout(2 * CYCLE_S_MAX)
async def test_the_promoted_region_dies_before_it_serves_and_both_are_won_back(
    tmp_path: Path,
) -> None:
    """S18 with real agents: an emergency to the third region takes the place of the stuck one."""
    armed = tmp_path / "failpoints"
    armed.mkdir()
    environ = {failpoints.VARIABLE: str(armed)}
    async with started(tmp_path / "sandbox", environ) as sandbox:
        verdicts, failover = await live_twice(sandbox, armed, say=print)

    assert failover["phase"] == "succeeded"
    assert [verdict for verdict in verdicts if not verdict.is_valid] == []
