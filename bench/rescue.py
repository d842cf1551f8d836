"""P4: how long it takes until a client writes again, when its region is killed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.report import Line
from chaos.emergency import Rescue, rescue
from cli.sandbox.sandbox import Sandbox
from fencing.timing import PROFILES

LEASE_GONE_S = 7.0


async def run(smoke: bool) -> list[Line]:
    """Kill the active region three times, each in a mesh of its own, and measure."""
    bound_ms = PROFILES["fast"].coordination_ttl_ms + 1_500
    gone = await _measured(wait_s=LEASE_GONE_S)
    lines = [_line("from the command, the lease had run out", gone, gone.from_command_ms, 500)]
    if smoke:
        return lines
    dead = await _measured()
    blind = await _measured(no_fence_wait=True)
    return [
        _line("from the death of the region, command at once", dead, dead.from_death_ms, bound_ms),
        *lines,
        _line("from the command, --no-fence-wait", blind, blind.from_command_ms, 200),
    ]


async def _measured(*, wait_s: float = 0.0, no_fence_wait: bool = False) -> Rescue:
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        sandbox = Sandbox.create(Path(directory) / "sandbox", clusters=("a", "b"), timing="fast")
        await sandbox.start()
        try:
            return await rescue(sandbox, wait_s=wait_s, no_fence_wait=no_fence_wait)
        finally:
            await sandbox.stop()


def _line(what: str, found: Rescue, value_ms: float, target_ms: int) -> Line:
    offences = found.offences()
    told = f"; NOT AS STATED: {offences[0]}" if offences else ""
    return Line(
        id="P4",
        what=f"emergency: first acknowledged write {what}{told}",
        value=value_ms,
        unit="ms",
        target=f"<= {target_ms} ms",
        met=value_ms <= target_ms and not offences,
    )
