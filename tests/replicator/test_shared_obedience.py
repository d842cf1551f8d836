"""Commands of many groups share transactions, and each group has its own fate (architecture 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs

from meshkit.clock import ManualClock, settle
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority, Group, Routing
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Token
from meshkit.regional import Fence, FenceMode
from meshkit.store.memory import MemoryStore
from meshkit.store.shape import written_keys
from meshkit.store.shared import SharedCommits
from meshkit.store.shared_store import SharedStore
from meshkit.store.txn import Delete, Exists, KeyValue, Outcome, Put, Txn
from replicator.agent import Agent
from replicator.agent_ports import Region
from tests.replicator.test_agent import FakeChain, FakeStreams

A, B = ClusterName("a"), ClusterName("b")
GROUPS = [GroupName(f"g{number}") for number in range(3)]
LEADER = RegionalKeys.replicator_leader


class Meddled(MemoryStore):
    """Lets the test do something just before a transaction that puts a certain key."""

    key = b""
    meddle: Callable[[], Awaitable[object]] | None = None
    requests = 0

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        meddle = self.meddle
        if meddle is not None and self.key in written_keys(txn.operations):
            self.meddle = None
            await meddle()
        self.requests += 1
        return await super().commit(txn, timeout_ms=timeout_ms)


@attrs.define
class World:
    clock: ManualClock
    regional: Meddled
    coordination: MemoryStore

    async def order(self, step: CommandStep) -> Token:
        """Put a command for every group in one transaction, as an evacuation does."""
        puts = tuple(
            Put(
                CoordinationKeys.command(A, group),
                encode(
                    Command(
                        group=group,
                        cluster=A,
                        step=step,
                        incarnation=1,
                        epoch=Epoch(1),
                        failover=FailoverId("f1"),
                    )
                ),
            )
            for group in GROUPS
        )
        outcome = await self.coordination.commit(Txn(operations=puts))
        return Token(incarnation=1, revision=outcome.revision)

    async def answered(self, token: Token) -> dict[GroupName, Answer]:
        """Return the answers of all groups once they stand."""
        for _ in range(100):
            found = {}
            for group in GROUPS:
                item = await self.coordination.get(CoordinationKeys.answer(A, group))
                if item is not None and (answer := decode(Answer, item.value)).token == token:
                    found[group] = answer
            if len(found) == len(GROUPS):
                return found
            await self.clock.advance_ms(50)
        raise AssertionError(f"answered were {sorted(found)}")

    async def item(self, key: bytes) -> KeyValue:
        item = await self.regional.get(key)
        assert item is not None
        return item

    async def fence(self, group: GroupName) -> Fence:
        return decode(Fence, (await self.item(RegionalKeys.fence(group))).value)


@asynccontextmanager
async def opened() -> AsyncIterator[World]:
    """Three groups that are open here, in a region that shares transactions."""
    clock = ManualClock()
    world = World(clock, Meddled(clock=clock), MemoryStore(clock=clock))
    regional = SharedCommits(store=world.regional, index=RegionalKeys.fence_index)
    coordination = SharedCommits(store=world.coordination)
    region = Region(
        cluster=A,
        incarnation=Incarnation("ia"),
        replicator="r1",
        leader=Exists(LEADER),
        regional=SharedStore(store=world.regional, commits=regional),
        coordination=SharedStore(store=world.coordination, commits=coordination),
        clock=clock,
    )
    streams = FakeStreams()
    agent = Agent(region, chain=FakeChain(world.regional), inbound=streams, outbound=streams)
    token = Token(incarnation=1, revision=Revision(7))
    for group in GROUPS:
        described = Group(name=group, prefixes=(f"/{group}/",), members=(A, B))
        authority = Authority(group=group, epoch=Epoch(1), token=token, active=A)
        routing = Routing(group=group, epoch=Epoch(1), token=token, active=A)
        puts = (
            Put(CoordinationKeys.group(group), encode(described)),
            Put(CoordinationKeys.authority(group), encode(authority)),
            Put(CoordinationKeys.routing(group), encode(routing)),
        )
        await world.coordination.commit(Txn(operations=puts))
    await world.regional.commit(Txn(operations=(Put(LEADER, b"r"),)))
    tasks = [asyncio.create_task(part) for part in (regional.run(), coordination.run())]
    tasks.append(asyncio.create_task(agent.run()))
    await settle(50)
    try:
        await world.answered(await world.order(CommandStep.OPEN))
        yield world
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_groups_that_are_drained_at_once_are_cut_at_one_revision() -> None:
    """The cut is the drain transaction's revision, for each of the groups in it."""
    async with opened() as world:
        before = world.regional.requests

        answers = await world.answered(await world.order(CommandStep.DRAIN))

        assert world.regional.requests - before < 2 * len(GROUPS)
        assert {answer.outcome for answer in answers.values()} == {AnswerOutcome.DONE}
        cuts = {answers[group].cut for group in GROUPS}
        assert len(cuts) == 1
        for group in GROUPS:
            item = await world.item(RegionalKeys.segment_cut(group, Epoch(1)))
            assert item.mod_revision == answers[group].cut
            assert await world.regional.get(RegionalKeys.permit(group)) is None
        index = await world.item(RegionalKeys.fence_index)
        assert index.mod_revision in cuts


async def test_one_whose_fence_moved_does_not_hold_the_others() -> None:
    async with opened() as world:
        moved = GROUPS[1]
        fence = await world.item(RegionalKeys.fence(moved))
        world.regional.key = RegionalKeys.fence(moved)
        again = Txn(operations=(Put(fence.key, fence.value),))
        world.regional.meddle = lambda: MemoryStore.commit(world.regional, again)

        answers = await world.answered(await world.order(CommandStep.DRAIN))

        others = {answers[group].cut for group in GROUPS if group != moved}
        cut = answers[moved].cut
        assert len(others) == 1
        assert cut is not None
        assert cut > max(other for other in others if other is not None)
        for group in GROUPS:
            item = await world.item(RegionalKeys.segment_cut(group, Epoch(1)))
            assert item.mod_revision == answers[group].cut
        index = await world.item(RegionalKeys.fence_index)
        assert index.mod_revision == cut


async def test_a_leader_that_is_deposed_on_the_way_changes_nothing_of_any_group() -> None:
    async with opened() as world:
        index = await world.item(RegionalKeys.fence_index)
        world.regional.key = RegionalKeys.fence(GROUPS[0])
        gone = Txn(operations=(Delete(LEADER),))
        world.regional.meddle = lambda: MemoryStore.commit(world.regional, gone)

        await world.order(CommandStep.DRAIN)
        for _ in range(20):
            await world.clock.advance_ms(50)

        assert {(await world.fence(group)).mode for group in GROUPS} == {FenceMode.OPEN}
        assert await world.item(RegionalKeys.fence_index) == index
        for group in GROUPS:
            assert await world.regional.get(RegionalKeys.permit(group)) is not None
