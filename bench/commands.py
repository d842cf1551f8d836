"""P10: wall time of the commands people type."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import Line, quantile
from cli.sandbox.sandbox import Sandbox

RUNS = 15
RUNS_SMOKE = 3


async def run(smoke: bool) -> list[Line]:
    """Time `mesh --help` and `mesh clusters list`, beside Python doing nothing."""
    runs = RUNS_SMOKE if smoke else RUNS
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        sandbox = Sandbox.create(Path(directory) / "sandbox", clusters=("a", "b"), timing="fast")
        await sandbox.start()
        try:
            environ = {**os.environ, "MESH_CONFIG": str(sandbox.layout.context_file)}
            nothing = await asyncio.to_thread(_time, ["-c", "pass"], environ, runs)
            listed = await asyncio.to_thread(
                _time, ["-m", "cli.main", "clusters", "list"], environ, runs
            )
            helped = await asyncio.to_thread(_time, ["-m", "cli.main", "--help"], environ, runs)
        finally:
            await sandbox.stop()
    return [
        _line("mesh --help", helped, nothing, 250),
        _line("clusters list", listed, nothing, 500),
    ]


def _line(what: str, seconds: float, nothing: float, target_ms: int) -> Line:
    return Line(
        id="P10",
        what=f"{what}, median wall time",
        value=seconds * 1000,
        unit="ms",
        peer=f"python -c pass: {nothing * 1000:.0f} ms",
        ratio=seconds / nothing,
        target=f"<= {target_ms} ms",
        met=seconds * 1000 <= target_ms,
    )


def _time(arguments: Sequence[str], environ: dict[str, str], runs: int) -> float:
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], env=environ, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return quantile(times[1:], 0.5)
