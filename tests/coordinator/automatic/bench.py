"""A coordination etcd in memory with three regions that report, and a keeper that looks at it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from coordinator.api.automating import Automating
from coordinator.api.steering import Steering
from coordinator.automatic.keeper import LOOK_MS, AutomaticKeeper
from coordinator.automatic.record import AutomaticRecord
from coordinator.failover.past import PastFailovers
from coordinator.failover.record import Failover
from coordinator.failover.repository import FailoverRepository
from coordinator.governance.audit import AuditEntry
from coordinator.lookout import Lookout
from coordinator.mesh import read_mesh
from coordinator.registry import Registry
from fencing.election import Election
from meshkit.clock import ManualClock, settle
from meshkit.codec import Stored, decode, encode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import ClusterDescriptor, Group, GroupPolicy, Holder
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Sequence
from meshkit.peer import PeerIdentity
from meshkit.status import Applied, ClusterHealth, GroupHealth, LogHead, TargetHead
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Delete, Operation, Put, Txn, prefix_range
from tests.coordinator.automatic.facts import AUTOMATIC, ORDERS, A, B, C
from tests.coordinator.fake_region import background

ALICE = PeerIdentity(role="operator", name="alice")
TTL_MS = 9_000
HEAD = Sequence(1_000)


@attrs.define(kw_only=True, eq=False)
class Bench:
    """What the regions report is put anew with every second that passes, while they live."""

    clock: ManualClock = attrs.field(factory=ManualClock)
    store: MemoryStore = attrs.field(init=False)
    policy: GroupPolicy = AUTOMATIC
    groups: tuple[GroupName, ...] = (ORDERS,)
    living: set[ClusterName] = attrs.field(factory=lambda: {A, B, C})
    behind: int = 0
    """How many records the copies are behind."""
    out_of_step: set[ClusterName] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        self.store = MemoryStore(clock=self.clock)

    async def declare(self) -> None:
        for name in (A, B, C):
            await self.put(Keys.cluster(name), ClusterDescriptor(name=name))
        for name in self.groups:
            group = Group(name=name, prefixes=(f"/{name}/",), members=(A, B, C), policy=self.policy)
            await self.put(Keys.group(name), group)
        registry = Registry(store=self.store, clock=self.clock)
        await registry.ensure_incarnation()
        await registry.reconcile()
        await self.report()

    async def put(self, key: bytes, record: Stored) -> None:
        await self.store.commit(Txn(operations=(Put(key, encode(record)),)))

    async def delete(self, *keys: bytes) -> None:
        await self.store.commit(Txn(operations=tuple(Delete(key) for key in keys)))

    async def report(self) -> None:
        """Put what living regions report; what hangs on a dead one's lease is gone."""
        mesh = await read_mesh(self.store)
        active, epoch = (
            mesh.authorities[ORDERS].record.active,
            mesh.authorities[ORDERS].record.epoch,
        )
        operations: list[Operation] = []
        for name in (A, B, C):
            if name in self.living:
                operations.append(Put(Keys.health(name), encode(self._health(name, active, epoch))))
            else:
                operations.append(Delete(Keys.health(name)))
        if active in self.living:
            head = LogHead(
                cluster=active,
                incarnation=Incarnation(f"{active}-1"),
                sequence=HEAD,
                at_ms=self.clock.wall_ms(),
                targets={
                    name: TargetHead(
                        applied=Sequence(HEAD - self.behind), records=self.behind, lag_ms=0
                    )
                    for name in (A, B, C)
                    if name != active
                },
            )
            operations.append(Put(Keys.head(active), encode(head)))
        for name in self.groups:
            holder = Holder(group=name, epoch=epoch, cluster=active)
            is_held = active in self.living
            key = Keys.holder(name)
            operations.append(Put(key, encode(holder)) if is_held else Delete(key))
        await self.store.commit(Txn(operations=tuple(operations)))

    def _health(self, name: ClusterName, active: ClusterName, epoch: Epoch) -> ClusterHealth:
        group = GroupHealth(
            mode="open" if name == active else "superseded",
            epoch=epoch,
            command_token=NO_TOKEN,
            permit=name == active,
            in_step=name not in self.out_of_step,
        )
        reached = Applied(
            incarnation=Incarnation(f"{active}-1"), sequence=Sequence(HEAD - self.behind)
        )
        return ClusterHealth(
            cluster=name,
            replicator=f"{name}-r1",
            incarnation=Incarnation(f"{name}-1"),
            etcd_version="3.5.30",
            etcd_cluster_id="1",
            revision=10,
            raft_index=20,
            db_size_bytes=1,
            groups=dict.fromkeys(self.groups, group),
            at_ms=self.clock.wall_ms(),
            positions={} if name == active else {active: reached},
        )

    async def die(self, *names: ClusterName) -> None:
        self.living -= set(names)
        await self.report()

    async def live(self, *names: ClusterName) -> None:
        self.living |= set(names)
        await self.report()

    async def pass_s(self, seconds: int) -> None:
        """Let time pass, second by second, with what the regions report."""
        for _ in range(seconds):
            await self.report()
            await self.clock.advance_ms(LOOK_MS)

    @asynccontextmanager
    async def leading(self, store: MemoryStore | None = None) -> AsyncIterator[AutomaticKeeper]:
        """Run the keeper of a new leader inside the block."""
        store = store or self.store.connect()
        election = Election(
            store=store,
            key=Keys.coordinator_leader,
            value=b"c1",
            ttl_s=60,
            clock=self.clock,
        )
        async with election.lead() as term:
            lookout = Lookout(store=store, clock=self.clock)
            keeper = AutomaticKeeper(
                store=store,
                clock=self.clock,
                failovers=FailoverRepository(store=store, clock=self.clock, term=term),
                lookout=lookout,
            )
            work = (keeper.run(), lookout.run(), lookout.holders.run())
            async with background(*work) as tasks:
                await settle()
                yield keeper
                for task in tasks:
                    assert not task.done(), task.exception()

    # --- what came of it -----------------------------------------------------------------------

    async def failovers(self, group: GroupName = ORDERS) -> list[Failover]:
        """Return every failover of the group, oldest first."""
        loaded = await PastFailovers(store=self.store).all_of(group)
        return [each.record for each in reversed(loaded)]

    async def record(self) -> AutomaticRecord:
        item = await self.store.get(Keys.automatic(ORDERS))
        return decode(AutomaticRecord, item.value) if item else AutomaticRecord(group=ORDERS)

    async def withheld(self) -> list[str]:
        """Return what is stored to withhold a failover that is due."""
        found = (await self.record()).withheld
        return [reason.obstacle.value for reason in found.reasons] if found else []

    async def audited(self) -> list[str]:
        prefix = Keys.audit(ORDERS, 0)[:-10]
        items = (await self.store.range(prefix_range(prefix))).items
        actions = [decode(AuditEntry, item.value).action for item in items]
        return [action for action in actions if action.startswith("automatic.")]

    @property
    def automating(self) -> Automating:
        return Automating(store=self.store, clock=self.clock, coordination_ttl_ms=TTL_MS)

    async def acknowledge(self, failover: str | None = None) -> bool:
        asked = FailoverId(failover) if failover else None
        done = await self.automating.acknowledge(ORDERS, asked, "looked at it", ALICE)
        return bool(done["changed"])

    async def end(self) -> None:
        """End the failover that runs, as an operator would; nothing had been asked of anybody."""
        steering = Steering(store=self.store, clock=self.clock)
        running = await FailoverRepository(store=self.store, clock=self.clock).find_active(ORDERS)
        if running is not None:
            await steering.abort(running.record.id, "a test", ALICE)

    async def standing(self) -> dict[str, object]:
        """Return what `mesh groups show` says of it."""
        mesh = await read_mesh(self.store)
        return await self.automating.standing(mesh.group(ORDERS), mesh)


@asynccontextmanager
async def bench(**changes: object) -> AsyncIterator[Bench]:
    """Declare a mesh; time passes only when the test says so."""
    made = attrs.evolve(Bench(), **changes) if changes else Bench()
    await made.declare()
    yield made
