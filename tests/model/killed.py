"""A real coordinator that can be killed at any of its saves, and real agents that obey it.

Real driver, repository, machines and agents, on etcds in memory; no other fault. The streams are
as good as done: what is waited for is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import attrs

from coordinator.failover import machine
from coordinator.failover.driver import Driver, Rescuer
from coordinator.failover.events import FenceEnded, LossStated
from coordinator.failover.passing import Known, begun_checked
from coordinator.failover.record import Failover, FailoverKind
from coordinator.failover.repository import FailoverRepository
from meshkit import asking
from meshkit.asking import Question
from meshkit.clock import ManualClock, settle
from meshkit.codec import decode, encode
from meshkit.commands import Answer
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import RegionalKeys
from meshkit.mirror import PrefixMirror
from meshkit.model import Authority, Group, Routing
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Incarnation, LeaseId, Revision, Token
from meshkit.regional import Checkpoint, Fence, FenceMode, Permit
from meshkit.status import Lag, StreamState
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import (
    Committed,
    CreateRevisionIs,
    Delete,
    Outcome,
    Put,
    Txn,
)
from replicator.agent import Agent
from replicator.agent_ports import Region
from replicator.arrivals import TakenIn
from replicator.elsewhere import Elsewhere

A, B = ClusterName("us-east"), ClusterName("eu-west")
ORDERS, F1 = GroupName("orders"), FailoverId("f1")
FIRST_TOKEN = Token(incarnation=1, revision=Revision(1))


RescueOf = Callable[["World", FailoverRepository], Rescuer]


class Killed(Exception):
    """The coordinator's process is gone."""


@attrs.define(eq=False)
class Mortal:
    """A coordinator's connection; it dies at one of its saves, just before or just after it."""

    store: MemoryStore
    dies_at: int | None = None
    is_saved: bool = False
    saves: int = 0
    in_hand: Txn | None = None

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        if not any(isinstance(operation, Put) for operation in txn.operations):
            return await self.store.commit(txn)
        self.saves += 1
        if self.saves - 1 != self.dies_at:
            return await self.store.commit(txn)
        self.in_hand = txn
        if self.is_saved:
            await self.store.commit(txn)
        raise Killed

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


@attrs.frozen
class FakeTerm:
    """A term that ends when the next one is begun."""

    created_at: Revision

    def guard(self) -> CreateRevisionIs:
        return CreateRevisionIs(Keys.coordinator_leader, self.created_at)

    def end(self, reason: str) -> None:
        """It has ended already."""

    async def lost(self) -> str:
        return await asyncio.get_running_loop().create_future()

    async def resign(self) -> None:
        """Nobody resigns here."""


@attrs.frozen
class Surroundings:
    """Chain and streams of a region in which everything is in order."""

    region: Region

    async def permit_lease(self, authority: Authority, revision: Revision) -> LeaseId:
        return (await self.region.regional.grant(ttl_s=1000)).lease_id

    async def wait_caught_up(
        self, target: ClusterName, *, lag_ms_max: int, group: GroupName | None = None
    ) -> Lag:
        return Lag(state=StreamState.STREAMING, lag_ms=0)

    async def wait_applied(
        self, source: ClusterName, incarnation: Incarnation, sequence: int
    ) -> None:
        checkpoint = Checkpoint(source=source, incarnation=incarnation, sequence=sequence)
        put = Put(RegionalKeys.checkpoint(source), encode(checkpoint))
        await self.region.regional.commit(Txn(operations=(put,)))

    async def wait_follow(self, group: GroupName, epoch: int) -> None:
        """The stream back is there at once."""

    async def wait_taken_in(
        self, source: ClusterName, group: GroupName, epoch: Epoch, *, seal: Token, quiet_ms: int
    ) -> TakenIn:
        return TakenIn(cut=None, contained_at_ms=None)

    @asynccontextmanager
    async def standing_still(self, source: ClusterName) -> AsyncIterator[None]:
        yield

    def refresh(self) -> None:
        """Nothing is out of step."""


@attrs.define(eq=False)
class World:
    """The coordination etcd, two regions that obey, and whoever coordinates."""

    clock: ManualClock
    coordination: MemoryStore
    regional: dict[ClusterName, MemoryStore]
    answers: PrefixMirror
    driver: Driver | None = None
    step_ms: int = 10
    """How far the clock goes at once, a hundred times for each coordinator."""
    rescue: RescueOf = attrs.field(factory=lambda: no_emergency)

    def answer_of(self, cluster: ClusterName, group: GroupName) -> Answer | None:
        item = self.answers.entries.get(Keys.answer(cluster, group))
        return decode(Answer, item.value) if item else None

    async def elect(self, mortal: Mortal) -> FakeTerm:
        """Elect a coordinator; whoever was it before is deposed."""
        put = Put(Keys.coordinator_leader, b"")
        await mortal.store.commit(Txn(operations=(Delete(Keys.coordinator_leader),)))
        return FakeTerm((await mortal.store.commit(Txn(operations=(put,)))).revision)

    async def drive(self, *, dies_at: int | None = None, is_saved: bool = False) -> Mortal:
        """Elect a coordinator and let it drive until the failover ends, or it dies."""
        mortal = Mortal(self.coordination, dies_at, is_saved)
        repository = FailoverRepository(
            store=mortal, clock=self.clock, term=await self.elect(mortal)
        )
        self.driver = Driver(
            group=ORDERS,
            failover=F1,
            failovers=repository,
            clock=self.clock,
            answer_of=self.answer_of,
            check_again=in_order,
            compare=is_equal,
            rescue=self.rescue(self, repository),
        )
        await self.until_it_ends(self.driver.run(), may_die=dies_at is not None)
        return mortal

    async def until_it_ends(
        self, work: Coroutine[None, None, object], *, may_die: bool, rounds: int = 100
    ) -> None:
        """Let time pass until somebody's work is done, or they die; stop it when time is up."""
        working = asyncio.ensure_future(work)
        for _ in range(rounds):
            if working.done():
                break
            await self.clock.advance_ms(self.step_ms)
        try:
            await asyncio.wait_for(working, timeout=0)
        except Killed:
            assert may_die
        except TimeoutError:
            """It waits for somebody."""

    async def stored(self, key: bytes, kind: type) -> object:
        item = await self.coordination.get(key)
        assert item is not None
        return decode(kind, item.value)

    async def record(self) -> Failover:
        return await self.stored(Keys.failover(ORDERS, F1), Failover)

    async def permit(self, cluster: ClusterName) -> Permit | None:
        item = await self.regional[cluster].get(RegionalKeys.permit(ORDERS))
        return decode(Permit, item.value) if item else None

    async def cut(self) -> Revision | None:
        item = await self.regional[A].get(RegionalKeys.segment_cut(ORDERS, Epoch(1)))
        return item.mod_revision if item else None

    async def times_changed(self, key: bytes) -> int:
        item = await self.coordination.get(key)
        return item.version if item else 0


def no_emergency(_here: World, _failovers: FailoverRepository) -> NoEmergency:
    return NoEmergency()


class NoEmergency:
    """A planned failover asks nothing of it."""

    async def check(self, record: Failover) -> str:
        raise AssertionError(record.id)

    async def fence_ended(self, record: Failover) -> FenceEnded | None:
        raise AssertionError(record.id)

    async def state(self, record: Failover) -> LossStated:
        raise AssertionError(record.id)


async def in_order(_record: Failover) -> str:
    return ""


async def is_equal(_record: Failover) -> machine.StepDone:
    return machine.StepDone(step="verify")


@asynccontextmanager
async def world(
    *,
    begun: Callable[[World], Coroutine[None, None, None]],
    living: tuple[ClusterName, ...] = (A, B),
    rescue: RescueOf | None = None,
) -> AsyncIterator[World]:
    """Two regions; us-east serves; something has just been begun; the living ones obey."""
    clock = ManualClock()
    coordination = MemoryStore(clock=clock)
    regional = {cluster: MemoryStore(clock=clock) for cluster in (A, B)}
    answers = PrefixMirror(coordination, Keys.answers, clock=clock)
    here = World(clock, coordination, regional, answers)
    here.rescue = rescue or here.rescue
    answers.on_change(lambda _keys: here.driver and here.driver.on_answer())
    await declare(here)
    agents = [await agent(here, cluster) for cluster in (A, B)]
    await begun(here)
    obeying = [each.run() for each in agents if each.region.cluster in living]
    tasks = [asyncio.ensure_future(each) for each in (answers.run(), *obeying)]
    try:
        await settle()
        yield here
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def declare(here: World) -> None:
    """Put the group and its first epoch."""
    group = Group(name=ORDERS, prefixes=("/orders/",), members=(A, B))
    authority = Authority(group=ORDERS, epoch=Epoch(1), token=FIRST_TOKEN, active=A)
    routing = Routing(group=ORDERS, epoch=Epoch(1), token=FIRST_TOKEN, active=A)
    puts = (
        Put(Keys.group(ORDERS), encode(group)),
        Put(Keys.authority(ORDERS), encode(authority)),
        Put(Keys.routing(ORDERS), encode(routing)),
    )
    await here.coordination.commit(Txn(operations=puts))


async def begin(
    here: World, *, kind: FailoverKind, plan: str, known: Known | None = None, **more: object
) -> None:
    """Store a failover from us-east to eu-west as just begun; `known`: with its checks made."""
    authority = await here.coordination.get(Keys.authority(ORDERS))
    assert authority is not None
    record = Failover(
        id=F1,
        group=ORDERS,
        kind=kind,
        plan=plan,
        source=A,
        target=B,
        epoch_before=Epoch(1),
        incarnation=1,
        authority_revision=authority.mod_revision,
        source_token=FIRST_TOKEN,
        **more,
    )
    repository = FailoverRepository(store=here.coordination, clock=here.clock)
    now_ms = here.clock.wall_ms()
    first = begun_checked(record, known, now_ms=now_ms)[0] if known else None
    await repository.begin(first or machine.begin(record, now_ms=now_ms))


async def agent(here: World, cluster: ClusterName) -> Agent:
    """Return the real agent of a region with a fence as the first epoch left it."""
    regional = here.regional[cluster]
    mode = FenceMode.OPEN if cluster == A else FenceMode.SUPERSEDED
    fence = Fence(group=ORDERS, epoch=Epoch(1), mode=mode, token=FIRST_TOKEN)
    puts = [Put(RegionalKeys.fence(ORDERS), encode(fence))]
    if cluster == A:
        permit = Permit(group=ORDERS, epoch=Epoch(1), token=FIRST_TOKEN)
        puts.append(Put(RegionalKeys.permit(ORDERS), encode(permit)))
    puts.append(Put(RegionalKeys.replicator_leader, b""))
    outcome = await regional.commit(Txn(operations=tuple(puts)))
    assert isinstance(outcome, Committed)
    region = Region(
        cluster=cluster,
        incarnation=Incarnation(f"of-{cluster}"),
        replicator="r1",
        leader=CreateRevisionIs(RegionalKeys.replicator_leader, outcome.revision),
        regional=regional,
        coordination=here.coordination,
        clock=here.clock,
    )
    around = Surroundings(region)
    return Agent(
        region, chain=around, inbound=around, outbound=around, elsewhere=beside(here, cluster)
    )


@attrs.frozen
class Beside:
    """Answers at once what another region holds."""

    here: World

    async def ask(self, cluster: ClusterName, _endpoint: str, question: Question) -> asking.Answer:
        assert isinstance(question, asking.ReadKeys), "only keys are asked for"
        items = []
        for key in question.keys:
            item = await self.here.regional[cluster].get(key)
            items.append(asking.KeyState(key=key, value=item.value if item else None))
        return asking.KeyStates(items=tuple(items), revision=Revision(1))


def beside(here: World, _cluster: ClusterName) -> Elsewhere:
    return Elsewhere(asker=Beside(here), endpoints=lambda cluster: (cluster,))
