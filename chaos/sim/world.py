"""The simulated mesh: sites, their etcds, and the real coordinators and replicators."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from chaos.history import History
from chaos.sim.asking import SimAsker
from chaos.sim.client import SimStore
from chaos.sim.clock import SimClock
from chaos.sim.etcd import SimEtcd
from chaos.sim.loop import NS_PER_MS, Domain, State, VirtualLoop
from chaos.sim.network import Network, Serving, Site
from chaos.sim.plan import TIMING, Act, SimPlan
from chaos.sim.trace import Trace
from coordinator.failover.record import Failover
from coordinator.leadership import Leadership as Coordinator
from fencing.election import Election
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.peer import PeerIdentity
from replicator.candidate import Replicator
from replicator.leadership import Home

GROUP = GroupName("orders")
PREFIX = "/orders/"
COORDINATION_SITE: Site = "w"

Main = Callable[["Process"], Coroutine[Any, Any, None]]


@attrs.define(kw_only=True, eq=False)
class Process:
    """A process that can be started, stopped, woken and killed, again and again."""

    world: World
    name: str
    site: Site
    main: Main
    domain: Domain = attrs.field(init=False)
    clock: SimClock = attrs.field(init=False)
    is_running: bool = attrs.field(default=False, init=False)
    starts: int = attrs.field(default=0, init=False)
    _stores: list[SimStore] = attrs.field(factory=list, init=False)

    def start(self) -> None:
        """Start it with a clock of its own."""
        if self.is_running:
            return
        world = self.world
        self.is_running = True
        self.starts += 1
        self.domain = Domain(f"{self.name}.{self.starts}")
        world.domains.append(self.domain)
        self.clock = world.draw_clock()
        task = world.loop.create_task(self.main(self), context=self.domain.context.copy())
        task.add_done_callback(self._on_ended, context=world.loop.outside)
        world.trace.note(self.name, "starts")

    def kill(self) -> None:
        """Kill it: nothing of it runs any more, what it has sent still arrives."""
        if not self.is_running:
            return
        self.is_running = False
        self.world.loop.kill_domain(self.domain)
        for store in self._stores:
            store.cut_off()
        self._stores.clear()
        self.world.network.hang_up(self.name, domain=self.domain)
        self.world.trace.note(self.name, "is killed")

    def stop(self) -> None:
        """Stop it as under SIGSTOP."""
        if self.is_running and self.domain.state is State.RUNNING:
            self.world.loop.stop_domain(self.domain)
            self.world.trace.note(self.name, "is stopped")

    def wake(self) -> None:
        """Let it go on."""
        if self.is_running and self.domain.state is State.STOPPED:
            self.world.loop.wake_domain(self.domain)
            self.world.trace.note(self.name, "wakes")

    def store(self, etcd: SimEtcd) -> SimStore:
        """Return a client of an etcd."""
        store = SimStore(server=etcd, network=self.world.network, site=self.site)
        self._stores.append(store)
        return store

    def _on_ended(self, task: asyncio.Future[None]) -> None:
        if self.is_running and not self.world.is_over:
            error = "it was cancelled" if task.cancelled() else repr(task.exception())
            self.world.failures.append(f"{self.name} ended by itself: {error}")


@attrs.define(kw_only=True, eq=False)
class World:
    """Everything there is."""

    plan: SimPlan
    rng: random.Random
    loop: VirtualLoop
    trace: Trace
    network: Network = attrs.field(init=False)
    coordination: SimEtcd = attrs.field(init=False)
    etcds: dict[ClusterName, SimEtcd] = attrs.field(factory=dict, init=False)
    processes: dict[str, Process] = attrs.field(factory=dict, init=False)
    domains: list[Domain] = attrs.field(factory=list, init=False)
    history: History = attrs.field(factory=History, init=False)
    under_way: dict[bytes, object] = attrs.field(factory=dict, init=False)
    """Writes whose end nobody has been told."""
    rescues: dict[FailoverId, Failover] = attrs.field(factory=dict, init=False)
    """Emergencies that moved authority, as they were then."""
    rejoins: dict[str, str] = attrs.field(factory=dict, init=False)
    """By id, every rejoin that began, as it stood last."""
    set_aside: int = attrs.field(default=0, init=False)
    """How many writes came to lie in quarantine."""
    promises: int = attrs.field(default=0, init=False)
    """How often a region promised not to open the group."""
    on_transition: list[Callable[[], None]] = attrs.field(factory=list, init=False)
    """Called when the record of a failover was stored."""
    failures: list[str] = attrs.field(factory=list, init=False)
    """What must not happen, whatever the faults."""
    acts: Counter[Act] = attrs.field(factory=Counter, init=False)
    """What operators asked for and were not refused."""
    moves: int = attrs.field(default=0, init=False)
    """How often authority moved."""
    is_over: bool = attrs.field(default=False, init=False)
    """Whether it is being taken apart."""

    def __attrs_post_init__(self) -> None:
        self.network = Network(loop=self.loop, rng=self.rng, weather=self.plan.weather)
        self.network.calm()
        self.coordination = self._etcd("coordination", COORDINATION_SITE, number=999)
        for number, name in enumerate(self.plan.clusters):
            self.etcds[ClusterName(name)] = self._etcd(name, name, number=100 + number)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site: one for each cluster, and the coordination etcd's."""
        return (*self.plan.clusters, COORDINATION_SITE)

    @property
    def all_etcds(self) -> tuple[SimEtcd, ...]:
        """The coordination etcd and the regions'."""
        return (self.coordination, *self.etcds.values())

    def draw_clock(self) -> SimClock:
        """Return a clock that is wrong within the plan's bounds."""
        rate, wall = self.plan.rate_ppm_max, self.plan.wall_error_ms_max
        return SimClock(
            loop=self.loop,
            rate_ppm=self.rng.randint(-rate, rate),
            began_ms=self.rng.randint(1_000, 1_000_000),
            wall_error_ms=self.rng.randint(-wall, wall),
        )

    def add(self, name: str, site: Site, main: Main) -> Process:
        """Add a process, not started."""
        process = Process(world=self, name=name, site=site, main=main)
        self.processes[name] = process
        return process

    def add_mesh(self) -> None:
        """Add coordinators and replicators."""
        sites = self.sites
        for number in range(self.plan.coordinators):
            site = sites[(number - 1) % len(sites)]
            self.add(f"coordinator-{number}", site, _coordinator)
        for cluster in self.plan.clusters:
            for number in range(self.plan.replicators):
                self.add(f"{cluster}-{number}", cluster, _replicator)

    def processes_at(self, site: Site) -> list[Process]:
        """Return the processes of one site."""
        return [process for process in self.processes.values() if process.site == site]

    def endpoints(self, cluster: str) -> tuple[str, ...]:
        """Return where a cluster's replicators are dialled."""
        return tuple(f"{cluster}-{number}" for number in range(self.plan.replicators))

    def _etcd(self, name: str, site: Site, *, number: int) -> SimEtcd:
        etcd = SimEtcd(
            clock=self.draw_clock(),
            cluster_id=number,
            lease_ttl_s_min=1,
            loop=self.loop,
            site=site,
            name=f"etcd of {name}",
        )
        etcd.start(phase_ns=self.rng.randint(1, 500) * NS_PER_MS)
        return etcd


async def _coordinator(process: Process) -> None:
    world = process.world
    store = process.store(world.coordination)
    election = Election(
        store=store,
        key=CoordinationKeys.coordinator_leader,
        value=process.name.encode(),
        ttl_s=TIMING.leader_ttl_s,
        clock=process.clock,
    )
    await Coordinator(store=store, election=election, clock=process.clock).run()


async def _replicator(process: Process) -> None:
    world, site, clock = process.world, process.site, process.clock
    cluster = ClusterName(site)
    regional = process.store(world.etcds[cluster])
    home = Home(
        cluster=cluster,
        replicator=process.name,
        regional=regional,
        coordination=process.store(world.coordination),
        dialer=world.network.dialer(cluster, site=site, domain=process.domain),
        asker=SimAsker(
            network=world.network, site=site, peer=PeerIdentity(role="cluster", name=cluster)
        ),
        timing=TIMING,
        clock=clock,
        limits=world.plan.limits,
        rng=world.rng,
    )
    election = Election(
        store=regional,
        key=RegionalKeys.replicator_leader,
        value=process.name.encode(),
        ttl_s=TIMING.leader_ttl_s,
        clock=clock,
    )
    replicator = Replicator(home, election)
    serving = Serving(
        site=site,
        domain=process.domain,
        serve=replicator.serve,
        answer=replicator.answer,
        advise=replicator.advise,
    )
    world.network.listen(process.name, serving)
    await replicator.run()
