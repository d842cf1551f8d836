"""Kills the coordinator of a `rejoin/1` on either side of every save; a successor goes on.

The region that comes back has a tail: it wrote what its successor does not stand on. Real keeper,
machine, repository and agent; the tail is found, set aside and let be written over for real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from coordinator.governance.audit import AuditEntry
from coordinator.rejoin.keeper import Keeper
from coordinator.rejoin.record import Rejoin, RejoinPhase
from meshkit.codec import decode, encode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import RegionalKeys
from meshkit.model import Authority, Lineage
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.quarantine import QuarantineEntry
from meshkit.regional import (
    Fence,
    FenceMode,
    GroupCheckpoint,
    JoinPhase,
    SegmentOpened,
    SegmentScope,
)
from meshkit.status import ClusterHealth, GroupHealth
from meshkit.store.txn import Put, Rejected, Txn, prefix_range
from tests.model.killed import FIRST_TOKEN, ORDERS, A, B, Mortal, World, world

pytestmark = pytest.mark.slow

SAVES = ("begin", "fence", "find_divergence", "quarantine", "reconcile", "stand_by")
"""The step in hand at each save; approval is passed with `quarantine`: all of it is known."""
TAIL = {b"/orders/late": b"a", b"/orders/both": b"a"}
REPORT_MS = 400


async def superseded(here: World) -> None:
    """Authority is at eu-west; us-east does not know, and wrote on."""
    here.step_ms = 50
    segment = SegmentOpened(group=ORDERS, epoch=Epoch(1), token=FIRST_TOKEN)
    scope = SegmentScope(group=ORDERS, epoch=Epoch(1), prefixes=("/orders/",))
    opened = Put(RegionalKeys.segment_opened(ORDERS, Epoch(1)), encode(segment))
    covers = Put(RegionalKeys.segment_scope(ORDERS, Epoch(1)), encode(scope))
    kept = Put(b"/orders/kept", b"a")
    outcome = await here.regional[A].commit(Txn(operations=(opened, covers, kept)))
    for key, value in TAIL.items():
        await here.regional[A].commit(Txn(operations=(Put(key, value),)))
    theirs = (kept, Put(b"/orders/both", b"b"))
    await here.regional[B].commit(Txn(operations=theirs))
    lineage = Lineage(
        parent=A,
        parent_incarnation=Incarnation(f"of-{A}"),
        parent_epoch=Epoch(1),
        sequence=Sequence(outcome.revision),
        prefixes=("/orders/",),
        may_go_on=True,
    )
    token = Token(incarnation=1, revision=Revision(2))
    authority = Authority(group=ORDERS, epoch=Epoch(2), token=token, active=B, lineage=lineage)
    await here.coordination.commit(
        Txn(operations=(Put(Keys.authority(ORDERS), encode(authority)),))
    )


async def report(here: World) -> None:
    """Report for us-east again and again how its fence stands."""
    while True:
        fence = await fence_of(here)
        groups = {
            ORDERS: GroupHealth(
                mode=fence.mode.value,
                epoch=fence.epoch,
                command_token=NO_TOKEN,
                permit=False,
                in_step=False,
            )
        }
        health = ClusterHealth(
            cluster=A,
            replicator="r1",
            incarnation=Incarnation(f"of-{A}"),
            etcd_version="3.5.16",
            etcd_cluster_id="1",
            revision=1,
            raft_index=1,
            db_size_bytes=1,
            groups=groups,
            at_ms=here.clock.wall_ms(),
        )
        await here.coordination.commit(Txn(operations=(Put(Keys.health(A), encode(health)),)))
        await here.clock.sleep_ms(REPORT_MS)


@asynccontextmanager
async def returned() -> AsyncIterator[World]:
    """Run a world in which us-east has come back."""
    async with world(begun=superseded, living=(A,)) as here:
        reporting = asyncio.ensure_future(report(here))
        try:
            yield here
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)


async def keep(here: World, *, dies_at: int | None = None, is_saved: bool = False) -> Mortal:
    """Elect a coordinator and let it look after rejoins for a while, or until it dies."""
    mortal = Mortal(here.coordination, dies_at, is_saved)
    keeper = Keeper(store=mortal, clock=here.clock, term=await here.elect(mortal))
    await here.until_it_ends(keeper.run(), may_die=dies_at is not None, rounds=150)
    return mortal


async def fence_of(here: World) -> Fence:
    item = await here.regional[A].get(RegionalKeys.fence(ORDERS))
    assert item is not None
    return decode(Fence, item.value)


async def quarantined(here: World) -> dict[bytes, bytes | None]:
    """Return what is set aside at us-east, with what it had there."""
    prefix = RegionalKeys.quarantine(ORDERS, Epoch(1), "")
    found = await here.regional[A].range(prefix_range(prefix))
    entries = [decode(QuarantineEntry, item.value) for item in found.items]
    return {entry.key: entry.here.inline for entry in entries if entry.here is not None}


async def began(here: World) -> list[str]:
    """Return the ids of the rejoins that ever began, as the audit has them."""
    found = await here.coordination.range(prefix_range(Keys.audit(ORDERS, 0)[:-10]))
    entries = [decode(AuditEntry, item.value) for item in found.items]
    return [str(e.facts["rejoin"]) for e in entries if e.action == "rejoin.began"]


async def check_came_back_once(here: World) -> None:
    record = await here.stored(Keys.rejoin(ORDERS, A), Rejoin)
    fence = await fence_of(here)
    own = await here.regional[A].get(RegionalKeys.group_checkpoint(B, ORDERS))

    assert record.phase is RejoinPhase.SUCCEEDED
    assert record.diverged["total"] == len(TAIL)
    assert await quarantined(here) == TAIL
    assert await began(here) == [record.id]
    assert fence.mode is not FenceMode.OPEN
    assert await here.permit(A) is None
    assert own is not None, "the copy has to come anew from whoever is active"
    assert decode(GroupCheckpoint, own.value).phase is JoinPhase.JOINING
    assert await here.times_changed(Keys.authority(ORDERS)) == 2, "nobody moved authority"


async def test_nobody_dies_and_every_save_is_where_the_others_kill() -> None:
    async with returned() as here:
        mortal = await keep(here)

        await check_came_back_once(here)
        assert mortal.saves == len(SAVES)


@pytest.mark.parametrize("is_saved", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("save", range(len(SAVES)), ids=SAVES)
async def test_a_successor_finishes_what_was_begun(save: int, *, is_saved: bool) -> None:
    """Wherever the first coordinator dies, one rejoin ends, and the tail is set aside once."""
    async with returned() as here:
        mortal = await keep(here, dies_at=save, is_saved=is_saved)
        assert mortal.in_hand is not None, "it was killed"

        await keep(here)

        await check_came_back_once(here)


@pytest.mark.parametrize("save", range(len(SAVES)), ids=SAVES)
async def test_what_the_dead_had_in_hand_arrives_too_late(save: int) -> None:
    """Refused, and by the record's revision alone, even if no term were compared."""
    async with returned() as here:
        mortal = await keep(here, dies_at=save)
        await keep(here)
        in_hand = mortal.in_hand
        assert in_hand is not None
        record_key = Keys.rejoin(ORDERS, A)
        guards = tuple(guard for guard in in_hand.guards if guard.key == record_key)

        late = await here.coordination.commit(in_hand)
        unled = await here.coordination.commit(attrs.evolve(in_hand, guards=guards))

        assert len(guards) == 1
        assert isinstance(late, Rejected)
        assert isinstance(unled, Rejected)
        await check_came_back_once(here)
