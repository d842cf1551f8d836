"""A frozen copy stands where it was fixed, whoever has a batch in hand, and follows on from there."""

from __future__ import annotations

import attrs
import pytest

from fencing.decision import Act
from fencing.fence_view import FenceView, view_of, view_reads
from fencing.freeze import Copy, freeze, stands_on, thaw
from meshkit.clock import ManualClock
from meshkit.codec import decode, encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import RegionalKeys as Keys
from meshkit.model import Lineage
from meshkit.names import FailoverId
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.regional import (
    Checkpoint,
    Fence,
    FenceIndex,
    FenceMode,
    GroupCheckpoint,
    JoinPhase,
)
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Committed, Put, Rejected, Txn, absent
from replicator.draft import ApplyPlan, Standpoint
from replicator.plan import plan_main
from replicator.receiver import MainBatch
from replicator.region import read_region
from replicator.transaction import checkpoint_at, prepare
from tests.replicator.mesh import A, B, G, H
from tests.replicator.records import record, write

LEADER = absent(b"/deposed")
AT = Standpoint(me=B, source=A, incarnation=Incarnation("a-1"))
FREEZE = Command(
    group=G,
    cluster=B,
    step=CommandStep.FREEZE,
    incarnation=1,
    epoch=Epoch(1),
    failover=FailoverId("f-1"),
    source=A,
    target=B,
)


def token(revision: int) -> Token:
    return Token(incarnation=1, revision=Revision(revision))


async def region() -> MemoryStore:
    """B follows two groups of A, applied up to 800."""
    store = MemoryStore(clock=ManualClock())
    puts = [
        Put(
            Keys.fence(group),
            encode(Fence(group=group, epoch=Epoch(1), mode=FenceMode.SUPERSEDED, token=NO_TOKEN)),
        )
        for group in (G, H)
    ]
    checkpoint = Checkpoint(source=A, incarnation=Incarnation("a-1"), sequence=Sequence(800))
    puts += [
        Put(Keys.fence_index, encode(FenceIndex(count=1))),
        Put(Keys.checkpoint(A), encode(checkpoint)),
    ]
    await store.commit(Txn(operations=tuple(puts)))
    return store


async def read(store: MemoryStore) -> tuple[FenceView, Copy]:
    outcome = await store.commit(Txn(operations=view_reads(G)))
    assert isinstance(outcome, Committed)
    main = await store.get(Keys.checkpoint(A))
    own = await store.get(Keys.group_checkpoint(A, G))
    assert main is not None
    copy = Copy(
        source=A,
        main=decode(Checkpoint, main.value),
        main_revision=main.mod_revision,
        own=decode(GroupCheckpoint, own.value) if own else None,
        own_revision=own.mod_revision if own else Revision(0),
    )
    return view_of(G, outcome.reads), copy


async def frozen(store: MemoryStore, revision: int = 10) -> Lineage:
    view, copy = await read(store)
    on = stands_on(view, FREEZE, [copy], me=B, incarnation=Incarnation("b-1"))
    assert isinstance(on, Lineage), on
    act = freeze(view, FREEZE, token(revision), LEADER, on=on, copy=copy)
    assert isinstance(await store.commit(act.txn), Committed)
    return on


async def batch_in_hand(store: MemoryStore) -> Txn:
    """A transaction that applies both groups up to 850, not sent yet."""
    state = await read_region(store)
    records = (record(820, write("/orders/1")), record(850, write("/users/1"), group=H))
    batch = MainBatch(after=Sequence(800), through=Sequence(850), records=records)
    plan = plan_main(state, batch, AT)
    assert isinstance(plan, ApplyPlan), plan
    checkpoint = checkpoint_at(
        state.checkpoints[A], source=A, incarnation=AT.incarnation, sequence=plan.through
    )
    return prepare(state, plan, source=A, checkpoint=checkpoint).guarded


async def test_s10_a_batch_in_hand_fails_and_the_watermark_stays() -> None:
    """S10: whoever answered `frozen at 800` may die; its successor's batch cannot move the copy."""
    store = await region()
    in_hand = await batch_in_hand(store)

    on = await frozen(store)
    late = await store.commit(in_hand)
    again = await store.commit(await batch_in_hand(store))

    assert on.sequence == 800
    assert isinstance(late, Rejected)
    assert isinstance(again, Committed)
    assert await store.get(b"/orders/1") is None
    view, copy = await read(store)
    repeated = stands_on(view, FREEZE, [copy], me=B, incarnation=Incarnation("b-1"))
    assert repeated == on


async def test_s8_other_groups_of_the_stream_go_on_and_a_thaw_follows_from_there() -> None:
    """S8: the main stream leaves the frozen group alone; its own checkpoint says where it is."""
    store = await region()
    await frozen(store)

    await store.commit(await batch_in_hand(store))
    view, _ = await read(store)
    decision = thaw(view, attrs.evolve(FREEZE, step=CommandStep.THAW), token(11), LEADER)
    assert isinstance(decision, Act)
    await store.commit(decision.txn)

    assert await store.get(b"/users/1") is not None
    state = await read_region(store)
    assert state.checkpoints[A].sequence == 850
    own = state.followed((A, G))
    assert own is not None
    assert (own.phase, own.sequence) == (JoinPhase.FOLLOWING, 800)


async def test_a_freeze_fails_if_the_copy_moved_since_it_was_looked_at() -> None:
    """Else the answer would name a place where the copy is not."""
    store = await region()
    view, copy = await read(store)
    on = stands_on(view, FREEZE, [copy], me=B, incarnation=Incarnation("b-1"))
    assert isinstance(on, Lineage)
    act = freeze(view, FREEZE, token(10), LEADER, on=on, copy=copy)

    await store.commit(await batch_in_hand(store))

    assert isinstance(await store.commit(act.txn), Rejected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"main": None}, "nothing of"),
        ({"is_torn": True}, "part of a transaction"),
        (
            {
                "own": GroupCheckpoint(
                    source=A,
                    group=G,
                    incarnation=Incarnation("a-1"),
                    phase=JoinPhase.COPYING,
                    epoch=Epoch(1),
                )
            },
            "not complete",
        ),
    ],
)
async def test_a_copy_that_is_not_whole_cannot_be_frozen(
    change: dict[str, object], words: str
) -> None:
    """It could not be promoted either."""
    view, copy = await read(await region())

    why = stands_on(
        view, FREEZE, [attrs.evolve(copy, **change)], me=B, incarnation=Incarnation("b-1")
    )

    assert isinstance(why, str)
    assert words in why
