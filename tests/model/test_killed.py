"""Kills the coordinator on either side of every save; a successor goes on from the record.

Real driver, repository, machine and agents, on etcds in memory; no other fault. The streams are
as good as done: what is waited for is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from coordinator.failover import machine
from coordinator.failover.driver import Driver
from coordinator.failover.events import FenceEnded, LossStated
from coordinator.failover.record import Failover, FailoverKind, Phase, StepStatus
from coordinator.failover.repository import FailoverRepository
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
    Rejected,
    Txn,
)
from replicator.agent import Agent
from replicator.agent_ports import Region

A, B = ClusterName("us-east"), ClusterName("eu-west")
ORDERS, F1 = GroupName("orders"), FailoverId("f1")
FIRST_TOKEN = Token(incarnation=1, revision=Revision(1))
SAVES = ("check", "verify", "catch_up", "drain", "converge", "open", "reverse")
"""The step in hand at each save of a run without faults; the pivot rides with `converge`."""


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

    def answer_of(self, cluster: ClusterName, group: GroupName) -> Answer | None:
        item = self.answers.entries.get(Keys.answer(cluster, group))
        return decode(Answer, item.value) if item else None

    async def drive(self, *, dies_at: int | None = None, is_saved: bool = False) -> Mortal:
        """Elect a coordinator and let it drive until the failover ends, or it dies."""
        put = Put(Keys.coordinator_leader, b"")
        await self.coordination.commit(Txn(operations=(Delete(Keys.coordinator_leader),)))
        elected = await self.coordination.commit(Txn(operations=(put,)))
        mortal = Mortal(self.coordination, dies_at, is_saved)
        repository = FailoverRepository(
            store=mortal, clock=self.clock, term=FakeTerm(elected.revision)
        )
        self.driver = Driver(
            group=ORDERS,
            failover=F1,
            failovers=repository,
            clock=self.clock,
            answer_of=self.answer_of,
            check_again=in_order,
            compare=is_equal,
            rescue=NoEmergency(),
        )
        driving = asyncio.ensure_future(self.driver.run())
        for _ in range(100):
            if driving.done():
                break
            await self.clock.advance_ms(10)
        try:
            await asyncio.wait_for(driving, timeout=0)
        except Killed:
            assert dies_at is not None
        return mortal

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
async def world() -> AsyncIterator[World]:
    """Two regions; us-east serves; a failover to eu-west has just begun."""
    clock = ManualClock()
    coordination = MemoryStore(clock=clock)
    regional = {cluster: MemoryStore(clock=clock) for cluster in (A, B)}
    answers = PrefixMirror(coordination, Keys.answers, clock=clock)
    here = World(clock, coordination, regional, answers)
    answers.on_change(lambda _keys: here.driver and here.driver.on_answer())
    await begin(here)
    agents = [await agent(here, cluster) for cluster in (A, B)]
    tasks = [asyncio.ensure_future(each.run()) for each in (answers, *agents)]
    try:
        await settle()
        yield here
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def begin(here: World) -> None:
    group = Group(name=ORDERS, prefixes=("/orders/",), members=(A, B))
    authority = Authority(group=ORDERS, epoch=Epoch(1), token=FIRST_TOKEN, active=A)
    routing = Routing(group=ORDERS, epoch=Epoch(1), token=FIRST_TOKEN, active=A)
    puts = (
        Put(Keys.group(ORDERS), encode(group)),
        Put(Keys.authority(ORDERS), encode(authority)),
        Put(Keys.routing(ORDERS), encode(routing)),
    )
    stored = await here.coordination.commit(Txn(operations=puts))
    record = Failover(
        id=F1,
        group=ORDERS,
        kind=FailoverKind.PROMOTE,
        plan="planned/1",
        source=A,
        target=B,
        epoch_before=Epoch(1),
        incarnation=1,
        authority_revision=stored.revision,
        source_token=FIRST_TOKEN,
    )
    repository = FailoverRepository(store=here.coordination, clock=here.clock)
    await repository.begin(machine.begin(record, now_ms=here.clock.wall_ms()))


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
    return Agent(region, chain=around, inbound=around, outbound=around)


async def check_moved_once(here: World) -> None:
    record, cut = await here.record(), await here.cut()
    authority = await here.stored(Keys.authority(ORDERS), Authority)
    permit = await here.permit(B)

    assert record.phase is Phase.SUCCEEDED
    assert {step.status for step in record.history} <= {StepStatus.DONE, StepStatus.SKIPPED}
    assert (authority.active, authority.epoch) == (B, 2)
    assert await here.times_changed(Keys.authority(ORDERS)) == 2
    assert await here.times_changed(Keys.routing(ORDERS)) == 2
    assert cut is not None
    assert record.cut == authority.lineage.sequence == cut
    assert await here.permit(A) is None
    assert permit is not None
    assert (permit.epoch, permit.token) == (2, authority.token)


async def test_nobody_dies_and_every_save_is_where_the_others_kill() -> None:
    async with world() as here:
        mortal = await here.drive()

        await check_moved_once(here)
        assert mortal.saves == len(SAVES)


@pytest.mark.parametrize("is_saved", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("save", range(len(SAVES)), ids=SAVES)
async def test_a_successor_finishes_what_was_begun(save: int, *, is_saved: bool) -> None:
    """Wherever the first coordinator dies, authority moves once and the cut survives."""
    async with world() as here:
        mortal = await here.drive(dies_at=save, is_saved=is_saved)
        assert mortal.in_hand is not None, "it was killed"
        cut_seen = (await here.record()).cut

        await here.drive()

        await check_moved_once(here)
        assert cut_seen in (None, (await here.record()).cut)


@pytest.mark.parametrize("save", range(len(SAVES)), ids=SAVES)
async def test_what_the_dead_had_in_hand_arrives_too_late(save: int) -> None:
    """Refused (S20), and by the record's revision alone, even if no term were compared."""
    async with world() as here:
        mortal = await here.drive(dies_at=save)
        await here.drive()
        before = await here.coordination.status()
        in_hand = mortal.in_hand
        assert in_hand is not None
        record_key = Keys.failover(ORDERS, F1)
        guards = tuple(guard for guard in in_hand.guards if guard.key == record_key)

        late = await here.coordination.commit(in_hand)
        unled = await here.coordination.commit(attrs.evolve(in_hand, guards=guards))

        assert len(guards) == 1
        assert isinstance(late, Rejected)
        assert isinstance(unled, Rejected)
        assert (await here.coordination.status()).revision == before.revision
        await check_moved_once(here)


@pytest.mark.parametrize("is_saved", [False, True], ids=["nothing", "one"])
async def test_a_chain_of_dying_coordinators_finishes_unless_none_saves(*, is_saved: bool) -> None:
    """Each of them dies at its first save: with one save each it ends, with none it stays."""
    async with world() as here:
        for _ in SAVES:
            await here.drive(dies_at=0, is_saved=is_saved)

        if is_saved:
            await check_moved_once(here)
        else:
            assert (await here.record()).phase is Phase.ADVANCING
            assert await here.permit(A) is not None
