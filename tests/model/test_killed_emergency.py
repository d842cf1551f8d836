"""Kills the coordinator of an `emergency/1` on either side of every save; a successor goes on.

The source is dead: it obeys nothing, and its proof of life runs out. What is found out for the
emergency is found out by the real thing, but for the checks at the beginning.
"""

from __future__ import annotations

import attrs
import pytest

from coordinator.failover.due import step_in_hand
from coordinator.failover.loss import FenceStatus, LossBound, LossStatement
from coordinator.failover.machine import ConsentGiven, advance
from coordinator.failover.record import (
    Emergency,
    Failover,
    FailoverEvent,
    FailoverKind,
    Phase,
    StepStatus,
)
from coordinator.failover.repository import FailoverRepository
from coordinator.lookout import Lookout
from coordinator.rescue import Rescue
from meshkit.codec import decode, encode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import RegionalKeys
from meshkit.model import Authority, Holder
from meshkit.ordinals import Epoch, Incarnation, Sequence
from meshkit.regional import Checkpoint
from meshkit.status import LogHead
from meshkit.store.txn import Put, Rejected, Txn, prefix_range
from tests.model.killed import F1, ORDERS, A, B, World, begin, world

pytestmark = pytest.mark.slow

SAVES = ("assess", "fence", "take_in", "freeze", "state_loss", "open")
"""The step in hand at each save; consent and pivot ride with `state_loss`."""
APPLIED, HEAD = Sequence(7), Sequence(12)
ANYTHING = LossBound(unknown=True)


def rescue(here: World, failovers: FailoverRepository) -> Rescue:
    lookout = Lookout(store=here.coordination, clock=here.clock)
    return Unchecked(
        store=here.coordination, failovers=failovers, lookout=lookout, clock=here.clock
    )


class Unchecked(Rescue):
    """The real one, without the checks: nobody reports about health here."""

    async def check(self, record: Failover) -> str:
        return ""


async def emergency(here: World, accept: LossBound | None = ANYTHING) -> None:
    """The source died with five records that the target has not; its proof of life is there."""
    here.step_ms = 50
    lease = await here.coordination.grant(ttl_s=1)
    head = LogHead(
        cluster=A,
        incarnation=Incarnation(f"of-{A}"),
        sequence=HEAD,
        at_ms=here.clock.wall_ms(),
    )
    holder = Holder(group=ORDERS, epoch=Epoch(1), cluster=A)
    puts = (
        Put(Keys.holder(ORDERS), encode(holder), lease=lease.lease_id),
        Put(Keys.head(A), encode(head)),
    )
    await here.coordination.commit(Txn(operations=puts))
    applied = Checkpoint(source=A, incarnation=head.incarnation, sequence=APPLIED)
    await here.regional[B].commit(
        Txn(operations=(Put(RegionalKeys.checkpoint(A), encode(applied)),))
    )
    asked = Emergency(accept=accept, accepted_by="operator/alice" if accept else "")
    await begin(here, kind=FailoverKind.EMERGENCY, plan="emergency/1", emergency=asked)


async def asking(here: World) -> None:
    await emergency(here, accept=None)


def dead_source(begun=emergency):
    """Return a world whose source obeys nothing."""
    return world(begun=begun, living=(B,), rescue=rescue)


async def events(here: World) -> list[FailoverEvent]:
    found = await here.coordination.range(prefix_range(Keys.failover_events(ORDERS, F1)))
    return [decode(FailoverEvent, item.value) for item in found.items]


async def statements(here: World) -> list[LossStatement]:
    """Return every different statement that was ever stored."""
    emergencies = [event.record.emergency for event in await events(here)]
    stated = [e.loss for e in emergencies if e is not None and e.loss is not None]
    return [loss for n, loss in enumerate(stated) if loss not in stated[:n]]


async def check_moved_once(here: World) -> None:
    record = await here.record()
    authority = await here.stored(Keys.authority(ORDERS), Authority)
    permit = await here.permit(B)

    assert record.phase is Phase.SUCCEEDED
    assert {step.status for step in record.history} <= {StepStatus.DONE, StepStatus.SKIPPED}
    assert (authority.active, authority.epoch) == (B, 2)
    assert await here.times_changed(Keys.authority(ORDERS)) == 2
    assert await here.times_changed(Keys.routing(ORDERS)) == 2
    assert await here.coordination.get(Keys.seal(ORDERS)) is None
    assert authority.lineage.sequence == record.watermark == APPLIED
    assert permit is not None
    assert (permit.epoch, permit.token) == (2, authority.token)


async def check_told_once(here: World, accept: LossBound = ANYTHING) -> None:
    """What was stated is stated once, and it is that which somebody agreed to."""
    emergency = (await here.record()).emergency
    assert emergency is not None
    assert emergency.fence is FenceStatus.LEASE_EXPIRED
    assert (emergency.accept, emergency.accepted_by) == (accept, "operator/alice")
    assert await statements(here) == [emergency.loss]
    assert emergency.loss is not None
    assert (emergency.loss.target.certain, emergency.loss.target.is_none) == (APPLIED, False)


async def test_nobody_dies_and_every_save_is_where_the_others_kill() -> None:
    async with dead_source() as here:
        mortal = await here.drive()

        await check_moved_once(here)
        await check_told_once(here)
        assert mortal.saves == len(SAVES)


@pytest.mark.parametrize("is_saved", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("save", range(len(SAVES)), ids=SAVES)
async def test_a_successor_finishes_what_was_begun(save: int, *, is_saved: bool) -> None:
    """Authority moves once; what was stated and agreed to before the death is not stated anew."""
    async with dead_source() as here:
        mortal = await here.drive(dies_at=save, is_saved=is_saved)
        assert mortal.in_hand is not None, "it was killed"
        stated = await statements(here)

        await here.drive()

        await check_moved_once(here)
        await check_told_once(here)
        assert (await statements(here))[: len(stated)] == stated


@pytest.mark.parametrize("save", range(len(SAVES)), ids=SAVES)
async def test_what_the_dead_had_in_hand_arrives_too_late(save: int) -> None:
    """Refused, and by the record's revision alone, even if no term were compared."""
    async with dead_source() as here:
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


async def consent(here: World) -> None:
    """Agree to exactly what was stated, as the API does: it need not be the leader."""
    failovers = FailoverRepository(store=here.coordination, clock=here.clock)
    loaded = await failovers.load(ORDERS, F1)
    assert loaded is not None
    given = ConsentGiven(bound=ANYTHING, actor="operator/alice")
    after = advance(loaded.record, given, now_ms=here.clock.wall_ms())
    await failovers.save(loaded, after, what="consent")


async def test_the_consent_outlives_every_coordinator() -> None:
    """Nobody leads while a person reads and agrees; whoever leads next moves authority by that."""
    async with dead_source(asking) as here:
        await here.drive(dies_at=SAVES.index("state_loss"), is_saved=True)
        waits = await here.record()
        stated = await statements(here)
        await consent(here)
        agreed = await here.record()
        for is_saved in (False, True):
            await here.drive(dies_at=0, is_saved=is_saved)

        await here.drive()

        assert plan_step(waits) == "consent"
        assert plan_step(agreed) == "consent"
        await check_moved_once(here)
        await check_told_once(here)
        assert await statements(here) == stated


def plan_step(record: Failover) -> str:
    return step_in_hand(record).name


async def test_a_chain_of_dying_coordinators_finishes_if_each_saves_once() -> None:
    """And with none that saves, the source keeps its authority."""
    async with dead_source() as here:
        await here.drive(dies_at=0, is_saved=False)
        assert (await here.record()).phase is Phase.ADVANCING
        for _ in SAVES:
            await here.drive(dies_at=0, is_saved=True)

        await check_moved_once(here)
        await check_told_once(here)
