"""Claims about the region's hand: commands obeyed once, answers repeated, permits kept."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs

from meshkit.clock import ManualClock, settle
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.errors import Refused
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority, Group, Holder, Lineage, Routing
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, LeaseId, Revision, Sequence, Token
from meshkit.quarantine import Origin, QuarantineEntry
from meshkit.regional import Checkpoint, Fence, FenceMode, GroupCheckpoint, JoinPhase
from meshkit.status import Lag, StreamState
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.txn import Committed, Delete, Exists, Put, Txn
from replicator.agent import Agent
from replicator.agent_ports import Region
from replicator.region import RegionMirror
from replicator.upkeep import Upkeep

GROUP = "orders"


class FakeChain:
    """Grants one lease; refuses like the real one when told that the group is sealed."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.lease: LeaseId | None = None
        self.is_sealed = False

    async def permit_lease(self, authority: Authority, revision: Revision) -> LeaseId:
        if self.is_sealed:
            raise Refused("sealed")
        if self.lease is None:
            self.lease = (await self.store.grant(ttl_s=1000)).lease_id
        return self.lease

    def current_lease(self) -> LeaseId | None:
        return self.lease


class FakeStreams:
    """Streams whose progress the test decides."""

    def __init__(self) -> None:
        self.caught_up = asyncio.Event()
        self.applied = asyncio.Event()
        self.following = asyncio.Event()
        self.refreshed = 0

    async def wait_caught_up(
        self, target: str, *, lag_ms_max: int, group: str | None = None
    ) -> Lag:
        await self.caught_up.wait()
        return Lag(state=StreamState.STREAMING, lag_ms=0)

    async def wait_applied(self, source: str, incarnation: str, sequence: int) -> None:
        await self.applied.wait()

    async def wait_follow(self, group: str, epoch: int) -> None:
        await self.following.wait()

    def refresh(self) -> None:
        self.refreshed += 1


@attrs.define
class World:
    """One region, its coordination etcd, and whoever leads the region now."""

    clock: ManualClock
    regional: MemoryStore
    coordination: MemoryStore
    chain: FakeChain
    streams: FakeStreams
    agent: Agent
    upkeep: Upkeep

    async def order(self, step: CommandStep, epoch: int = 1, **more: object) -> Token:
        """Put a command as the coordinator does and return its token."""
        fields: dict[str, object] = {
            "group": GROUP,
            "cluster": "a",
            "step": step,
            "incarnation": 1,
            "epoch": Epoch(epoch),
            "failover": "f1",
        }
        command = Command(**{**fields, **more})  # type: ignore[arg-type]
        key = CoordinationKeys.command("a", GROUP)
        outcome = await self.coordination.commit(Txn(operations=(Put(key, encode(command)),)))
        return Token(incarnation=1, revision=outcome.revision)

    async def answer(self) -> Answer | None:
        """Return the answer that stands in the coordination etcd."""
        item = await self.coordination.get(CoordinationKeys.answer("a", GROUP))
        return decode(Answer, item.value) if item else None

    async def answered(self, token: Token) -> Answer:
        """Let everything run until the command with this token has its answer."""
        return await eventually(self, lambda a: a is not None and a.token == token)

    async def has_permit(self) -> bool:
        return await self.regional.get(RegionalKeys.permit(GROUP)) is not None

    async def fence(self) -> Fence:
        item = await self.regional.get(RegionalKeys.fence(GROUP))
        assert item is not None
        return decode(Fence, item.value)


async def eventually(world: World, holds: Callable[[Answer | None], bool]) -> Answer:
    for _ in range(100):
        answer = await world.answer()
        if holds(answer):
            assert answer is not None
            return answer
        await world.clock.advance_ms(50)
    raise AssertionError(f"no such answer; last: {await world.answer()}")


async def authority(world: World, active: str, epoch: int = 1) -> None:
    """Store group, authority and routing as the coordinator does."""
    group = Group(name=GROUP, prefixes=("/orders/",), members=("a", "b"))
    token = Token(incarnation=1, revision=Revision(7))
    puts = (
        Put(CoordinationKeys.group(GROUP), encode(group)),
        Put(
            CoordinationKeys.authority(GROUP),
            encode(Authority(group=GROUP, epoch=Epoch(epoch), token=token, active=active)),
        ),
        Put(
            CoordinationKeys.routing(GROUP),
            encode(Routing(group=GROUP, epoch=Epoch(epoch), token=token, active=active)),
        ),
    )
    await world.coordination.commit(Txn(operations=puts))


def new_world(before: World | None = None) -> World:
    """Return a world, or the same world under a successor."""
    clock = before.clock if before else ManualClock()
    regional = before.regional if before else MemoryStore(clock=clock)
    coordination = before.coordination if before else MemoryStore(clock=clock)
    chain = before.chain if before else FakeChain(regional)
    streams = FakeStreams()
    region = Region(
        cluster="a",
        incarnation=Incarnation("ia"),
        replicator="r1",
        leader=Exists(RegionalKeys.replicator_leader),
        regional=regional,
        coordination=coordination,
        clock=clock,
    )
    agent = Agent(region, chain=chain, inbound=streams, outbound=streams)
    here = RegionMirror(regional, clock=clock)
    upkeep = Upkeep(region, agent, chain=chain, here=here)
    return World(
        clock=clock,
        regional=regional,
        coordination=coordination,
        chain=chain,
        streams=streams,
        agent=agent,
        upkeep=upkeep,
    )


@asynccontextmanager
async def leading(world: World) -> AsyncIterator[World]:
    await world.regional.commit(Txn(operations=(Put(RegionalKeys.replicator_leader, b"r"),)))
    running = (world.agent.run(), world.upkeep.here.run(), world.upkeep.run())
    tasks = [asyncio.create_task(part) for part in running]
    await settle(50)
    try:
        yield world
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_first_open_makes_the_cluster_active() -> None:
    world = new_world()
    await authority(world, "a")

    async with leading(world):
        answer = await world.answered(await world.order(CommandStep.OPEN))

    assert answer.outcome is AnswerOutcome.DONE
    assert answer.opened is not None
    assert answer.incarnation == "ia"
    assert await world.has_permit()


async def test_a_drain_answers_the_cut_and_lets_the_holder_go() -> None:
    world = new_world()
    await authority(world, "a")
    holder = Holder(group=GROUP, epoch=Epoch(1), cluster="a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        await world.coordination.commit(
            Txn(operations=(Put(CoordinationKeys.holder(GROUP), encode(holder)),))
        )

        answer = await world.answered(await world.order(CommandStep.DRAIN))

        item = await world.regional.get(RegionalKeys.fence(GROUP))
    assert item is not None
    assert answer.cut == item.mod_revision
    assert not await world.has_permit()
    assert await world.coordination.get(CoordinationKeys.holder(GROUP)) is None


async def test_a_seal_obeyed_late_leaves_the_proof_of_life_of_another_alone() -> None:
    """A region that was cut off obeys when it is back: by then another one holds the group.

    Without that one's proof of life, the next emergency would take it for dead while it serves.
    """
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        await authority(world, "b", epoch=2)
        holder = Holder(group=GROUP, epoch=Epoch(2), cluster="b")
        await world.coordination.commit(
            Txn(operations=(Put(CoordinationKeys.holder(GROUP), encode(holder)),))
        )

        answer = await world.answered(await world.order(CommandStep.SEAL))

    item = await world.coordination.get(CoordinationKeys.holder(GROUP))
    assert answer.outcome is AnswerOutcome.DONE
    assert item is not None
    assert decode(Holder, item.value) == holder


async def test_s2_a_successor_repeats_the_answer_and_puts_no_permit() -> None:
    """R1 drained and died before answering; authority still names this cluster."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        token = await world.order(CommandStep.DRAIN)
        first = await world.answered(token)
    await world.coordination.commit(Txn(operations=(Delete(CoordinationKeys.answer("a", GROUP)),)))

    successor = new_world(world)
    async with leading(successor):
        again = await successor.answered(token)
        await successor.clock.advance_ms(3_000)

    assert again == first
    assert not await successor.has_permit()


async def test_a_successor_does_not_do_an_answered_command_again() -> None:
    """A reverse answered long ago must not search history that is compacted by now."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        token = await world.order(CommandStep.DRAIN)
        await world.answered(token)
    before = (await world.regional.get(RegionalKeys.fence(GROUP)), await world.answer())

    successor = new_world(world)
    async with leading(successor):
        await successor.clock.advance_ms(3_000)

    after = (await successor.regional.get(RegionalKeys.fence(GROUP)), await successor.answer())
    assert before == after


async def test_a_lapsed_permit_is_put_again_while_the_fence_is_open() -> None:
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        assert world.chain.lease is not None
        lost, world.chain.lease = world.chain.lease, None
        await world.regional.revoke(lost)
        assert not await world.has_permit()

        await world.clock.advance_ms(2_000)

        assert await world.has_permit()


async def test_no_permit_is_put_again_while_the_group_is_sealed() -> None:
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        assert world.chain.lease is not None
        lost, world.chain.lease, world.chain.is_sealed = world.chain.lease, None, True
        await world.regional.revoke(lost)

        await world.clock.advance_ms(5_000)

        assert not await world.has_permit()


async def test_a_newer_command_replaces_one_that_still_waits() -> None:
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        await world.order(CommandStep.CATCH_UP, target="b", lag_ms_max=100)
        await world.clock.advance_ms(500)

        answer = await world.answered(await world.order(CommandStep.UNDRAIN))

    assert answer.outcome is AnswerOutcome.DONE
    assert await world.has_permit()


async def test_converge_is_refused_while_the_copy_is_not_in_step() -> None:
    """A copy that is not complete must never be promoted, however far the stream is."""
    world = new_world()
    await authority(world, "b")
    async with leading(world):
        await world.clock.advance_ms(1_500)
        world.streams.applied.set()

        token = await world.order(
            CommandStep.CONVERGE, source="b", cut=Sequence(5), cut_incarnation="ib"
        )
        answer = await world.answered(token)

    assert answer.outcome is AnswerOutcome.REFUSED
    assert "not in step" in answer.reason


async def passive_in_step(world: World, sequence: int) -> None:
    fence = Fence(group=GROUP, epoch=Epoch(1), mode=FenceMode.SUPERSEDED, token=NO_TOKEN)
    checkpoint = Checkpoint(source="b", incarnation="ib", sequence=Sequence(sequence))
    await world.regional.commit(
        Txn(
            operations=(
                Put(RegionalKeys.fence(GROUP), encode(fence)),
                Put(RegionalKeys.checkpoint("b"), encode(checkpoint)),
            )
        )
    )


async def test_converge_answers_the_stored_checkpoint() -> None:
    world = new_world()
    await passive_in_step(world, 9)
    async with leading(world):
        token = await world.order(
            CommandStep.CONVERGE, source="b", cut=Sequence(8), cut_incarnation="ib"
        )
        await world.clock.advance_ms(500)
        assert await world.answer() is None
        world.streams.applied.set()
        answer = await world.answered(token)

    assert answer.watermark == 9
    assert answer.vector.to_json() == {"b#ib": 8}


async def test_open_waits_while_the_copy_is_short_of_the_parents_sequence() -> None:
    """Epoch e+1 stands on exactly the parent's cut; a copy short of it would lose writes."""
    world = new_world()
    await passive_in_step(world, 9)
    await authority(world, "a", epoch=2)
    lineage = Lineage(
        parent="b", parent_incarnation="ib", parent_epoch=Epoch(1), sequence=Sequence(10)
    )
    async with leading(world):
        token = await world.order(CommandStep.OPEN, epoch=2, lineage=lineage)
        await world.clock.advance_ms(2_000)
        assert await world.answer() is None
        assert not await world.has_permit()

        checkpoint = Checkpoint(source="b", incarnation="ib", sequence=Sequence(10))
        put = Put(RegionalKeys.checkpoint("b"), encode(checkpoint))
        await world.regional.commit(Txn(operations=(put,)))
        answer = await world.answered(token)

    assert answer.outcome is AnswerOutcome.DONE
    assert await world.has_permit()


async def test_a_drain_first_brings_the_scope_up_to_date() -> None:
    """Writes under a new prefix are accepted at once; a cut that left them out would lose them."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        world.upkeep.problems.clear()
        wider = Group(name=GROUP, prefixes=("/orders/", "/more/"), members=("a", "b"))
        put = Put(CoordinationKeys.group(GROUP), encode(wider))
        await world.coordination.commit(Txn(operations=(put,)))

        answer = await world.answered(await world.order(CommandStep.DRAIN))

    assert answer.prefixes == ("/orders/", "/more/")


async def test_a_new_member_joins_and_is_not_in_step_until_copied() -> None:
    world = new_world()
    await authority(world, "b")

    async with leading(world):
        await world.clock.advance_ms(1_500)

    item = await world.regional.get(RegionalKeys.group_checkpoint("b", GROUP))
    assert item is not None
    assert decode(GroupCheckpoint, item.value).phase is JoinPhase.JOINING
    assert (await world.fence()).mode is FenceMode.SUPERSEDED


async def test_foreign_writes_past_the_cut_are_quarantined_and_the_group_copied_anew() -> None:
    """S17: an unguarded writer commits after the cut; reverse must not just overwrite it."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        drained = await world.answered(await world.order(CommandStep.DRAIN))
        await world.regional.commit(Txn(operations=(Put(b"/orders/rogue", b"late"),)))
        await authority(world, "b", epoch=2)
        lineage = Lineage(
            parent="a",
            parent_incarnation="ia",
            parent_epoch=Epoch(1),
            sequence=Sequence(drained.cut or 0),
        )
        world.streams.following.set()
        await world.clock.advance_ms(100)

        await world.answered(
            await world.order(CommandStep.REVERSE, epoch=2, source="b", lineage=lineage)
        )

        kept = await world.regional.range(
            (RegionalKeys.quarantines, RegionalKeys.quarantines[:-1] + b"0")
        )
        join = await world.regional.get(RegionalKeys.group_checkpoint("b", GROUP))
    (entry,) = [decode(QuarantineEntry, item.value) for item in kept.items]
    assert (entry.key, entry.origin) == (b"/orders/rogue", Origin.FOREIGN)
    assert entry.here is not None
    assert entry.here.inline == b"late"
    assert join is not None


async def test_a_cluster_superseded_unseen_stops_before_its_first_beat() -> None:
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
    await authority(world, "b", epoch=2)

    successor = new_world(world)
    runner = asyncio.create_task(successor.agent.run())
    await successor.upkeep.stopping.obey_authority()
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)

    assert not await successor.has_permit()
    assert (await successor.fence()).mode is FenceMode.DRAINED


async def test_the_routing_record_is_copied_into_the_region() -> None:
    world = new_world()
    await authority(world, "b")

    async with leading(world):
        await world.clock.advance_ms(1_500)
        await authority(world, "a", epoch=2)
        await world.clock.advance_ms(1_500)

    copy = await world.regional.get(RegionalKeys.routing(GROUP))
    assert copy is not None
    assert decode(Routing, copy.value).epoch == 2


async def test_a_lost_reply_to_the_drain_is_settled_by_reading_the_fence() -> None:
    """The transaction was applied and its reply lost: the cut is the one that was made."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        world.regional.faults = LoseReplies(1)

        answer = await world.answered(await world.order(CommandStep.DRAIN))

        view = await world.agent._view(GROUP)
    assert world.regional.faults.left == 0
    assert answer.cut == view.cut
    assert isinstance(await world.regional.commit(Txn(operations=())), Committed)


class LoseReplies:
    """Loses the replies of the next writes that change a fence."""

    def __init__(self, count: int) -> None:
        self.left = count
        self._reads = 1

    async def before(self, operation: str) -> Fault:
        if operation == "commit" and self._reads > 0:
            self._reads -= 1
            return Fault.NONE
        if operation == "commit" and self.left > 0:
            self.left -= 1
            return Fault.REPLY_LOST
        return Fault.NONE
