"""What a failover's pause was made of: its steps, laid over the gap that a client saw. Pure.

Steps are timed by the coordinator's wall clock and the gap by the client's; here both are one
machine's. What comes before the drain is done is the drain's, and what comes after the target has
opened is the time until the client has noticed, found the new cluster, and written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.report import quantile

STEPS = ("drain", "converge", "pivot", "open")
NOTICE = "client notice"
ELSEWHERE = "beside the failover"
"""Before the drain began or after the target had opened: a disk that stalls, as a rule."""
PHASES = (*STEPS, NOTICE, ELSEWHERE)


def phases_of(
    steps: Sequence[Mapping[str, Any]], *, from_ms: float, to_ms: float
) -> dict[str, float]:
    """Return how many milliseconds of a gap each phase took; they add up to it.

    A step lasts until the next one that was done has ended, so that what lies between two steps is
    the later one's: that is what its command waited for.
    """
    ended = {step["step"]: step["ended_ms"] for step in steps if step["ended_ms"] is not None}
    began = next((s["started_ms"] for s in steps if s["step"] == STEPS[0]), None)
    found: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    if began is None or from_ms >= ended.get(STEPS[-1], to_ms):
        return {**found, ELSEWHERE: to_ms - from_ms}
    at = min(to_ms, max(from_ms, began))
    found[ELSEWHERE] = at - from_ms
    for name in STEPS:
        until = min(to_ms, max(at, ended.get(name, at)))
        found[name] = until - at
        at = until
    found[NOTICE] = to_ms - at
    return found


def told(pauses: Iterable[Mapping[str, float]]) -> str:
    """Say which phase the typical pauses, and the longest, were made of."""
    ordered = sorted(pauses, key=lambda phases: sum(phases.values()))
    if not ordered:
        return "no pause was measured"
    size = len(ordered)
    typical = ordered[size * 2 // 5 : max(1, size * 3 // 5)]
    longest = ordered[-max(1, size // 50) :]
    quantiles = ", ".join(
        f"{name} {quantile([p[name] for p in ordered], 0.5):.0f} and"
        f" {quantile([p[name] for p in ordered], 0.99):.0f}"
        for name in PHASES
    )
    return (
        f"ms of each phase by itself, p50 and p99: {quantiles}; the middle fifth of the pauses:"
        f" {_means(typical)}; the longest {len(longest)}: {_means(longest)}"
    )


def _means(pauses: Sequence[Mapping[str, float]]) -> str:
    """Say what each phase took of these on average, the one that took most first."""
    means = {name: sum(p[name] for p in pauses) / len(pauses) for name in PHASES}
    most = sorted(means, key=lambda name: -means[name])
    return f"{sum(means.values()):.0f} ms = " + " + ".join(f"{n} {means[n]:.0f}" for n in most)
