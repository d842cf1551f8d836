"""P5: how long it takes to move every group away from a cluster, with writers on some of them.

The groups' copies are not compared first (`verify: off`): that is a matter of their data, and done
by schedule. The clock runs from the request to the last permit in another cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bench.busy import Busy, of_sandbox
from bench.report import Line
from cli.api import MeshApi
from cli.sandbox.sandbox import Sandbox
from fencing.write_gate import WriteGate
from meshkit.codec import encode
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Group, GroupPolicy, VerifyMode
from meshkit.names import ClusterName, GroupName
from meshkit.store.etcd import EtcdStore
from meshkit.store.txn import Put, Txn, prefix_range

CLUSTERS = ("a", "b")
GROUPS = 1_000
GROUPS_SMOKE = 20
GATED = 5
"""So many of the groups are written to all the time."""
READY_S = 180
MOVED_S = 180
BATCH = 100


async def run(smoke: bool) -> list[Line]:
    """Evacuate one of two clusters, and measure."""
    count = GROUPS_SMOKE if smoke else GROUPS
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        sandbox = Sandbox.create(Path(directory) / "sandbox", clusters=CLUSTERS)
        await sandbox.start()
        try:
            took_s, moved, memory_mib, why = await _evacuate(sandbox, count)
        finally:
            await sandbox.stop()
    is_full = not smoke
    return [
        Line(
            id="P5",
            what=f"evacuate {count} groups, {GATED} of them under writes: until the last may write",
            value=took_s,
            unit="s",
            target="<= 5 s",
            met=(took_s <= 5 and moved == count) if is_full else None,
            why=why,
        ),
        Line(
            id="P5",
            what="groups that moved",
            value=moved,
            unit="",
            target=str(count),
            met=moved == count,
        ),
        Line(
            id="P5",
            what=f"memory of the leading coordinator and replicators with {count} groups, each",
            value=memory_mib,
            unit="MiB",
        ),
    ]


async def _evacuate(sandbox: Sandbox, count: int) -> tuple[float, int, float, str]:
    names = [GroupName(f"bench-{number:05d}") for number in range(count)]
    async with _stores(sandbox) as (coordination, a, b), sandbox.api() as api:
        await _describe(coordination, names)
        await _permits(a, names, within_s=READY_S)
        await _until_fit(api, count)
        stores = {ClusterName("a"): a, ClusterName("b"): b}
        async with _written(names[:GATED], stores):
            busy = Busy(of_sandbox(sandbox))
            began = time.monotonic()
            body = {"reason": "bench", "request_id": "bench"}
            answer = await api.post("/v1/clusters/a/evacuation", body)
            mine = [row["group"] for row in answer.body["groups"] if row["outcome"] == "begun"]
            await _permits(b, [name for name in names if name in mine], within_s=MOVED_S)
            took_s = time.monotonic() - began
            why = f"{busy.why()}; {busy.per(count, 'group')}"
        permits = await b.range(prefix_range(RegionalKeys.permits), keys_only=True)
        moved = sum(GroupName(i.key.decode().rsplit("/", 1)[1]) in names for i in permits.items)
    return took_s, moved, max(_rss_mib(p.pid) for p in sandbox.mesh_processes()), why


async def _describe(coordination: EtcdStore, names: Sequence[GroupName]) -> None:
    policy = GroupPolicy(verify=VerifyMode.OFF, pause_budget_ms=60_000)
    members = tuple(ClusterName(name) for name in CLUSTERS)
    puts = [
        Put(
            CoordinationKeys.group(name),
            encode(Group(name=name, prefixes=(f"/{name}/",), members=members, policy=policy)),
        )
        for name in names
    ]
    for start in range(0, len(puts), BATCH):
        await coordination.commit(Txn(operations=tuple(puts[start : start + BATCH])))


async def _permits(store: EtcdStore, names: Sequence[GroupName], *, within_s: float) -> None:
    """Wait until every group may be written to at this cluster, or until time is up."""
    deadline = time.monotonic() + within_s
    wanted = {RegionalKeys.permit(name) for name in names}
    while time.monotonic() < deadline:
        found = await store.range(prefix_range(RegionalKeys.permits), keys_only=True)
        if wanted <= {item.key for item in found.items}:
            return
        await asyncio.sleep(0.05)


async def _until_fit(api: MeshApi, count: int) -> None:
    """Wait until nothing stands in the way of moving any of them."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        body = {"reason": "bench", "dry_run": True}
        answer = await api.post("/v1/clusters/a/evacuation", body, is_change=False)
        fit = [row for row in answer.body["groups"] if row["outcome"] == "would_move"]
        if len(fit) >= count:
            return
        await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def _stores(sandbox: Sandbox) -> AsyncIterator[tuple[EtcdStore, EtcdStore, EtcdStore]]:
    stores = (sandbox.store(None), sandbox.store("a"), sandbox.store("b"))
    try:
        yield stores
    finally:
        for store in stores:
            await store.close()


@contextlib.asynccontextmanager
async def _written(
    names: Sequence[GroupName], stores: dict[ClusterName, EtcdStore]
) -> AsyncIterator[None]:
    """Write to some groups through the SDK while the block runs."""
    async with contextlib.AsyncExitStack() as stack:
        tasks = []
        for name in names:
            gate = WriteGate(name, routing=tuple(stores.values()), members=stores)
            await stack.enter_async_context(gate)
            tasks.append(asyncio.create_task(_write(gate, f"/{name}/".encode())))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _write(gate: WriteGate, prefix: bytes) -> None:
    number = 0
    while True:
        number += 1
        await gate.write((Put(prefix + b"%d" % (number % 100), b"v"),), deadline_ms=60_000)
        await asyncio.sleep(0.01)


def _rss_mib(pid: int | None) -> float:
    status = Path(f"/proc/{pid}/status").read_text() if pid else ""
    line = next((text for text in status.splitlines() if text.startswith("VmRSS")), "VmRSS: 0 kB")
    return int(line.split()[1]) / 1024
