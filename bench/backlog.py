"""P1: records per second through a backlog, beside `etcdctl make-mirror` and a measured ceiling."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

from bench.busy import Busy, of_sandbox
from bench.disk import Disk
from bench.report import Line
from bench.writing import Load, Writing
from cli.sandbox.etcd import EtcdProcess
from cli.sandbox.ports import free_port
from cli.sandbox.sandbox import Sandbox
from meshkit.codec import canonical
from meshkit.etcd_binary import find_etcd
from meshkit.store.etcd import EtcdStore
from meshkit.store.port import Store
from meshkit.store.txn import Nest, Operation, Put, Txn, prefix_range

RECORDS = 100_000
RECORDS_SMOKE = 3_000
VALUE = b"v" * 256
PREFIX = b"/orders/"
PEER_S = 15.0
POLL_S = 0.02
LEVEL_OPERATIONS = 60


@attrs.frozen(kw_only=True)
class Passage:
    """How a backlog went through: records, seconds, and in how many transactions."""

    records: int
    seconds: float
    transactions: int
    why: str = ""
    """What it was limited by."""

    @property
    def rate(self) -> float:
        """Records per second."""
        return self.records / self.seconds


async def run(smoke: bool) -> list[Line]:
    """Fill a source, then let MeshKit, make-mirror and one plain writer carry the same."""
    records = RECORDS_SMOKE if smoke else RECORDS
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        sandbox = Sandbox.create(Path(directory) / "sandbox", clusters=("a", "b"), timing="fast")
        await sandbox.start()
        spare = [_etcd(Path(directory), name) for name in ("mirror", "ceiling")]
        try:
            for process in spare:
                await asyncio.to_thread(process.start)
            mesh = await _through_mesh(sandbox, records)
            peer = await _through_mirror(sandbox, spare[0], smoke=smoke)
            ceiling = await _through_writer(spare[1], records, mesh)
        finally:
            for process in spare:
                await asyncio.to_thread(process.stop)
            await sandbox.stop()
    enough = None if smoke else True
    what = f"records/s through a backlog of {records:,} single-key transactions"
    return [
        Line(
            id="P1",
            what=what,
            value=mesh.rate,
            unit="records/s",
            peer=f"make-mirror: {peer:,.0f}/s",
            ratio=mesh.rate / peer,
            target=">= 10 x",
            met=enough and mesh.rate >= 10 * peer,
            why=mesh.why,
        ),
        Line(
            id="P1",
            what=f"{what}, beside the ceiling",
            value=mesh.rate,
            unit="records/s",
            peer=f"one writer, {records // max(1, mesh.transactions)} a transaction:"
            f" {ceiling.rate:,.0f}/s",
            ratio=mesh.rate / ceiling.rate,
            target=">= 0.8 x",
            met=enough and mesh.rate >= 0.8 * ceiling.rate,
        ),
    ]


def _etcd(directory: Path, name: str) -> EtcdProcess:
    return EtcdProcess(
        binary=find_etcd(),
        name=name,
        directory=directory / name,
        client_port=free_port(),
        peer_port=free_port(),
    )


def _key(number: int) -> bytes:
    return Load(prefix=PREFIX, count=0, rate=0, value_bytes=len(VALUE)).key(number)


async def _through_mesh(sandbox: Sandbox, records: int) -> Passage:
    source, target = sandbox.store("a"), sandbox.store("b")
    try:
        for replicator in sandbox.replicators["b"]:
            await asyncio.to_thread(replicator.stop)
        await _fill(sandbox, records)
        before = (await target.status()).revision
        for replicator in sandbox.replicators["b"]:
            replicator.start()
        busy, disk = Busy(of_sandbox(sandbox)), Disk(sandbox)
        passage = await _timed(target, records, busy)
        why = f"{busy.why()}; {busy.per(records, 'record')}; {disk.why()}"
        transactions = (await target.status()).revision - before
        return attrs.evolve(passage, transactions=transactions, why=why)
    finally:
        await asyncio.gather(source.close(), target.close())


async def _fill(sandbox: Sandbox, records: int) -> None:
    load = Load(prefix=PREFIX, count=records, rate=0, value_bytes=len(VALUE))
    await (await Writing.begin(sandbox.etcd_config("a"), load)).end()


async def _count(store: Store) -> int:
    return (await store.range(prefix_range(PREFIX), count_only=True)).count


async def _timed(target: Store, records: int, busy: Busy) -> Passage:
    """Time from the first record seen to the last; how long it took to begin is not counted."""
    while (first := await _count(target)) == 0:
        await asyncio.sleep(POLL_S)
    busy.again()
    began = time.perf_counter()
    while await _count(target) < records:
        await asyncio.sleep(POLL_S)
    seconds = max(1e-6, time.perf_counter() - began)
    return Passage(records=records - first, seconds=seconds, transactions=0)


async def _through_mirror(sandbox: Sandbox, target: EtcdProcess, *, smoke: bool) -> float:
    """Return make-mirror's records per second while it copies the same keys."""
    config = sandbox.etcd_config("a")
    command = [str(find_etcd().etcdctl), "make-mirror", target.endpoint, "--prefix", "/orders/"]
    command += ["--endpoints", config.endpoints[0], "--cacert", str(config.ca)]
    command += ["--cert", str(config.cert), "--key", str(config.key)]
    store = EtcdStore.connect([target.endpoint])
    mirror = await asyncio.to_thread(
        subprocess.Popen, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return await _rate_for(lambda: _count(store), PEER_S / 5 if smoke else PEER_S)
    finally:
        mirror.kill()
        mirror.wait()
        await store.close()


async def _rate_for(count: Callable[[], Awaitable[int]], seconds: float) -> float:
    while (first := await count()) == 0:
        await asyncio.sleep(POLL_S)
    began = time.perf_counter()
    last, last_at = first, began
    while (now := time.perf_counter()) - began < seconds:
        seen = await count()
        if seen > last:
            last, last_at = seen, now
        await asyncio.sleep(POLL_S)
    return (last - first) / max(1e-6, last_at - began)


async def _through_writer(target: EtcdProcess, records: int, mesh: Passage) -> Passage:
    """Put the same data in the same batch sizes, one transaction after the other."""
    store = EtcdStore.connect([target.endpoint])
    size = max(1, records // max(1, mesh.transactions))
    checkpoint = canonical({"sequence": 0, "source": "a", "vector": {"a#0123456789ab": 0}})
    began = time.perf_counter()
    try:
        for start in range(0, records, size):
            puts = [Put(_key(n), VALUE) for n in range(start, min(records, start + size))]
            operations: list[Operation] = [Put(b"/mesh/v1/checkpoint/a", checkpoint)]
            operations += [
                Nest(tuple(puts[i : i + LEVEL_OPERATIONS]))
                for i in range(0, len(puts), LEVEL_OPERATIONS)
            ]
            await store.commit(Txn(operations=tuple(operations)))
    finally:
        await store.close()
    seconds = time.perf_counter() - began
    return Passage(records=records, seconds=seconds, transactions=records // size)
