"""Where a watcher goes on in a new active cluster's past, when that holds parts of a transaction."""

from __future__ import annotations

from fencing.group_log import Anew
from fencing.group_places import Leg, place_in_replay
from meshkit.clock import ManualClock
from meshkit.codec import encode
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence
from meshkit.regional import Checkpoint, PartsCheckpoint
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Delete, Operation, Put, Txn

A, B, G = ClusterName("a"), ClusterName("b"), GroupName("orders")
HISTORY = Incarnation("a-1")


def checkpoint(sequence: int) -> Put:
    own = Checkpoint(source=A, incarnation=HISTORY, sequence=Sequence(sequence))
    return Put(RegionalKeys.checkpoint(A), encode(own))


def mark(sequence: int, last: bytes) -> Put:
    parts = PartsCheckpoint(
        source=A, incarnation=HISTORY, sequence=Sequence(sequence), cursors={G: last}
    )
    return Put(RegionalKeys.parts(A), encode(parts))


async def test_a_watcher_goes_on_before_the_first_part_of_what_it_has_not_seen() -> None:
    """The checkpoint moves with the last part only: going on behind it would miss the others."""
    store = MemoryStore(clock=ManualClock())

    async def apply(*operations: Operation) -> Revision:
        return (await store.commit(Txn(operations=operations))).revision

    before = await apply(Put(b"/orders/0", b"0"), checkpoint(5))
    await apply(Put(b"/orders/1", b"1"), mark(9, b"/orders/1"))
    await apply(Put(b"/orders/2", b"2"), mark(9, b"/orders/2"))
    last = await apply(Put(b"/orders/3", b"3"), checkpoint(9), Delete(RegionalKeys.parts(A)))
    leg = make_leg(opened=Revision(last + 1))

    unseen = await place_in_replay(store, G, leg, incarnation=HISTORY, seen=Sequence(7))
    seen = await place_in_replay(store, G, leg, incarnation=HISTORY, seen=Sequence(9))

    assert not isinstance(seen, Anew)
    assert unseen == (before, Sequence(5))
    assert seen[0] >= last


def make_leg(*, opened: Revision) -> Leg:
    lineage = Lineage(
        parent=A, parent_incarnation=HISTORY, parent_epoch=Epoch(1), sequence=Sequence(9)
    )
    return Leg(
        cluster=B,
        incarnation=Incarnation("b-1"),
        epoch=Epoch(2),
        opened=opened,
        lineage=lineage,
        prefixes=(b"/orders/",),
        cut=None,
        read_at=opened,
    )
