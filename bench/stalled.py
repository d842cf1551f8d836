"""P8: memory of the replicators while one target is stalled under writes, and how it comes back.

The target's etcd is stopped with SIGSTOP, so its replicator lives and its connections stay open. A
second target goes on beside it: it must not notice.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import attrs

from bench.busy import Busy, of_sandbox
from bench.disk import Disk
from bench.report import Line, quantile
from bench.writing import Load, Writing
from cli.sandbox.process import MeshProcess
from cli.sandbox.sandbox import Sandbox
from meshkit.store.port import Store
from meshkit.store.txn import Put, Txn

RATE, RATE_SMOKE = 2_000, 200
SECONDS, SECONDS_SMOKE = 60.0, 3.0
VALUE_BYTES = 1024
PREFIX = b"/orders/"
KEYS = 20_000
SAMPLE_S = 0.25
POLL_S = 0.02
COME_BACK_S = 300.0
RSS_MIB_MAX = 200.0
SOURCE, STALLED, BESIDE = "a", "b", "c"


@attrs.define
class Peaks:
    """The greatest resident memory seen of each cluster's replicators, in MiB."""

    mib: dict[str, float] = attrs.field(factory=dict)

    async def watch(self, sandbox: Sandbox) -> None:
        """Sample until cancelled."""
        while True:
            for cluster in (SOURCE, STALLED):
                for process in sandbox.replicators[cluster]:
                    self.mib[cluster] = max(self.mib.get(cluster, 0.0), rss_mib(process))
            await asyncio.sleep(SAMPLE_S)


@attrs.frozen(kw_only=True)
class Stall:
    """What one run found."""

    peaks: Peaks
    rate: float
    """Writes per second that the source acknowledged."""
    write_ms: list[float]
    beside_s: float
    """From a write at the end of the stall to its being visible in the other target."""
    backlog: int
    catch_up_s: float
    why: str
    """What the writers and the catch-up were limited by."""


async def run(smoke: bool) -> list[Line]:
    """Stall one of two targets under writes; resume it, and see how fast it is back."""
    rate, seconds = (RATE_SMOKE, SECONDS_SMOKE) if smoke else (RATE, SECONDS)
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        sandbox = Sandbox.create(
            Path(directory) / "sandbox", clusters=(SOURCE, STALLED, BESIDE), timing="fast"
        )
        await sandbox.start()
        stores = {name: sandbox.store(name) for name in (SOURCE, STALLED, BESIDE)}
        try:
            found = await _stall(sandbox, stores, rate=rate, seconds=seconds)
        finally:
            sandbox.etcd(STALLED).resume()
            await asyncio.gather(*(store.close() for store in stores.values()))
            await sandbox.stop()
    return _lines(found, seconds=seconds, rate=rate, smoke=smoke)


def _lines(found: Stall, *, seconds: float, rate: int, smoke: bool) -> list[Line]:
    # What was not written at the rate that was asked for proves nothing about it.
    enough = None if smoke or found.rate < 0.9 * rate else True
    during = f"a target stalled for {seconds:.0f} s at {found.rate:,.0f} writes/s of 1 KiB"
    if found.rate < 0.9 * rate:
        during += f" ({rate:,} were wanted)"
    lines = [
        Line(
            id="P8",
            what=f"replicator of the {side}, greatest RSS, {during}",
            value=found.peaks.mib[cluster],
            unit="MiB",
            target=f"<= {RSS_MIB_MAX:.0f} MiB",
            met=enough and found.peaks.mib[cluster] <= RSS_MIB_MAX,
        )
        for side, cluster in (("source", SOURCE), ("stalled target", STALLED))
    ]
    return [
        *lines,
        Line(
            id="P8",
            what=f"catch-up by itself of {found.backlog:,} records, in {found.catch_up_s:.1f} s",
            value=found.backlog / found.catch_up_s,
            unit="records/s",
            why=found.why,
        ),
        Line(
            id="P8",
            what="commit to visible in the other target at the end of the stall",
            value=found.beside_s * 1000,
            unit="ms",
        ),
        Line(
            id="P8",
            what="acknowledgement of a write at the source meanwhile, p99",
            value=quantile(found.write_ms, 0.99),
            unit="ms",
        ),
    ]


async def _stall(
    sandbox: Sandbox, stores: Mapping[str, Store], *, rate: int, seconds: float
) -> Stall:
    await _visible(stores, await _mark(stores[SOURCE], "before"), (STALLED, BESIDE))
    peaks = Peaks()
    sampling = asyncio.create_task(peaks.watch(sandbox))
    sandbox.etcd(STALLED).pause()
    load = Load(
        prefix=PREFIX,
        count=int(rate * seconds),
        rate=rate,
        value_bytes=VALUE_BYTES,
        keys=KEYS,
        seconds=seconds,
    )
    busy, disk = Busy(of_sandbox(sandbox)), Disk(sandbox, (SOURCE, BESIDE))
    writing = await Writing.begin(sandbox.etcd_config(SOURCE), load)
    written = await writing.end()
    why = f"writing: {busy.why()}; {disk.why()}"
    last = await _mark(stores[SOURCE], "last")
    beside_s = await _visible(stores, last, (BESIDE,))
    busy.again()
    sandbox.etcd(STALLED).resume()
    catch_up_s = await _visible(stores, last, (STALLED,))
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    return Stall(
        peaks=peaks,
        rate=written.rate,
        write_ms=written.took_ms,
        beside_s=beside_s,
        backlog=len(written.sent_ns) + 1,
        catch_up_s=catch_up_s,
        why=f"{why}; catching up: {busy.why()}",
    )


async def _mark(source: Store, name: str) -> bytes:
    key = PREFIX + b"mark-" + name.encode()
    await source.commit(Txn(operations=(Put(key, b"1"),)))
    return key


async def _visible(stores: Mapping[str, Store], key: bytes, clusters: tuple[str, ...]) -> float:
    """Return how long it takes until a key is there in all of them."""
    began = time.perf_counter()
    async with asyncio.timeout(COME_BACK_S):
        for cluster in clusters:
            while await stores[cluster].get(key) is None:
                await asyncio.sleep(POLL_S)
    return time.perf_counter() - began


def rss_mib(process: MeshProcess) -> float:
    """Return the resident memory of a process; 0 if it does not run."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0.0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields.get("VmRSS", "0 kB").split()[0]) / 1024
