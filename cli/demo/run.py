"""The demo from beginning to end: load, write, move writes and back, prove, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import attrs

from cli.api import MeshApi
from cli.demo.history import History, Told
from cli.demo.objects import ORDERS_PREFIX, StoredObject, batches
from cli.demo.report import DemoReport, Move, proofs
from cli.demo.screen import Screen
from cli.demo.writers import CompareWriter, GuardedWriter, ObjectWriter, Writer
from cli.follow import Progress, follow
from cli.render import Output, shown_ms
from cli.sandbox.running import StepLines
from cli.sandbox.sandbox import Sandbox
from fencing.timing import timing_of
from fencing.write_gate import WriteGate
from meshkit.errors import MeshError
from meshkit.names import ClusterName, GroupName, group_name
from meshkit.store.etcd import EtcdStore
from meshkit.store.txn import Put, Txn, prefix_range

ORDERS = group_name("orders")
DEMO = group_name("demo")
_GUARDED_WRITERS = 4
_GUARDED_INTERVAL_S = 0.01
_COMPARE_INTERVAL_S = 0.02
_OBJECT_INTERVAL_S = 0.05
_FOLLOW_MS = 30_000
_SETTLE_S = 15.0
_FIRST_WRITES_S = 20.0


@attrs.define(kw_only=True)
class DemoRun:
    """One run of the demo on a sandbox that is not started yet."""

    sandbox: Sandbox
    objects: list[StoredObject]
    prefixes: Mapping[GroupName, str]
    duration_s: float
    output: Output
    histories: dict[GroupName, History] = attrs.field(init=False)
    moves: list[Move] = attrs.field(factory=list)
    began: float = attrs.field(factory=time.monotonic)

    def __attrs_post_init__(self) -> None:
        self.histories = {group: History() for group in self.prefixes}

    async def run(self, steps: StepLines) -> DemoReport:
        """Run it all and return what was found; the sandbox is left running."""
        home, away = self.sandbox.spec.clusters[:2]
        await self.sandbox.start_stores(report=steps.begin)
        steps.end()
        async with AsyncExitStack() as stack:
            stores = {c: self._opened(stack, c) for c in self.sandbox.spec.clusters}
            self._say(f"first load: {len(self.objects)} objects into the etcd of {home}")
            await self._load(stores[home])
            await self.sandbox.start(report=steps.begin)
            steps.end()
            api = await stack.enter_async_context(self.sandbox.api())
            copied = await self._copies(stores, DEMO)
            async with self._writing(stores):
                screen = Screen(api=api, histories=self.histories, output=self.output)
                async with screen.shown():
                    await self._first_writes()
                    await asyncio.sleep(self.duration_s)
                    await self._move_all(api, away, kind="promote")
                    await asyncio.sleep(self.duration_s)
                    await self._move_all(api, None, kind="failback")
                    await asyncio.sleep(self.duration_s)
            copies = await self._settled(stores)
        return DemoReport(
            clusters=tuple(self.sandbox.spec.clusters),
            histories=self.histories,
            moves=self.moves,
            proofs=proofs(
                objects=self.objects,
                copied=copied,
                histories=self.histories,
                copies=copies,
                moves=self.moves,
            ),
            objects=len(self.objects),
            elapsed_s=time.monotonic() - self.began,
        )

    def _say(self, line: str) -> None:
        self.output.note(f"{time.monotonic() - self.began:5.1f}s  {line}")

    def _opened(self, stack: AsyncExitStack, cluster: str) -> EtcdStore:
        store = self.sandbox.store(cluster)
        stack.push_async_callback(store.close)
        return store

    async def _load(self, store: EtcdStore) -> None:
        """Put the objects as any software would have before MeshKit came."""
        for batch in batches(self.objects):
            puts = tuple(Put(obj.key.encode(), obj.value.encode()) for obj in batch)
            await store.commit(Txn(operations=puts))

    @asynccontextmanager
    async def _writing(self, stores: Mapping[ClusterName, EtcdStore]) -> AsyncIterator[None]:
        ttl_ms = timing_of(self.sandbox.spec.timing).regional_ttl_ms
        stopping = asyncio.Event()
        async with AsyncExitStack() as stack:
            gates = {
                group: await stack.enter_async_context(
                    WriteGate(group, members=stores, regional_ttl_ms=ttl_ms)
                )
                for group in self.prefixes
            }
            async with asyncio.TaskGroup() as tasks:
                for writer in self._writers(gates, stores):
                    tasks.create_task(writer.run(stopping))
                try:
                    yield
                finally:
                    stopping.set()

    def _writers(
        self, gates: Mapping[GroupName, WriteGate], stores: Mapping[ClusterName, EtcdStore]
    ) -> list[Writer]:
        orders = self.histories[ORDERS]
        guarded: list[Writer] = [
            GuardedWriter(
                name=f"sdk-{number}",
                gate=gates[ORDERS],
                history=orders,
                prefix=ORDERS_PREFIX,
                interval_s=_GUARDED_INTERVAL_S,
            )
            for number in range(1, _GUARDED_WRITERS + 1)
        ]
        compare = CompareWriter(
            name="compare-1",
            group=ORDERS,
            stores=stores,
            history=orders,
            prefix=ORDERS_PREFIX,
            interval_s=_COMPARE_INTERVAL_S,
        )
        objects = ObjectWriter(
            name="objects",
            gate=gates[DEMO],
            history=self.histories[DEMO],
            objects=self.objects,
            interval_s=_OBJECT_INTERVAL_S,
        )
        return [*guarded, compare, objects]

    async def _first_writes(self) -> None:
        deadline = time.monotonic() + _FIRST_WRITES_S
        while any(not history.count(Told.DONE) for history in self.histories.values()):
            if time.monotonic() > deadline:
                raise MeshError("no write was acknowledged in time")
            await asyncio.sleep(0.05)
        self._say(f"{_GUARDED_WRITERS + 1} writers on the SDK and 1 with the compare alone write")

    async def _move_all(self, api: MeshApi, target: str | None, *, kind: str) -> None:
        where = f"to {target}" if target else "back"
        self._say(f"{kind}: moving writes of {' and '.join(self.prefixes)} {where}, under load")
        async with asyncio.TaskGroup() as tasks:
            for group in self.prefixes:
                tasks.create_task(self._move(api, group, target, kind=kind))

    async def _move(self, api: MeshApi, group: GroupName, target: str | None, *, kind: str) -> None:
        body = {"kind": kind, "reason": "mesh demo"} | ({"target": target} if target else {})
        began_ns = time.monotonic_ns()
        answer = await api.post(f"/v1/groups/{group}/failovers", body)
        failover = answer.body["failover"]
        if failover is None:
            raise MeshError(f"{kind} of {group}: {answer.body.get('message')}")
        progress = Progress(self.output, label=f"{group:<7}")
        failover = await follow(
            api, failover, output=self.output, timeout_ms=_FOLLOW_MS, progress=progress
        )
        move = Move(
            failover=failover, group=group, from_ns=began_ns, to_ns=time.monotonic_ns(), kind=kind
        )
        self.moves.append(move)
        paused = shown_ms(failover.get("pause_ms"))
        self._say(
            f"{group}: {failover['source']} -> {failover['target']} {failover['phase']}"
            f" (epoch {failover['epoch_after']}), paused {paused} says the coordinator"
        )

    async def _copies(
        self, stores: Mapping[ClusterName, EtcdStore], group: GroupName
    ) -> dict[str, dict[bytes, bytes]]:
        key_range = prefix_range(self.prefixes[group].encode())
        found = {}
        for cluster, store in stores.items():
            items = (await store.range(key_range)).items
            found[str(cluster)] = {item.key: item.value for item in items}
        return found

    async def _settled(
        self, stores: Mapping[ClusterName, EtcdStore]
    ) -> dict[GroupName, dict[str, dict[bytes, bytes]]]:
        """Return every copy of every group, once they are equal or have had time enough to be."""
        self._say("writers stopped; reading every copy")
        deadline = time.monotonic() + _SETTLE_S
        while True:
            copies = {group: await self._copies(stores, group) for group in self.prefixes}
            equal = all(
                copy == found[self.sandbox.spec.clusters[0]]
                for found in copies.values()
                for copy in found.values()
            )
            if equal or time.monotonic() > deadline:
                return copies
            await asyncio.sleep(0.1)
