"""Who was busy while something was measured: the reason for a figure, from the same run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from cli.sandbox.sandbox import Sandbox

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BUSY_CORES = 0.85
"""A process of one thread that takes so much of a core has no more to give."""

Pids = Mapping[str, Sequence[int]]
"""Processes by what they are called together."""


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has taken so far; 0 if it is gone (Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def of_sandbox(sandbox: Sandbox) -> dict[str, list[int]]:
    """Return the processes of a sandbox by what they are."""
    found: dict[str, list[int]] = {
        "coordinators": [p.pid for p in sandbox.coordinators if p.pid is not None],
        "coordination etcd": [p.pid for p in sandbox.coordination.members if p.pid is not None],
    }
    for cluster in sandbox.spec.clusters:
        found[f"replicators of {cluster}"] = [
            p.pid for p in sandbox.replicators[cluster] if p.pid is not None
        ]
        found[f"etcd of {cluster}"] = [
            pid for pid in (sandbox.etcd(cluster).pid,) if pid is not None
        ]
    return found


@attrs.define
class Busy:
    """CPU time by process since it was made, or since `again`."""

    pids: Pids
    _before: dict[str, float] = attrs.field(factory=dict, init=False)
    _began: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.again()

    def again(self) -> None:
        """Begin anew."""
        self._before = self._spent_s()
        self._began = time.monotonic()

    def cores(self) -> dict[str, float]:
        """Return how many cores each has kept busy, on average."""
        took_s = max(1e-9, time.monotonic() - self._began)
        return {n: (s - self._before[n]) / took_s for n, s in self._spent_s().items()}

    def _spent_s(self) -> dict[str, float]:
        spent = {name: sum(map(cpu_s, pids)) for name, pids in self.pids.items()}
        # With the processes that it has started and waited for.
        return {**spent, "this benchmark": sum(os.times()[:4])}

    def taken_s(self) -> dict[str, float]:
        """Return the CPU seconds that each has taken since then."""
        took_s = time.monotonic() - self._began
        return {name: share * took_s for name, share in self.cores().items()}

    def per(self, count: int, what: str) -> str:
        """Say how much CPU time all of them took for each of `count` things."""
        took_s = time.monotonic() - self._began
        return (
            f"{sum(self.cores().values()) * took_s / max(1, count) * 1e6:,.0f} us of CPU per {what}"
        )

    def why(self) -> str:
        """Say what the figure was limited by, as far as CPU time tells."""
        return told(self.cores(), os.cpu_count() or 1)


def told(cores: Mapping[str, float], cpus: int) -> str:
    """Put into words who was busy: a whole machine, a process that has one thread, or nobody."""
    shown = ", ".join(f"{name} {share:.2f}" for name, share in cores.items())
    total = sum(cores.values())
    if total >= BUSY_CORES * cpus:
        limit = f"the machine's {cpus} cores"
    else:
        one = [name for name, share in cores.items() if share >= BUSY_CORES]
        limit = f"one thread of {one[0]}" if one else "waiting, not CPU time"
    return f"limit: {limit} (cores busy: {shown})"
