"""Who operates the mesh: what is asked of the API, at random, and again when all has healed."""

from __future__ import annotations

import attrs

from chaos.sim.client import SimStore
from chaos.sim.plan import Act
from chaos.sim.world import COORDINATION_SITE, GROUP, PREFIX, Process, World
from coordinator.api.bodies import FailoverRequest, VerifyAsked
from coordinator.api.evacuating import Evacuating
from coordinator.api.operations import Operations
from coordinator.api.rejoining import RejoinOperations
from coordinator.api.verifying import Verifying
from coordinator.failover.loss import LossBound
from coordinator.failover.record import FailoverKind
from coordinator.mesh import read_mesh
from coordinator.registry import Registry
from meshkit.errors import MeshError
from meshkit.model import ClusterDescriptor, CoordinationLoss, Group, GroupPolicy
from meshkit.names import ClusterName, FailoverId
from meshkit.peer import PeerIdentity

_TO_ITSELF = 0.1
"""Chance that the active cluster is among those that writes may be moved to."""

_CARE_INTERVAL_MS = 1_500
_NO_FENCE_WAIT = 0.2
"""Chance that an emergency does not wait until the source is fenced."""

_ONE_AFTER_ANOTHER_MS = 60
"""How soon after an end the next move is asked for, by operators in a hurry."""

OPERATOR = PeerIdentity(role="operator", name="sim")


def add_operator(world: World) -> None:
    """Add an operator."""
    world.add("operator", COORDINATION_SITE, _operate)


def add_caretaker(world: World) -> None:
    """Add the operator who is left when all has healed, and tries again whatever is held."""
    world.add("caretaker", COORDINATION_SITE, _take_care)


async def describe(world: World) -> None:
    """Store the clusters and the group, as `mesh clusters apply` does."""
    store = SimStore(server=world.coordination, network=world.network, site=COORDINATION_SITE)
    registry = Registry(store=store, clock=world.draw_clock())
    for name in world.plan.clusters:
        descriptor = ClusterDescriptor(
            name=ClusterName(name),
            etcd_endpoints=(f"https://{name}:2379",),
            replication_endpoints=world.endpoints(name),
        )
        await registry.put_cluster(descriptor, mesh=await read_mesh(store), actor=str(OPERATOR))
    group = Group(
        name=GROUP,
        prefixes=(PREFIX,),
        members=tuple(ClusterName(name) for name in world.plan.clusters),
        policy=GroupPolicy(
            lag_ms_max=2_000,
            catch_up_lag_ms_max=500,
            catch_up_ms_max=3_000,
            pause_budget_ms=world.plan.pause_budget_ms,
            on_coordination_loss=(
                CoordinationLoss.KEEP if world.plan.keeps else CoordinationLoss.LAPSE
            ),
        ),
    )
    mesh = await read_mesh(store)
    await registry.put_group(group, mesh=mesh, active=None, actor=str(OPERATOR))


async def _operate(process: Process) -> None:
    """Do what operators do, at random."""
    world = process.world
    operator = Operator(process=process)
    plan = world.plan
    weights = [plan.weight_of(act) for act in Act]
    while True:
        pause_ms = world.rng.randint(plan.act_interval_ms // 2, plan.act_interval_ms * 2)
        if plan.is_hurried and await operator.is_idle():
            pause_ms = _ONE_AFTER_ANOTHER_MS
        await process.clock.sleep_ms(pause_ms)
        act = world.rng.choices(list(Act), weights=weights)[0]
        try:
            await operator.perform(act)
        except MeshError as error:
            world.trace.note("operator", f"{act.value}: {type(error).__name__}: {error}"[:160])
        else:
            world.acts[act] += 1


async def _take_care(process: Process) -> None:
    operator = Operator(process=process)
    while True:
        await process.clock.sleep_ms(_CARE_INTERVAL_MS)
        for care in (operator.resume, operator.resume_rejoins):
            try:
                await care()
            except MeshError as error:
                process.world.trace.note("caretaker", f"{type(error).__name__}: {error}"[:160])


@attrs.define(kw_only=True, eq=False)
class Operator:
    """One operator at the API, which is the coordinators' own code on the coordination etcd."""

    process: Process
    _store: SimStore = attrs.field(init=False)
    _operations: Operations = attrs.field(init=False)
    _count: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._store = self.process.store(self.process.world.coordination)
        self._operations = Operations(store=self._store, clock=self.process.clock)

    async def perform(self, act: Act) -> None:
        """Do one thing."""
        match act:
            case Act.MOVE:
                await self.move(await self._target())
            case Act.ABORT:
                await self.abort()
            case Act.RESUME:
                await self.resume()
            case Act.RESCUE:
                await self.rescue(await self._target())
            case Act.EVACUATE:
                await self.evacuate()
            case Act.VERIFY:
                await self.verify()

    async def move(self, target: ClusterName) -> None:
        """Begin a planned failover."""
        self._note(f"asks to move writes to {target}")
        await self._operations.begin(GROUP, self._request(FailoverKind.PROMOTE, target), OPERATOR)

    async def rescue(self, target: ClusterName) -> None:
        """Begin an emergency failover, whatever it loses; now and then without waiting."""
        request = attrs.evolve(
            self._request(FailoverKind.EMERGENCY, target),
            reason="the region looks dead",
            accept_loss=LossBound(unknown=True),
            no_fence_wait=self.process.world.rng.random() < _NO_FENCE_WAIT,
        )
        self._note(f"asks to rescue writes to {target}")
        await self._operations.begin(GROUP, request, OPERATOR)

    async def evacuate(self) -> None:
        """Have everything that is active in some cluster move to wherever it can go."""
        cluster = ClusterName(self.process.world.rng.choice(self.process.world.plan.clusters))
        self._note(f"asks to evacuate {cluster}")
        evacuating = Evacuating(store=self._store, clock=self.process.clock)
        await evacuating.evacuate(cluster, self._request(FailoverKind.PROMOTE, None), OPERATOR)

    async def verify(self) -> None:
        """Have every copy compared, and made anew where it differs."""
        self._count += 1
        asked = VerifyAsked(target=None, repair=True, request_id=f"verify-{self._count}")
        self._note("asks to verify every copy")
        verifying = Verifying(store=self._store, clock=self.process.clock)
        await verifying.ask(GROUP, asked, OPERATOR)

    def _request(self, kind: FailoverKind, target: ClusterName | None) -> FailoverRequest:
        self._count += 1
        return FailoverRequest(
            target=target,
            kind=kind,
            expect_epoch=None,
            reason="",
            change="",
            waive=(),
            dry_run=False,
            request_id=f"{self.process.domain.name}-{self._count}",
        )

    async def abort(self) -> None:
        """Abort the running failover, if there is one."""
        running = await self.running()
        if running is not None:
            self._note(f"asks to abort {running}")
            await self._operations.steering.abort(running, "", OPERATOR)

    async def resume(self) -> None:
        """Resume the running failover, if there is one."""
        running = await self.running()
        if running is not None:
            self._note(f"asks to resume {running}")
            await self._operations.steering.resume(running, "", OPERATOR)

    async def resume_rejoins(self) -> None:
        """Have every rejoin that holds tried again, and agree where one waits for that."""
        rejoining = RejoinOperations(store=self._store, clock=self.process.clock)
        for rejoin in (await rejoining.rejoins(GROUP))["rejoins"]:
            if rejoin["phase"] != "held":
                continue
            self._note(f"goes on with {rejoin['id']}")
            go_on = rejoining.approve if rejoin["needs_approval"] else rejoining.resume
            await go_on(rejoin["id"], "all has healed", OPERATOR)

    async def _target(self) -> ClusterName:
        """Return some cluster, rarely the active one."""
        rng, clusters = self.process.world.rng, self.process.world.plan.clusters
        active = (await self._operations.group(GROUP))["active"]
        others = [name for name in clusters if name != active or rng.random() < _TO_ITSELF]
        return ClusterName(rng.choice(others))

    async def is_idle(self) -> bool:
        """Return whether no failover runs, as far as can be seen."""
        try:
            return await self.running() is None
        except MeshError:
            return False

    async def running(self) -> FailoverId | None:
        """Return the failover that has not ended, if there is one."""
        view = await self._operations.group(GROUP)
        running = view["failover"]
        return FailoverId(running["id"]) if running else None

    def _note(self, what: str) -> None:
        self.process.world.trace.note("operator", what)
