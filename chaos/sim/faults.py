"""Makes the drawn faults happen, alone and at once, and in the end undoes them all."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from chaos.sim.etcd import SimEtcd
from chaos.sim.loop import NS_PER_MS
from chaos.sim.network import Site, sleep_ns
from chaos.sim.plan import Fault
from chaos.sim.world import COORDINATION_SITE, Process, World


@attrs.define(kw_only=True, eq=False)
class Chaos:
    """Does harm to a world."""

    world: World
    done: dict[Fault, int] = attrs.field(factory=dict, init=False)
    """How often each fault took place: a run proves nothing about faults that did not."""
    _is_over: bool = attrs.field(default=False, init=False)

    async def run(self) -> None:
        """Do harm for as long as the plan says."""
        plan, world = self.world.plan, self.world
        world.network.weather = plan.weather
        world.on_transition.append(self._on_transition)
        until_ns = world.loop.now_ns + plan.chaos_ms * NS_PER_MS
        while True:
            pause_ms = world.rng.expovariate(1 / plan.fault_interval_ms)
            due_ns = world.loop.now_ns + int(pause_ms * NS_PER_MS)
            if not plan.faults or due_ns >= until_ns:
                break
            await sleep_ns(world.loop, due_ns - world.loop.now_ns)
            fault = world.rng.choice(plan.faults)
            self._strike(fault)
        await sleep_ns(world.loop, until_ns - world.loop.now_ns)

    def heal(self) -> None:
        """Undo everything."""
        world = self.world
        self._is_over = True
        world.network.calm()
        for etcd in world.all_etcds:
            etcd.thaw(refresh_first=True)
            etcd.restart()
        for process in world.processes.values():
            process.wake()
            process.start()
        world.trace.note("chaos", "is over; everything heals")

    def _on_transition(self) -> None:
        """Aim at a failover: what goes wrong between two of its steps matters most."""
        plan, rng, loop = self.world.plan, self.world.rng, self.world.loop
        if self._is_over or not plan.faults or rng.random() >= plan.strike_chance:
            return
        due_ns = loop.now_ns + int(rng.uniform(0, plan.strike_delay_ms) * NS_PER_MS)
        fault = rng.choice(plan.faults)
        self._at(due_ns, lambda: self._strike(fault))

    def _strike(self, fault: Fault) -> None:
        self.done[fault] = self.done.get(fault, 0) + 1
        strikes: dict[Fault, Callable[[], None]] = {
            Fault.KILL: self._kill,
            Fault.STOP: self._stop,
            Fault.LOSE_REGION: self._lose_region,
            Fault.FREEZE_REGION: self._freeze_region,
            Fault.KILL_ETCD: self._kill_etcd,
            Fault.FREEZE_ETCD: self._freeze_etcd,
            Fault.ELECT: self._elect,
            Fault.PARTITION: self._partition,
            Fault.ISOLATE: self._isolate,
            Fault.COMPACT: self._compact,
            Fault.STORM: self._storm,
            Fault.BREAK_LINKS: self._break_links,
            Fault.LOSE_COORDINATION: self._lose_coordination,
        }
        strikes[fault]()

    # --- one fault each ------------------------------------------------------------------------

    def _kill(self) -> None:
        process = self._process()
        process.kill()
        self._later(process.start)

    def _stop(self) -> None:
        process = self._process()
        process.stop()
        self._later(process.wake)

    def _lose_region(self) -> None:
        """Everything there dies, and comes back later in whatever order."""
        world, site = self.world, self._region()
        self._note(f"region {site} loses its power")
        etcd = self._etcd_at(site)
        etcd.kill()
        processes = world.processes_at(site)
        for process in processes:
            process.kill()
        self._later(lambda: self._restart(etcd))
        for process in processes:
            self._later(process.start)

    def _freeze_region(self) -> None:
        """Everything there stands still, and goes on at almost the same moment."""
        site = self._region()
        self._note(f"region {site} freezes")
        etcd = self._etcd_at(site)
        etcd.freeze()
        processes = self.world.processes_at(site)
        for process in processes:
            process.stop()

        def thaw() -> None:
            rng, loop = self.world.rng, self.world.loop
            for wake in (lambda: self._thaw(etcd), *(process.wake for process in processes)):
                after_ns = rng.randint(0, 20) * NS_PER_MS
                loop.call_at_ns(loop.now_ns + after_ns, wake, context=loop.outside)

        self._later(thaw)

    def _kill_etcd(self) -> None:
        etcd = self._etcd()
        self._note(f"kills the {etcd.name}")
        etcd.kill()
        self._later(lambda: self._restart(etcd))

    def _freeze_etcd(self) -> None:
        etcd = self._etcd()
        self._note(f"freezes the {etcd.name}")
        etcd.freeze()
        self._later(lambda: self._thaw(etcd))

    def _elect(self) -> None:
        etcd = self._etcd()
        if etcd.is_up and not etcd.is_frozen:
            self._note(f"elects a leader in the {etcd.name}: leases are refreshed")
            etcd.restart_refreshing_leases()

    def _partition(self) -> None:
        here, there = self.world.rng.sample(self.world.sites, k=2)
        self._cut([(here, there)])

    def _isolate(self) -> None:
        site = self.world.rng.choice(self.world.sites)
        self._cut([(site, other) for other in self.world.sites if other != site])

    def _lose_coordination(self) -> None:
        """Some regions, or all, do not reach it, and reach each other."""
        regions = self.world.plan.clusters
        cut_off = self.world.rng.sample(regions, k=self.world.rng.randint(1, len(regions)))
        self._cut([(site, COORDINATION_SITE) for site in cut_off])

    def _cut(self, ways: list[tuple[Site, Site]]) -> None:
        """Lose what goes one way, or both ways."""
        network = self.world.network
        if self.world.rng.random() < 0.7:
            ways = ways + [(there, here) for here, there in ways]
        self._note("cuts " + ", ".join(f"{here}->{there}" for here, there in ways))
        for here, there in ways:
            network.cut(here, there)

        def heal() -> None:
            self._note("heals " + ", ".join(f"{here}->{there}" for here, there in ways))
            for here, there in ways:
                network.heal(here, there)

        self._later(heal)

    def _compact(self) -> None:
        etcd = self._etcd()
        if etcd.is_up and not etcd.is_frozen:
            self._note(f"compacts the {etcd.name} at {etcd.history.revision}")
            etcd.history.compact(etcd.history.revision)

    def _storm(self) -> None:
        network, rng = self.world.network, self.world.rng
        before = network.weather
        self._note("a storm begins")
        network.weather = attrs.evolve(
            before, loss=rng.choice((0.05, 0.3)), spike=rng.choice((0.0, 0.2))
        )

        def calm() -> None:
            self._note("the storm is over")
            network.weather = before

        self._later(calm)

    def _break_links(self) -> None:
        self._note("breaks the links")
        self.world.network.break_links()

    # --- parts ---------------------------------------------------------------------------------

    def _restart(self, etcd: SimEtcd) -> None:
        self._note(f"the {etcd.name} starts again")
        etcd.restart()

    def _thaw(self, etcd: SimEtcd) -> None:
        self._note(f"the {etcd.name} thaws")
        etcd.thaw(refresh_first=self.world.rng.random() < 0.5)

    def _later(self, undo: Callable[[], None]) -> None:
        """Undo after a time; what the healing has undone by then is left alone."""
        after_ms = self.world.rng.uniform(10, self.world.plan.fault_ms_max)
        self._at(self.world.loop.now_ns + int(after_ms * NS_PER_MS), undo)

    def _at(self, due_ns: int, act: Callable[[], None]) -> None:
        loop = self.world.loop

        def unless_over() -> None:
            if not self._is_over:
                act()

        loop.call_at_ns(due_ns, unless_over, context=loop.outside)

    def _process(self) -> Process:
        names = [name for name in self.world.processes if name != "operator"]
        return self.world.processes[self.world.rng.choice(names)]

    def _region(self) -> Site:
        return self.world.rng.choice(self.world.plan.clusters)

    def _etcd(self) -> SimEtcd:
        return self.world.rng.choice(self.world.all_etcds)

    def _etcd_at(self, site: Site) -> SimEtcd:
        return next(etcd for etcd in self.world.all_etcds if etcd.site == site)

    def _note(self, what: str) -> None:
        self.world.trace.note("chaos", what)
