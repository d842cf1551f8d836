"""P7: keys per second of a first copy, and of a reconcile that has little to do."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path

import attrs

from bench.busy import Busy, of_sandbox
from bench.disk import Disk
from bench.report import Line
from cli.sandbox.etcd import EtcdProcess
from cli.sandbox.sandbox import Sandbox
from meshkit.etcd_binary import find_etcd
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision
from meshkit.store.etcd import EtcdStore
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import Nest, Put, Txn, prefix_range
from replicator.limits import DEFAULT_LIMITS

KEYS = 1_000_000
KEYS_SMOKE = 5_000
PREFIX = b"/orders/"
VALUE_BYTES = 256
CHANGED = 0.01
LEVEL_OPERATIONS = 50
FILL_KEYS = LEVEL_OPERATIONS * LEVEL_OPERATIONS
PAGE_KEYS = DEFAULT_LIMITS.page_bytes_max // (VALUE_BYTES + 20)
"""As many as a page of a copy has of such keys."""
WITHIN_S = 600.0
SEED = 7


@attrs.frozen(kw_only=True)
class Pass:
    """One copy: how long it was under way at the target, and how many keys it wrote there."""

    seconds: float
    keys_written: int
    why: str
    """What it was limited by."""


async def run(smoke: bool, *, keys: int = KEYS) -> list[Line]:
    """Copy everything onto a standby that was away for too long, twice."""
    count = KEYS_SMOKE if smoke else keys
    changed = int(count * CHANGED)
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        sandbox = Sandbox.create(Path(directory) / "sandbox", clusters=("a", "b"), timing="fast")
        await sandbox.start()
        try:
            everything = list(range(count))
            first = await _pass(sandbox, everything, keys=count)
            some = sorted(random.Random(SEED).sample(everything, changed))
            second = await _pass(sandbox, some, keys=count)
        finally:
            await sandbox.stop()
        ceiling = await _through_writer(Path(directory) / "ceiling", count)
    enough = None if smoke else True
    return [
        Line(
            id="P7",
            what=f"first copy of {count:,} keys of {VALUE_BYTES} bytes",
            value=count / first.seconds,
            unit="keys/s",
            target=">= 40,000",
            met=enough and count / first.seconds >= 40_000,
            why=first.why,
        ),
        Line(
            id="P7",
            what="first copy, beside the ceiling: what an etcd takes of the same pages",
            value=count / first.seconds,
            unit="keys/s",
            peer=f"one writer, {PAGE_KEYS:,} keys a transaction: {ceiling:,.0f}/s",
            ratio=count / first.seconds / ceiling,
        ),
        Line(
            id="P7",
            what=f"reconcile after 1 % ({changed:,} keys, anywhere) changed",
            value=count / second.seconds,
            unit="keys/s",
            peer="the first copy",
            ratio=first.seconds / second.seconds,
            target=">= 4 x",
            met=enough and first.seconds >= 4 * second.seconds,
            why=second.why,
        ),
        Line(
            id="P7",
            what="keys that the reconcile wrote beyond those that differed",
            value=second.keys_written - changed,
            unit="keys",
            target="0",
            met=second.keys_written == changed,
        ),
    ]


async def _pass(sandbox: Sandbox, numbers: list[int], *, keys: int) -> Pass:
    """Write these keys while the standby is away, drop the history, and let it come back."""
    source, target = sandbox.store("a"), sandbox.store("b")
    try:
        for replicator in sandbox.replicators["b"]:
            await asyncio.to_thread(replicator.stop)
        await _fill(source, numbers)
        await source.compact((await source.status()).revision)
        before = (await target.status()).revision
        timing = asyncio.ensure_future(_timed(target, Revision(before + 1)))
        for replicator in sandbox.replicators["b"]:
            replicator.start()
        busy, disk = Busy(of_sandbox(sandbox)), Disk(sandbox)
        seconds = await asyncio.wait_for(timing, WITHIN_S)
        why = f"{busy.why()}; {busy.per(keys, 'key')}; {disk.why()}"
        found = await target.range(prefix_range(PREFIX), count_only=True)
        assert found.count == keys, f"{found.count} of {keys} keys arrived"
        return Pass(seconds=seconds, keys_written=await _written(target, before), why=why)
    finally:
        await asyncio.gather(source.close(), target.close())


async def _fill(source: Store, numbers: list[int]) -> None:
    draw = random.Random(len(numbers))
    for start in range(0, len(numbers), FILL_KEYS):
        some = numbers[start : start + FILL_KEYS]
        await source.commit(_nested([Put(_key(n), draw.randbytes(VALUE_BYTES)) for n in some]))


async def _through_writer(directory: Path, count: int) -> float:
    """Return the keys per second of a plain writer of the same pages, with nothing beside it."""
    process = EtcdProcess(binary=find_etcd(), directory=directory)
    await asyncio.to_thread(process.start)
    store = EtcdStore.connect([process.endpoint])
    draw = random.Random(count)
    spent_s = 0.0
    try:
        for start in range(0, count, PAGE_KEYS):
            numbers = range(start, min(count, start + PAGE_KEYS))
            page = _nested([Put(_key(n), draw.randbytes(VALUE_BYTES)) for n in numbers])
            began = time.perf_counter()
            await store.commit(page)
            spent_s += time.perf_counter() - began
    finally:
        await store.close()
        await asyncio.to_thread(process.stop)
    return count / spent_s


def _key(number: int) -> bytes:
    return PREFIX + f"{number:012d}".encode()


def _nested(puts: list[Put]) -> Txn:
    return Txn(
        operations=tuple(
            Nest(tuple(puts[at : at + LEVEL_OPERATIONS]))
            for at in range(0, len(puts), LEVEL_OPERATIONS)
        )
    )


async def _timed(target: Store, start: Revision) -> float:
    """Return how long the group was out of step, from its first mention to the last."""
    key = RegionalKeys.group_checkpoint(ClusterName("a"), GroupName("orders"))
    began: float | None = None
    async with target.watch((key, b""), start=start) as items:
        async for item in items:
            if isinstance(item, RevisionChanges):
                began = began or time.perf_counter()
                if item.changes[-1].is_delete:
                    break
    assert began is not None, "the group never fell out of step"
    return time.perf_counter() - began


async def _written(target: Store, before: Revision) -> int:
    found = await target.range(prefix_range(PREFIX), modified_after=before, keys_only=True)
    return len(found.items)
