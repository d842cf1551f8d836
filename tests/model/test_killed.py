"""Kills the coordinator of a `planned/1` on either side of every save; a successor goes on."""

from __future__ import annotations

import attrs
import pytest

from coordinator.failover.passing import Known
from coordinator.failover.record import FailoverKind, Phase, StepStatus
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority
from meshkit.store.txn import Rejected
from tests.model.killed import F1, ORDERS, A, B, World, begin, world

SAVES = ("check", "verify", "catch_up", "drain", "converge", "open", "reverse")
"""The step in hand at each save of a run without faults; the pivot rides with `converge`."""


async def planned(here: World) -> None:
    await begin(here, kind=FailoverKind.PROMOTE, plan="planned/1")


async def planned_with_a_drain(here: World) -> None:
    known = Known(equal="equal", close="close")
    await begin(here, kind=FailoverKind.PROMOTE, plan="planned/1", known=known)


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
    async with world(begun=planned) as here:
        mortal = await here.drive()

        await check_moved_once(here)
        assert mortal.saves == len(SAVES)


@pytest.mark.parametrize("is_saved", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("save", range(len(SAVES[3:])), ids=SAVES[3:])
async def test_a_successor_finishes_what_began_with_a_drain(save: int, *, is_saved: bool) -> None:
    """There is no save before the one that takes the answer to the drain in."""
    async with world(begun=planned_with_a_drain) as here:
        mortal = await here.drive(dies_at=save, is_saved=is_saved)
        assert mortal.in_hand is not None, "it was killed"

        last = await here.drive()

        await check_moved_once(here)
        assert mortal.saves - (not is_saved) + last.saves == len(SAVES[3:])


@pytest.mark.parametrize("is_saved", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("save", range(len(SAVES)), ids=SAVES)
async def test_a_successor_finishes_what_was_begun(save: int, *, is_saved: bool) -> None:
    """Wherever the first coordinator dies, authority moves once and the cut survives."""
    async with world(begun=planned) as here:
        mortal = await here.drive(dies_at=save, is_saved=is_saved)
        assert mortal.in_hand is not None, "it was killed"
        cut_seen = (await here.record()).cut

        await here.drive()

        await check_moved_once(here)
        assert cut_seen in (None, (await here.record()).cut)


@pytest.mark.parametrize("save", range(len(SAVES)), ids=SAVES)
async def test_what_the_dead_had_in_hand_arrives_too_late(save: int) -> None:
    """Refused (S20), and by the record's revision alone, even if no term were compared."""
    async with world(begun=planned) as here:
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
    async with world(begun=planned) as here:
        for _ in SAVES:
            await here.drive(dies_at=0, is_saved=is_saved)

        if is_saved:
            await check_moved_once(here)
        else:
            assert (await here.record()).phase is Phase.ADVANCING
            assert await here.permit(A) is not None
