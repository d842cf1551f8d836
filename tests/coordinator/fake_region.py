"""Regions that obey commands by the rules of tokens, on the coordination etcd alone.

They keep a fence record in memory, as if their regional etcd never failed, and a shared log of
writes: enough to see who may write and what is where.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from coordinator.registry import Registry
from meshkit.clock import ManualClock, settle
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.keys import CoordinationKeys as Keys
from meshkit.mirror import PrefixMirror
from meshkit.model import Authority, ClusterDescriptor, Group, GroupPolicy
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Sequence, Token
from meshkit.status import ClusterHealth, GroupHealth, Lag, StreamState, StreamStatus
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from meshkit.verification import Counts, Verify, VerifyOutcome, VerifyResult

A, B, C = ClusterName("us-east"), ClusterName("eu-west"), ClusterName("ap-south")
ORDERS = GroupName("orders")


@attrs.define
class Log:
    """Writes acknowledged by the active cluster, and how far each other cluster has them."""

    head: int = 10
    applied: dict[ClusterName, int] = attrs.field(factory=dict)


@attrs.define
class GroupFence:
    """The fence of one group in one region."""

    mode: str = "passive"
    epoch: int = 1
    command_token: Token = NO_TOKEN
    cut: int | None = None


@attrs.define(kw_only=True, eq=False)
class FakeRegion:
    """One region's replicator."""

    cluster: ClusterName
    store: MemoryStore
    clock: ManualClock
    log: Log
    fences: dict[GroupName, GroupFence] = attrs.field(factory=dict)
    silent: set[CommandStep] = attrs.field(factory=set)
    deaf: set[GroupName] = attrs.field(factory=set)
    refuses: dict[CommandStep, str] = attrs.field(factory=dict)
    obeyed: list[str] = attrs.field(factory=list)
    compares: bool = True
    """Whether it answers requests to compare its copies..."""
    differing: int = 0
    """...and how many keys it finds to differ."""
    uncomparable: str = ""

    def fence(self, group: GroupName = ORDERS) -> GroupFence:
        return self.fences.setdefault(group, GroupFence())

    def may_write(self, group: GroupName = ORDERS) -> bool:
        return self.fence(group).mode == "open"

    async def run(self) -> None:
        mirror = PrefixMirror(self.store, Keys.commands_to(self.cluster), clock=self.clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(mirror.run())
            tasks.create_task(self._compare())
            async for _ in mirror.changes():
                for item in list(mirror.entries.values()):
                    command = decode(Command, item.value)
                    token = Token(incarnation=command.incarnation, revision=item.mod_revision)
                    await self.on_command(command, token)

    async def _compare(self) -> None:
        """Answer requests to compare a copy, as told to."""
        requests = PrefixMirror(self.store, Keys.verifies_at(self.cluster), clock=self.clock)
        answered: set[str] = set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(requests.run())
            async for _ in requests.changes():
                for key, item in list(requests.entries.items()):
                    if key.endswith(b"/result") or not self.compares:
                        continue
                    request = decode(Verify, item.value)
                    if request.id not in answered:
                        answered.add(request.id)
                        await self.put_result(request)

    async def put_result(self, request: Verify) -> None:
        """Say what comparing the copy came to."""
        authority = await self.store.get(Keys.authority(request.group))
        assert authority is not None
        followed = decode(Authority, authority.value)
        outcome = VerifyOutcome.DIFFERENT if self.differing else VerifyOutcome.EQUAL
        result = VerifyResult(
            id=request.id,
            group=request.group,
            target=self.cluster,
            outcome=VerifyOutcome.REFUSED if self.uncomparable else outcome,
            source=None if self.uncomparable else followed.active,
            epoch=None if self.uncomparable else followed.epoch,
            counts=Counts(source_keys=7, target_keys=7, different=self.differing),
            reason=self.uncomparable,
            ended_ms=self.clock.wall_ms(),
        )
        key = Keys.verify_result(self.cluster, request.group)
        await self.store.commit(Txn(operations=(Put(key, encode(result)),)))

    async def on_command(self, command: Command, token: Token) -> None:
        """Obey a command, unless a newer one was; repeat the answer to the same one."""
        fence = self.fence(command.group)
        if command.step in self.silent or command.group in self.deaf:
            return
        if token < fence.command_token:
            return
        if command.step in self.refuses:
            await self._answer(command, token, refused=self.refuses[command.step])
            return
        if token > fence.command_token:
            self.obeyed.append(command.step.value)
            self._act(command, fence)
            if command.step not in {CommandStep.CATCH_UP, CommandStep.CONVERGE}:
                fence.command_token = token
        await self._answer(command, token)

    def _act(self, command: Command, fence: GroupFence) -> None:
        match command.step:
            case CommandStep.DRAIN:
                fence.mode, fence.cut = "drained", fence.cut or self.log.head
            case CommandStep.UNDRAIN:
                fence.mode, fence.cut = "open", None
            case CommandStep.OPEN:
                fence.mode, fence.epoch, fence.cut = "open", command.epoch, None
            case CommandStep.REVERSE:
                fence.mode, fence.epoch = "passive", command.epoch
            case CommandStep.CONVERGE:
                self.log.applied[self.cluster] = self.log.head
            case CommandStep.CATCH_UP:
                pass

    async def _answer(self, command: Command, token: Token, *, refused: str = "") -> None:
        fence = self.fence(command.group)
        is_drain = command.step is CommandStep.DRAIN
        answer = Answer(
            group=command.group,
            cluster=self.cluster,
            step=command.step,
            failover=command.failover,
            token=token,
            outcome=AnswerOutcome.REFUSED if refused else AnswerOutcome.DONE,
            reason=refused,
            incarnation=Incarnation(f"{self.cluster}-1"),
            cut=Sequence(fence.cut) if is_drain and fence.cut is not None else None,
            prefixes=(f"/{command.group}/",) if is_drain else (),
            watermark=Sequence(self.log.applied.get(self.cluster, 0))
            if command.step is CommandStep.CONVERGE
            else None,
            opened=Sequence(1) if command.step is CommandStep.OPEN else None,
        )
        await self.store.commit(
            Txn(operations=(Put(Keys.answer(self.cluster, command.group), encode(answer)),))
        )


@attrs.define(kw_only=True, eq=False)
class FakeMesh:
    """A coordination etcd with two regions and one group, active at A."""

    clock: ManualClock = attrs.field(factory=ManualClock)
    store: MemoryStore = attrs.field(init=False)
    log: Log = attrs.field(factory=Log)
    regions: dict[ClusterName, FakeRegion] = attrs.field(init=False)
    policy: GroupPolicy = attrs.field(factory=GroupPolicy)
    groups: list[GroupName] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.store = MemoryStore(clock=self.clock)
        self.regions = {
            name: FakeRegion(
                cluster=name, store=self.store.connect(), clock=self.clock, log=self.log
            )
            for name in (A, B)
        }

    async def declare(self) -> None:
        """Put clusters, the group and its first epoch, and what the regions report."""
        puts = [
            Put(
                Keys.cluster(name),
                encode(ClusterDescriptor(name=name, etcd_endpoints=(f"https://{name}:2379",))),
            )
            for name in (A, B, C)
        ]
        group = Group(name=ORDERS, prefixes=("/orders/",), members=(A, B), policy=self.policy)
        puts.append(Put(Keys.group(ORDERS), encode(group)))
        await self.store.commit(Txn(operations=tuple(puts)))
        registry = Registry(store=self.store, clock=self.clock)
        await registry.ensure_incarnation()
        await registry.reconcile()
        self.regions[A].fences[ORDERS] = GroupFence("open", 1)
        await self.report()

    async def report(self) -> None:
        """Put the regions' health and streams, fresh by the clock."""
        puts = []
        for name, region in self.regions.items():
            health = ClusterHealth(
                cluster=name,
                replicator=f"{name}-r1",
                incarnation=Incarnation(f"{name}-1"),
                etcd_version="3.5.30",
                etcd_cluster_id="1",
                revision=10,
                raft_index=20,
                db_size_bytes=1,
                certificate_not_after_ms=self.clock.wall_ms() + 86_400_000,
                groups={
                    group: GroupHealth(
                        mode="open" if region.may_write(group) else "superseded",
                        epoch=Epoch(region.fence(group).epoch),
                        command_token=region.fence(group).command_token,
                        permit=region.may_write(group),
                        in_step=True,
                    )
                    for group in {ORDERS, *region.fences, *self.groups}
                },
                at_ms=self.clock.wall_ms(),
            )
            puts.append(Put(Keys.health(name), encode(health)))
            other = B if name == A else A
            stream = StreamStatus(
                source=name,
                target=other,
                incarnation=Incarnation(f"{name}-1"),
                lag=Lag(
                    state=StreamState.STREAMING, lag_ms=12, error_bound_ms=5, records=0, bytes=0
                ),
                head=Sequence(self.log.head),
                applied=Sequence(self.log.head),
                at_ms=self.clock.wall_ms(),
            )
            puts.append(Put(Keys.stream_status(name, other), encode(stream)))
        await self.store.commit(Txn(operations=tuple(puts)))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeMesh]:
        """Run the regions inside the block."""
        await self.declare()
        async with background(*(region.run() for region in self.regions.values())):
            yield self

    async def authority(self, group: GroupName = ORDERS) -> Authority:
        item = await self.store.get(Keys.authority(group))
        assert item is not None
        return decode(Authority, item.value)

    def writers(self, group: GroupName = ORDERS) -> list[ClusterName]:
        return [name for name, region in self.regions.items() if region.may_write(group)]


@asynccontextmanager
async def background(*work) -> AsyncIterator[list[asyncio.Task]]:
    """Run coroutines inside the block, and cancel them at its end."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settle_until(predicate, *, rounds: int = 200):
    """Let tasks run until `predicate` gives something; no time passes."""
    for _ in range(rounds):
        found = predicate()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await settle()
    raise AssertionError("it did not come about")
