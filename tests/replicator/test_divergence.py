"""Claims about finding what a cluster has that its successor does not stand on."""

from __future__ import annotations

from meshkit.asking import (
    Answer,
    DeclineCode,
    Declined,
    EpochStart,
    KeyState,
    KeyStates,
    Question,
    ReadEpoch,
    ReadKeys,
)
from meshkit.clock import ManualClock
from meshkit.codec import encode
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Sequence
from meshkit.quarantine import Origin
from meshkit.regional import Checkpoint, SegmentOpened
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from replicator.divergence import Divergence
from replicator.elsewhere import Elsewhere

A, B, C, G = ClusterName("a"), ClusterName("b"), ClusterName("c"), GroupName("orders")
HISTORY = Incarnation("c-1")


class Compacted:
    """The active cluster, whose etcd has forgotten with what its epoch began."""

    async def ask(self, _cluster: ClusterName, _endpoint: str, question: Question) -> Answer:
        match question:
            case ReadEpoch():
                return EpochStart(opened=Revision(51), prefixes=("/orders/",))
            case ReadKeys(revision=None, keys=keys):
                states = tuple(KeyState(key=key, value=None) for key in keys)
                return KeyStates(items=states, revision=Revision(99))
            case _:
                text = "revision 51 is gone: compacted up to 52"
                return Declined(code=DeclineCode.REFUSED, text=text)


async def applied(store: MemoryStore, key: bytes, sequence: int) -> None:
    checkpoint = Checkpoint(source=C, incarnation=HISTORY, sequence=Sequence(sequence))
    await store.commit(
        Txn(operations=(Put(key, b"x"), Put(RegionalKeys.checkpoint(C), encode(checkpoint))))
    )


def diverged(store: MemoryStore) -> Divergence:
    """Look at A for what B, now active, does not stand on: all past 47 of C's log."""
    lineage = Lineage(
        parent=C, parent_incarnation=HISTORY, parent_epoch=Epoch(2), sequence=Sequence(47)
    )
    return Divergence(
        regional=store,
        elsewhere=Elsewhere(asker=Compacted(), endpoints=lambda _: ("b-0",)),
        me=A,
        incarnation=Incarnation("a-1"),
        group=G,
        active=B,
        lineage=lineage,
        prefixes=(b"/orders/",),
        now_ms=1,
    )


async def test_a_standby_that_is_ahead_is_not_stuck_where_the_active_cluster_was_compacted() -> (
    None
):
    """What the epoch began with is gone, so all that was applied past it is set aside."""
    store = MemoryStore(clock=ManualClock())
    await applied(store, b"/orders/1", 47)
    await applied(store, b"/orders/2", 50)
    found = [one.entry.key async for batch in diverged(store).entries() for one in batch]

    assert found == [b"/orders/2"]


async def test_an_epoch_that_the_next_one_does_not_stand_on_is_a_tail_as_a_whole() -> None:
    """An emergency gave the group back to the cluster that had it before, with nothing of this."""
    store = MemoryStore(clock=ManualClock())
    await applied(store, b"/orders/1", 47)
    opened = SegmentOpened(group=G, epoch=Epoch(3), token=NO_TOKEN)
    await store.commit(
        Txn(operations=(Put(RegionalKeys.segment_opened(G, Epoch(3)), encode(opened)),))
    )
    await store.commit(Txn(operations=(Put(b"/orders/2", b"mine"),)))
    await store.commit(Txn(operations=(Put(b"/orders/3", b"mine"),)))

    found = [
        (one.entry.key, one.entry.epoch, one.entry.origin, one.here)
        async for batch in diverged(store).entries()
        for one in batch
    ]

    assert found == [
        (b"/orders/2", 3, Origin.TAIL, b"mine"),
        (b"/orders/3", 3, Origin.TAIL, b"mine"),
    ]
