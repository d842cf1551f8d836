"""P2: added delay from a commit in the source to its being visible in the target."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import attrs

from bench.alone import commit_ms
from bench.backlog import VALUE
from bench.busy import Busy, of_sandbox
from bench.disk import Disk
from bench.report import Line, quantile
from bench.writing import NUMBER_DIGITS, Load, Writing
from cli.sandbox.sandbox import Sandbox
from meshkit.etcd_binary import find_etcd
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import Put, Txn, prefix_range

SECONDS = 10.0
SECONDS_SMOKE = 2.0
PREFIX = b"/orders/"
BARE_SOURCE = b"/bare/"
BARE_TARGET = b"/bare-copy/"
MIRRORED, MIRROR = b"/peer/", b"/peer-copy/"
FAST, SLOW = 1_000, 300
MIRROR_WITHIN_S = 30.0
MEMORY = Path("/dev/shm")  # noqa: S108 -- files are made in a directory of a name of its own
HAS_MEMORY = MEMORY.is_dir()


@attrs.frozen(kw_only=True)
class Delays:
    """Milliseconds from an acknowledgement to the other side's event, write by write."""

    fast: list[float]
    slow: list[float]
    bare: list[float]
    """Of the bare loop, at the slow rate..."""
    mirror: list[float]
    """...and of `etcdctl make-mirror`."""
    why: str


async def run(smoke: bool) -> list[Line]:
    """Write at two rates; watch the target; beside it, a bare watch-then-put loop."""
    seconds = SECONDS_SMOKE if smoke else SECONDS
    async with _two() as sandbox:
        source, target = sandbox.store("a"), sandbox.store("b")
        try:
            fast, why = await _fast(sandbox, target, seconds=seconds)
            there = PREFIX + b"s"
            slow = await _delays(sandbox, target, there, there, rate=SLOW, seconds=seconds)
            loop = asyncio.create_task(_bare_loop(source, target))
            bare = await _delays(
                sandbox, target, BARE_SOURCE, BARE_TARGET, rate=SLOW, seconds=seconds
            )
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            async with _mirrored(sandbox, source, target):
                mirror = await _delays(
                    sandbox, target, MIRRORED, MIRROR, rate=SLOW, seconds=seconds
                )
        finally:
            await asyncio.gather(source.close(), target.close())
    found = Delays(fast=fast, slow=slow, bare=bare, mirror=mirror, why=why)
    lines = _lines(found, smoke=smoke)
    return [*lines, *await _without_disk(seconds)] if HAS_MEMORY else lines


@contextlib.asynccontextmanager
async def _two(place: Path | None = None) -> AsyncIterator[Sandbox]:
    """Run two regions, their files in `place`."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-", dir=place) as directory:
        sandbox = Sandbox.create(Path(directory) / "sandbox", clusters=("a", "b"), timing="fast")
        await sandbox.start()
        try:
            yield sandbox
        finally:
            await sandbox.stop()


async def _fast(sandbox: Sandbox, target: Store, *, seconds: float) -> tuple[list[float], str]:
    """Return the delays at the fast rate, and what they were limited by."""
    alone_ms = await commit_ms(target)
    busy, disk = Busy(of_sandbox(sandbox)), Disk(sandbox)
    delays = await _delays(sandbox, target, PREFIX, PREFIX, rate=FAST, seconds=seconds)
    floor = f"one commit at the target takes {alone_ms:.1f} ms while nothing else runs"
    return delays, f"{floor}; {busy.why()}; {busy.per(len(delays), 'write')}; {disk.why()}"


async def _without_disk(seconds: float) -> list[Line]:
    """Return what the fast rate's delays are where no disk is waited for, beside the figure."""
    async with _two(MEMORY) as sandbox:
        target = sandbox.store("b")
        try:
            delays, why = await _fast(sandbox, target, seconds=seconds)
        finally:
            await target.close()
    what = f"commit to visible at {FAST:,} writes/s, etcds' files in memory instead of on the disk"
    return [
        Line(id="P2", what=f"{what}, p50", value=quantile(delays, 0.5), unit="ms", why=why),
        Line(id="P2", what=f"{what}, p99", value=quantile(delays, 0.99), unit="ms"),
    ]


@contextlib.asynccontextmanager
async def _mirrored(sandbox: Sandbox, source: Store, target: Store) -> AsyncIterator[None]:
    """Have `etcdctl make-mirror` copy a prefix while the block runs, from its first key on."""
    here, there = sandbox.etcd_config("a"), sandbox.etcd_config("b")
    command = [str(find_etcd().etcdctl), "make-mirror", there.endpoints[0]]
    command += ["--endpoints", here.endpoints[0], "--cacert", str(here.ca)]
    command += ["--cert", str(here.cert), "--key", str(here.key)]
    command += ["--dest-cacert", str(there.ca), "--dest-cert", str(there.cert)]
    command += ["--dest-key", str(there.key)]
    command += ["--prefix", MIRRORED.decode(), "--dest-prefix", MIRROR.decode()]
    await source.commit(Txn(operations=(Put(MIRRORED + b"first", b"1"),)))
    process = await asyncio.to_thread(
        subprocess.Popen, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(MIRROR_WITHIN_S):
            while await target.get(MIRROR + b"first") is None:
                await asyncio.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _lines(found: Delays, *, smoke: bool) -> list[Line]:
    enough = None if smoke else True
    p50, p99 = quantile(found.fast, 0.5), quantile(found.fast, 0.99)
    slow99, bare99 = quantile(found.slow, 0.99), quantile(found.bare, 0.99)
    mirror99 = quantile(found.mirror, 0.99)
    return [
        Line(
            id="P2",
            what=f"commit to visible at {FAST:,} writes/s, p50",
            value=p50,
            unit="ms",
            target="<= 5 ms",
            met=enough and p50 <= 5,
            why=found.why,
        ),
        Line(
            id="P2",
            what=f"commit to visible at {FAST:,} writes/s, p99",
            value=p99,
            unit="ms",
            target="<= 25 ms",
            met=enough and p99 <= 25,
        ),
        Line(
            id="P2",
            what=f"commit to visible at {SLOW} writes/s, p99",
            value=slow99,
            unit="ms",
            peer=f"watch, then put: {bare99:.1f} ms",
            ratio=slow99 / bare99,
            target="<= 2 x",
            met=enough and slow99 <= 2 * bare99,
        ),
        Line(
            id="P2",
            what=f"commit to visible at {SLOW} writes/s, p99, beside the peer",
            value=slow99,
            unit="ms",
            peer=f"make-mirror: {mirror99:.1f} ms",
            ratio=slow99 / mirror99,
        ),
    ]


async def _delays(
    sandbox: Sandbox, target: Store, written: bytes, seen: bytes, *, rate: int, seconds: float
) -> list[float]:
    """Return, for each write, the milliseconds from its acknowledgement to the target's event."""
    count = int(rate * seconds)
    run = f"{time.time_ns():x}-".encode()
    arrived_ns = [0] * count
    start = Revision((await target.status()).revision + 1)
    async with target.watch(prefix_range(seen + run), start=start) as items:

        async def watch() -> None:
            left = count
            async for item in items:
                if isinstance(item, RevisionChanges):
                    now = time.perf_counter_ns()
                    for key in item.keys:
                        arrived_ns[int(key[-NUMBER_DIGITS:])] = now
                    left -= len(item.keys)
                if left <= 0:
                    return

        watching = asyncio.create_task(watch())
        load = Load(prefix=written + run, count=count, rate=rate, value_bytes=len(VALUE))
        writing = await Writing.begin(sandbox.etcd_config("a"), load)
        found = await writing.end()
        await asyncio.wait_for(watching, timeout=60)
    pairs = zip(arrived_ns, found.acknowledged_ns, strict=True)
    return [max(0.0, (arrived - acknowledged) / 1e6) for arrived, acknowledged in pairs]


async def _bare_loop(source: Store, target: Store) -> None:
    """The simplest mirror there is: each event is put, one after the other."""
    start = Revision((await source.status()).revision + 1)
    async with source.watch(prefix_range(BARE_SOURCE), start=start) as items:
        async for item in items:
            if isinstance(item, RevisionChanges):
                for change in item.changes:
                    key = BARE_TARGET + change.key.removeprefix(BARE_SOURCE)
                    await target.commit(Txn(operations=(Put(key, change.item.value),)))
