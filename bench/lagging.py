"""P6: the lag metric against the true lag, which only the harness knows.

The harness notes when each write was acknowledged by the source and when it was seen in the target,
and what the metric said at moments in between. The truth at a moment is the age of the oldest write
that was there and not yet in the target.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import attrs
from prometheus_client import CollectorRegistry

from bench.apart import PREFIX, SOURCE, TARGET, Apart, two_regions
from bench.report import Line, write_series
from meshkit.names import GroupName
from meshkit.ordinals import Revision
from meshkit.status import GroupHealth
from meshkit.store.port import RevisionChanges
from meshkit.store.txn import Put, Txn, prefix_range
from replicator.metrics import Reading, ReplicatorCollector

WRITE_EVERY_S = 0.02
SAMPLE_EVERY_S = 0.05
SHARE, LEAST_S = 0.05, 0.05
WANTED_PERCENT = 99.0
MINUTES_MS = 60_000
SETTLE_S = 2.0
METRIC = "mesh_replication_lag_seconds"
SERIES = "P6-lag"
"""The samples behind the figure."""


@attrs.frozen(kw_only=True)
class Phase:
    """A stretch of the run: how late records are, whether there are any, for how long."""

    what: str
    delay_s: float | None
    seconds: float
    is_written: bool = True


PHASES = (
    Phase(what="idle stream", delay_s=0, seconds=10, is_written=False),
    *(Phase(what=f"injected {s:g} s", delay_s=s, seconds=s + 10) for s in (0.25, 1, 5, 20, 60)),
    Phase(what="stuck target, 60 s", delay_s=None, seconds=60),
)
PHASES_SMOKE = (
    Phase(what="idle stream", delay_s=0, seconds=1, is_written=False),
    Phase(what="injected 0.25 s", delay_s=0.25, seconds=1.5),
    Phase(what="stuck target, 2 s", delay_s=None, seconds=2),
)
SKEWED = (Phase(what="injected 1 s", delay_s=1, seconds=11), PHASES[-1])
SKEWED_SMOKE = (Phase(what="injected 0.25 s", delay_s=0.25, seconds=1),)
SKEWS = (("the target's clock 5 min ahead", 0, 5), ("the source's clock 7 min behind", -7, 0))


@attrs.frozen
class Sample:
    """What the metric said at a moment; None: nothing."""

    at: float
    lag_s: float | None


@attrs.frozen(kw_only=True)
class Judged:
    """What the metric said at a moment, and the truth."""

    at: float
    said: float | None
    true: float


@attrs.define
class Observed:
    """What the harness saw, by its own clock."""

    written: dict[bytes, float] = attrs.field(factory=dict)
    arrived: dict[bytes, float] = attrs.field(factory=dict)
    samples: list[tuple[str, Sample]] = attrs.field(factory=list)


async def run(smoke: bool) -> list[Line]:
    """Measure with clocks that agree, and with one that is wrong by minutes."""
    series: list[dict[str, object]] = []
    lines = await _measured(PHASES_SMOKE if smoke else PHASES, "", series, smoke=smoke)
    for what, source_min, target_min in SKEWS[: 1 if smoke else None]:
        phases = SKEWED_SMOKE if smoke else SKEWED
        lines += await _measured(
            phases, what, series, source_min=source_min, target_min=target_min, smoke=smoke
        )
    write_series(SERIES, series)
    return lines


async def _measured(
    phases: Sequence[Phase],
    skew: str,
    series: list[dict[str, object]],
    *,
    source_min: int = 0,
    target_min: int = 0,
    smoke: bool,
) -> list[Line]:
    observed = Observed()
    async with two_regions(
        source_ahead_ms=source_min * MINUTES_MS, target_ahead_ms=target_min * MINUTES_MS
    ) as apart:
        start = Revision((await apart.target.status()).revision + 1)
        watching = asyncio.ensure_future(_watch(apart, start, observed))
        try:
            for number, phase in enumerate(phases):
                await _phase(apart, number, phase, observed)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    lines: list[Line] = []
    for phase in phases:
        judged = _judged(phase, observed)
        lines.append(_line(phase, skew, judged, smoke=smoke))
        what = f"{phase.what}, {skew}" if skew else phase.what
        series.append({"what": what, "samples": [attrs.asdict(each) for each in judged]})
    return lines


# --- measuring ----------------------------------------------------------------------------------


async def _phase(apart: Apart, number: int, phase: Phase, observed: Observed) -> None:
    """Run one phase; at its end everything that was written has arrived."""
    apart.delay.ms = None if phase.delay_s is None else phase.delay_s * 1000
    sampling = asyncio.ensure_future(_sample(apart, phase.what, observed))
    try:
        if phase.is_written:
            await _write(apart, number, phase.seconds, observed)
        else:
            await asyncio.sleep(phase.seconds)
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
    apart.delay.ms = 0
    async with asyncio.timeout(60):
        while len(observed.arrived) < len(observed.written):
            await asyncio.sleep(SAMPLE_EVERY_S)
    await asyncio.sleep(SETTLE_S / 10)


async def _write(apart: Apart, number: int, seconds: float, observed: Observed) -> None:
    began = time.monotonic()
    count = 0
    while (due := began + count * WRITE_EVERY_S) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        key = f"{PREFIX}{number}-{count:08d}".encode()
        sent = time.monotonic()
        await apart.source.commit(Txn(operations=(Put(key, b"v" * 64),)))
        observed.written[key] = (sent + time.monotonic()) / 2
        count += 1


async def _watch(apart: Apart, start: Revision, observed: Observed) -> None:
    async with apart.target.watch(prefix_range(PREFIX.encode()), start=start) as items:
        async for item in items:
            if isinstance(item, RevisionChanges):
                now = time.monotonic()
                observed.arrived |= dict.fromkeys((c.key for c in item.changes), now)


async def _sample(apart: Apart, what: str, observed: Observed) -> None:
    registry = CollectorRegistry()
    registry.register(ReplicatorCollector(lambda: _reading(apart)))
    labels = {"source": str(SOURCE), "target": str(TARGET)}
    while True:
        before = time.monotonic()
        lag_s = registry.get_sample_value(METRIC, labels)
        observed.samples.append((what, Sample((before + time.monotonic()) / 2, lag_s)))
        await asyncio.sleep(SAMPLE_EVERY_S)


def _reading(apart: Apart) -> Reading:
    groups: dict[GroupName, GroupHealth] = {}
    return Reading(
        cluster=SOURCE,
        streams=apart.outbound.statuses(),
        groups=groups,
        foreign_writes=0,
        leases_problem="",
    )


# --- judging ------------------------------------------------------------------------------------


def true_lag_s(observed: Observed, at: float) -> float:
    """Return the age of the oldest write that was there at a moment, and not in the target."""
    missing = [
        written
        for key, written in observed.written.items()
        if written <= at and observed.arrived.get(key, at + 1) > at
    ]
    return at - min(missing) if missing else 0.0


def is_right(said_s: float | None, true_s: float) -> bool:
    """Return whether the metric is as exact as was promised; nothing said is not."""
    return said_s is not None and abs(said_s - true_s) <= max(LEAST_S, SHARE * true_s)


def _judged(phase: Phase, observed: Observed) -> list[Judged]:
    return [
        Judged(at=sample.at, said=sample.lag_s, true=true_lag_s(observed, sample.at))
        for what, sample in observed.samples
        if what == phase.what
    ]


def _line(phase: Phase, skew: str, judged: Sequence[Judged], *, smoke: bool) -> Line:
    right = sum(is_right(each.said, each.true) for each in judged)
    errors = sorted(abs(each.said - each.true) for each in judged if each.said is not None)
    worst = errors[int(len(errors) * 0.99)] if errors else float("nan")
    percent = 100 * right / len(judged) if judged else 0.0
    longest = max((each.true for each in judged), default=0.0)
    return Line(
        id="P6",
        what=f"lag within 5 % or 50 ms, {phase.what}" + (f", {skew}" if skew else ""),
        value=percent,
        unit="% of samples",
        peer=f"true lag up to {longest:.2f} s; p99 of the error {worst * 1000:.0f} ms"
        f" ({len(judged)} samples)",
        target=f">= {WANTED_PERCENT:g} %",
        met=None if smoke else percent >= WANTED_PERCENT,
    )
