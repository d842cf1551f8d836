"""P3: how long writes stop in a planned failover, as a client writing every 2 ms sees it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from bench.alone import commit_ms
from bench.busy import Busy, of_sandbox
from bench.disk import Disk
from bench.pauses import phases_of, told
from bench.report import Line, quantile, write_series
from chaos.history import longest_gap
from chaos.planned import Load, loaded
from cli.sandbox.sandbox import Sandbox

FAILOVERS = 100
FAILOVERS_SMOKE = 4
WRITE_INTERVAL_S = 0.002
BETWEEN_S = 0.25
COMMITS_IN_A_ROW = 7
"""After the drain: an answer, the next command, an answer, the pivot, the new holder's proof of
life, the permit in its region, and the first write. Each waits for the one before it."""


async def run(smoke: bool) -> list[Line]:
    """Move one group round three clusters under writes, and measure the gaps."""
    count = FAILOVERS_SMOKE if smoke else FAILOVERS
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        sandbox = Sandbox.create(Path(directory) / "sandbox", timing="fast")
        await sandbox.start()
        try:
            floor = await _floor(sandbox)
            busy, disk = Busy(of_sandbox(sandbox)), Disk(sandbox)
            pauses, lost = await _move_round(sandbox, count)
            why = f"{told(pauses)}; {floor}; {disk.why()}; {busy.why()}"
        finally:
            await sandbox.stop()
    gaps = [sum(phases.values()) for phases in pauses]
    write_series("P3-pauses", gaps)
    enough = None if smoke else True
    p50, p99 = quantile(gaps, 0.5), quantile(gaps, 0.99)
    what = f"longest gap between acknowledged writes, {count} planned failovers"
    return [
        Line(
            id="P3",
            what=f"{what}, p50",
            value=p50,
            unit="ms",
            target="<= 50 ms",
            met=enough and p50 <= 50,
            why=why,
        ),
        Line(
            id="P3",
            what=f"{what}, p99",
            value=p99,
            unit="ms",
            target="<= 150 ms",
            met=enough and p99 <= 150,
        ),
        Line(
            id="P3",
            what="judgements that were not valid (lost, two writers, different)",
            value=len(lost),
            unit="",
            target="0",
            met=not lost,
        ),
    ]


async def _floor(sandbox: Sandbox) -> str:
    """Return what a pause cannot be shorter than on this machine, measured before the load."""
    store = sandbox.store(None)
    try:
        one_ms = await commit_ms(store)
    finally:
        await store.close()
    all_ms = COMMITS_IN_A_ROW * one_ms
    return (
        f"{COMMITS_IN_A_ROW} commits follow each other after the drain, and one takes"
        f" {one_ms:.1f} ms here while nothing else runs: at least {all_ms:.0f} ms"
    )


async def _move_round(sandbox: Sandbox, count: int) -> tuple[list[dict[str, float]], list[str]]:
    """Return each pause by its phases, and the checks that were not passed."""
    clusters = sandbox.spec.clusters
    async with loaded(sandbox, guarded=1, bare=0, interval_s=WRITE_INTERVAL_S) as load:
        await asyncio.sleep(1)
        for number in range(count):
            await load.move(clusters[(number + 1) % len(clusters)])
            await asyncio.sleep(BETWEEN_S)
        await load.stop_writers()
        verdicts = await load.verdicts(acknowledged_min=count)
        return _pauses(load), [v.check for v in verdicts if not v.is_valid]


def _pauses(load: Load) -> list[dict[str, float]]:
    acknowledged = load.history.acknowledged()
    # The client's times are of the monotonic clock, those of steps of the wall clock.
    to_wall_ms = time.time_ns() / 1e6 - time.monotonic_ns() / 1e6
    found = []
    for move in load.moves:
        gap = longest_gap(acknowledged, from_ns=move.began_ns, to_ns=move.ended_ns)
        if move.phase == "succeeded" and gap is not None:
            begun_ms, ended_ms = gap.from_ns / 1e6 + to_wall_ms, gap.to_ns / 1e6 + to_wall_ms
            steps = cast("list[dict[str, Any]]", move.failover["steps"])
            found.append(phases_of(steps, from_ms=begun_ms, to_ms=ended_ms))
    return found
