"""A source and a target on real etcds: streams in this process, every message through the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs

from meshkit.clock import SystemClock
from meshkit.codec import decode
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Incarnation, Revision
from meshkit.regional import Checkpoint
from meshkit.status import StreamStatus
from meshkit.store.etcd import EtcdStore, EtcdTimeouts
from meshkit.store.txn import Txn, prefix_range
from replicator.inbound import Inbound
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.link.lossy import MemoryNetwork
from replicator.link.port import TargetEnd
from replicator.messages import ToSource, ToTarget
from replicator.outbound import Outbound
from replicator.wire.convert import source_bytes, source_message, target_bytes, target_message
from tests.replicator.mesh import A, B, Mesh, Region

QUICK = EtcdTimeouts(request_ms=2_000, connect_ms=500)
DEADLINE_S = 60.0
T = TypeVar("T")


@attrs.define
class _OverTheWire:
    """A link whose messages become bytes and messages again."""

    inner: TargetEnd
    network: WireNetwork

    async def send(self, message: ToSource) -> None:
        await self.inner.send(source_message(source_bytes(message)))

    async def receive(self) -> ToTarget:
        raw = target_bytes(await self.inner.receive())
        self.network.largest_bytes = max(self.network.largest_bytes, len(raw))
        return target_message(raw)

    async def close(self) -> None:
        await self.inner.close()


class WireNetwork(MemoryNetwork):
    """A network in memory that remembers how large its largest message was."""

    def __init__(self) -> None:
        super().__init__()
        self.largest_bytes = 0

    def connect(self, target: ClusterName, source: ClusterName, endpoint: str) -> TargetEnd:
        return _OverTheWire(super().connect(target, source, endpoint), self)


class RealMesh(Mesh):
    """Cluster A streams to cluster B; both are etcds. Time is real."""

    def __init__(self, source: EtcdStore, target: EtcdStore, *, limits: Limits) -> None:
        super().__init__(limits=limits)
        self.clock = SystemClock()  # type: ignore[assignment]
        self.network = WireNetwork()
        self.stores = {A: source, B: target}
        for name, store in self.stores.items():
            outbound = Outbound(
                store=store,
                clock=self.clock,
                cluster=name,
                incarnation=Incarnation(f"{name}-1"),
                limits=limits,
            )
            self.regions[name] = Region(name, store, outbound)  # type: ignore[arg-type]
        self[A].outbound.set_targets([B])

    async def start(self, *_: ClusterName) -> None:
        source, target = self[A], self[B]
        target.inbound = Inbound(
            store=self.stores[B],
            clock=self.clock,
            cluster=B,
            dialer=self.network.dialer(B),
            limits=self.limits,
        )
        target.inbound.set_sources({A: ("a:1",)})
        loop = asyncio.get_running_loop()
        source.tasks = [loop.create_task(source.outbound.run())]
        target.tasks = [loop.create_task(target.inbound.run())]
        self.network.listen("a:1", source.outbound.serve)

    @property
    def status(self) -> StreamStatus:
        """What the source says about the stream."""
        (found,) = self[A].outbound.statuses()
        return found

    async def until(self, claim: Callable[[], bool], *, within_ms: int = 60_000) -> None:
        async def holds() -> bool:
            return claim()

        await self.until_async(holds, within_ms=within_ms)

    async def until_async(
        self, claim: Callable[[], Awaitable[bool]], *, within_ms: int = 60_000
    ) -> None:
        async with asyncio.timeout(within_ms / 1000):
            while not await claim():
                await asyncio.sleep(0.02)

    async def copied(self, group: GroupName) -> None:
        """Return once the group is in step at the target."""
        inbound = self[B].inbound
        assert inbound is not None
        await self.until(lambda: inbound.in_step(group))

    async def applied(self, revision: Revision) -> None:
        """Return once the target's checkpoint is at a revision of the source, or beyond."""

        async def is_there() -> bool:
            inbound = self[B].inbound
            assert inbound is not None
            stored = inbound.position(A)
            return stored is not None and stored.sequence >= revision

        await self.until_async(is_there)

    async def copy_of(self, at: ClusterName, prefix: bytes) -> dict[bytes, bytes]:
        found = await self.stores[at].range(prefix_range(prefix))
        return {item.key: item.value for item in found.items}

    async def stored_checkpoint(self) -> Checkpoint | None:
        item = await self.stores[B].get(RegionalKeys.checkpoint(A))
        return decode(Checkpoint, item.value) if item else None

    async def commit_at(self, at: ClusterName, txn: Txn) -> Revision:
        return (await self.stores[at].commit(txn, timeout_ms=30_000)).revision


@asynccontextmanager
async def real_mesh(
    source: str, *targets: str, limits: Limits = DEFAULT_LIMITS
) -> AsyncIterator[RealMesh]:
    """Connect to a source's endpoint and the target's, and stream while the block lasts."""
    stores = [
        EtcdStore.connect([source], timeouts=QUICK),
        EtcdStore.connect(targets, timeouts=QUICK),
    ]
    mesh = RealMesh(*stores, limits=limits)
    await mesh.start()
    try:
        yield mesh
    finally:
        await mesh.close()
        for store in stores:
            await store.close()
