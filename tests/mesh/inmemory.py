"""A whole mesh in one process: memory etcds, memory links, real coordinators and replicators."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import attrs

from coordinator.api.operations import Operations
from coordinator.api.quarantining import Quarantining
from coordinator.api.rejoining import RejoinOperations
from coordinator.leadership import Leadership as Coordinator
from coordinator.mesh import read_mesh
from coordinator.registry import Registry
from fencing.election import Election
from fencing.timing import Timing
from fencing.write_gate import WriteGate
from meshkit.clock import SystemClock
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import ClusterDescriptor, Group, GroupPolicy
from meshkit.names import ClusterName, GroupName
from meshkit.peer import PeerIdentity
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import prefix_range
from replicator.candidate import Replicator
from replicator.leadership import Home
from replicator.limits import Limits
from replicator.link.lossy import MemoryNetwork

TIMING = Timing(
    coordination_ttl_ms=5_000,
    regional_ttl_ms=2_000,
    round_interval_ms=200,
    election_timeout_ms=500,
    leader_ttl_ms=3_000,
)


@attrs.define
class Process:
    """Something that runs as a task and can be killed."""

    name: str
    task: asyncio.Task[None]

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@attrs.define
class MemoryMesh:
    """Clusters, each with an etcd in memory and a number of replicators."""

    clusters: tuple[str, ...] = ("a", "b", "c")
    replicators_each: int = 1
    clock: SystemClock = attrs.field(factory=SystemClock)
    network: MemoryNetwork = attrs.field(factory=MemoryNetwork)
    coordination: MemoryStore = attrs.field(init=False)
    stores: dict[str, MemoryStore] = attrs.field(init=False)
    processes: dict[str, Process] = attrs.field(factory=dict)
    sights: dict[str, MemoryStore] = attrs.field(factory=dict)
    """By replicator, its connection to the coordination etcd."""

    def __attrs_post_init__(self) -> None:
        self.coordination = MemoryStore(clock=self.clock, cluster_id=999)
        self.stores = {
            name: MemoryStore(clock=self.clock, cluster_id=100 + number)
            for number, name in enumerate(self.clusters)
        }

    def start_replicator(self, cluster: str, number: int) -> None:
        name = f"{cluster}-{number}"
        regional = self.stores[cluster].connect()
        home = Home(
            cluster=ClusterName(cluster),
            replicator=name,
            regional=regional,
            coordination=self.sights.setdefault(name, self.coordination.connect()),
            dialer=self.network.dialer(ClusterName(cluster)),
            asker=self.network.asker(PeerIdentity(role="cluster", name=cluster)),
            timing=TIMING,
            clock=self.clock,
            limits=Limits(),
        )
        election = Election(
            store=regional,
            key=RegionalKeys.replicator_leader,
            value=name.encode(),
            ttl_s=TIMING.leader_ttl_s,
            clock=self.clock,
        )
        replicator = Replicator(home, election)
        self.network.listen(
            name, replicator.serve, answer=replicator.answer, advise=replicator.advise
        )
        self.processes[name] = Process(name, asyncio.create_task(replicator.run()))

    def start_coordinator(self, number: int) -> None:
        store = self.coordination.connect()
        election = Election(
            store=store,
            key=CoordinationKeys.coordinator_leader,
            value=f"coordinator-{number}".encode(),
            ttl_s=TIMING.leader_ttl_s,
            clock=self.clock,
        )
        leadership = Coordinator(store=store, election=election, clock=self.clock)
        name = f"coordinator-{number}"
        self.processes[name] = Process(name, asyncio.create_task(leadership.run()))

    def operations(self) -> Operations:
        return Operations(store=self.coordination, clock=self.clock)

    def quarantining(self, peer: PeerIdentity) -> Quarantining:
        asker = self.network.asker(peer)
        return Quarantining(store=self.coordination, clock=self.clock, asker=asker)

    def rejoining(self) -> RejoinOperations:
        return RejoinOperations(store=self.coordination, clock=self.clock)

    async def until_active(self, group: str = "orders") -> str:
        """Return where a group is active, once every member is in step and writes are accepted."""
        async with asyncio.timeout(30):
            while True:
                view = await self.operations().group(GroupName(group))
                is_ready = view["active"] is not None and all(
                    c["in_step"] and (c["permit"] if c["active"] else c["stream"] == "streaming")
                    for c in view["clusters"]
                )
                if is_ready:
                    return str(view["active"])
                await asyncio.sleep(0.02)

    async def apply(
        self, group: str = "orders", prefix: str = "/orders/", *, policy: GroupPolicy | None = None
    ) -> None:
        registry = Registry(store=self.coordination, clock=self.clock)
        for name in self.clusters:
            descriptor = ClusterDescriptor(
                name=ClusterName(name),
                etcd_endpoints=(f"https://{name}:2379",),
                replication_endpoints=tuple(
                    f"{name}-{number}" for number in range(self.replicators_each)
                ),
            )
            mesh = await read_mesh(self.coordination)
            await registry.put_cluster(descriptor, mesh=mesh, actor="operator/test")
        members = tuple(ClusterName(name) for name in self.clusters)
        spec = Group(
            name=GroupName(group),
            prefixes=(prefix,),
            members=members,
            policy=policy or GroupPolicy(),
        )
        mesh = await read_mesh(self.coordination)
        await registry.put_group(spec, mesh=mesh, active=None, actor="operator/test")

    def gate(self, group: str = "orders", *, inside: str | None = None) -> WriteGate:
        """Return a client's gate; one `inside` a region sees the etcd there and nothing else."""
        seen = {n: s for n, s in self.stores.items() if inside in (None, n)}
        return WriteGate(
            GroupName(group),
            routing=(self.coordination,) if inside is None else tuple(seen.values()),
            members={ClusterName(n): s for n, s in seen.items()},
            regional_ttl_ms=TIMING.regional_ttl_ms,
            clock=self.clock,
        )

    async def content(self, cluster: str, prefix: bytes = b"/orders/") -> dict[bytes, bytes]:
        result = await self.stores[cluster].range(prefix_range(prefix))
        return {item.key: item.value for item in result.items}


@contextlib.asynccontextmanager
async def running(mesh: MemoryMesh) -> AsyncIterator[MemoryMesh]:
    for number in range(2):
        mesh.start_coordinator(number)
    for cluster in mesh.clusters:
        for number in range(mesh.replicators_each):
            mesh.start_replicator(cluster, number)
    try:
        yield mesh
    finally:
        await asyncio.gather(*(process.kill() for process in mesh.processes.values()))
        await mesh.network.close()
