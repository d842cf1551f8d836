"""P3: how long writes stop in a planned failover, as a client writing every 2 ms sees it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from bench.busy import Busy, of_sandbox
from bench.report import Line, quantile, write_series
from chaos.planned import loaded
from cli.sandbox.sandbox import Sandbox

FAILOVERS = 100
FAILOVERS_SMOKE = 4
WRITE_INTERVAL_S = 0.002
BETWEEN_S = 0.25


async def run(smoke: bool) -> list[Line]:
    """Move one group round three clusters under writes, and measure the gaps."""
    count = FAILOVERS_SMOKE if smoke else FAILOVERS
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        sandbox = Sandbox.create(Path(directory) / "sandbox", timing="fast")
        await sandbox.start()
        try:
            busy = Busy(of_sandbox(sandbox))
            gaps, lost = await _move_round(sandbox, count)
            why = busy.why()
        finally:
            await sandbox.stop()
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


async def _move_round(sandbox: Sandbox, count: int) -> tuple[list[float], list[str]]:
    clusters = sandbox.spec.clusters
    async with loaded(sandbox, guarded=1, bare=0, interval_s=WRITE_INTERVAL_S) as load:
        await asyncio.sleep(1)
        for number in range(count):
            await load.move(clusters[(number + 1) % len(clusters)])
            await asyncio.sleep(BETWEEN_S)
        await load.stop_writers()
        verdicts = await load.verdicts(acknowledged_min=count)
        return [gap.ms for gap in load.pauses()], [v.check for v in verdicts if not v.is_valid]
