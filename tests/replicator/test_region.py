"""A region reads the same in pages as in one request, and its mirror knows who is out of step."""

from __future__ import annotations

import asyncio

import pytest

from meshkit.clock import ManualClock, settle
from meshkit.codec import encode
from meshkit.keys import ROOT, RegionalKeys
from meshkit.names import GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Sequence
from meshkit.regional import (
    Checkpoint,
    Fence,
    FenceIndex,
    FenceMode,
    GroupCheckpoint,
    JoinPhase,
    SegmentOpened,
    SegmentScope,
)
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Committed, Delete, Outcome, Put, Txn
from replicator.region import LARGE_GROUPS, RegionMirror, RegionReader
from replicator.shared_watch import SharedWatch
from tests.replicator.mesh import A, G, H


class Counting(MemoryStore):
    """Counts transactions."""

    commits = 0

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        self.commits += 1
        return await super().commit(txn, timeout_ms=timeout_ms)


def joining(group: GroupName) -> Put:
    own = GroupCheckpoint(
        source=A,
        group=group,
        incarnation=Incarnation("a-1"),
        phase=JoinPhase.JOINING,
        epoch=Epoch(1),
        reason="new member",
    )
    return Put(RegionalKeys.group_checkpoint(A, group), encode(own))


async def test_a_large_region_is_read_in_pages_and_is_the_same() -> None:
    store = Counting(clock=ManualClock())
    for number in range(LARGE_GROUPS + 1):
        group = GroupName(f"g{number:03d}")
        fence = Fence(group=group, epoch=Epoch(1), mode=FenceMode.OPEN, token=NO_TOKEN)
        opened = SegmentOpened(group=group, epoch=Epoch(1), token=NO_TOKEN, lineage=None)
        scope = SegmentScope(group=group, epoch=Epoch(1), prefixes=(f"/{group}/",))
        puts = (
            Put(RegionalKeys.fence(group), encode(fence)),
            Put(RegionalKeys.segment_opened(group, Epoch(1)), encode(opened)),
            Put(RegionalKeys.segment_scope(group, Epoch(1)), encode(scope)),
        )
        await store.commit(Txn(operations=puts))
    main = Checkpoint(source=A, incarnation=Incarnation("a-1"), sequence=Sequence(7))
    more = (
        Put(RegionalKeys.fence_index, encode(FenceIndex(count=3))),
        Put(RegionalKeys.checkpoint(A), encode(main)),
        joining(GroupName("g000")),
    )
    await store.commit(Txn(operations=more))
    reader = RegionReader(store)
    store.commits = 0

    whole = await reader.read()
    paged = await reader.read()

    assert store.commits == 1
    assert (paged.fences, paged.spans) == (whole.fences, whole.spans)
    assert (paged.joins, paged.join_revisions) == (whole.joins, whole.join_revisions)
    assert paged.checkpoints == whole.checkpoints
    assert paged.index_revision == whole.index_revision
    assert paged.own.all_newest() == whole.own.all_newest()


@pytest.mark.parametrize("is_shared", [False, True])
async def test_the_mirror_knows_which_groups_are_out_of_step(is_shared: bool) -> None:
    """By a watch of its own keys, or by one of everything that somebody else begins or ends."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    shared = SharedWatch(store, clock=clock)
    reading = asyncio.create_task(shared.run()) if is_shared else None
    mirror = RegionMirror(store, clock=clock, watch=shared.watch if is_shared else None)
    await store.commit(Txn(operations=(joining(G),)))
    task = asyncio.create_task(mirror.run())
    await settle()
    seen = [(mirror.is_out_of_step(G), mirror.is_out_of_step(H))]

    for operation in (joining(H), Delete(RegionalKeys.group_checkpoint(A, G))):
        more = (Put(b"/app/1", b"x"), operation, Put(b"/zoo/1", b"x"))
        assert isinstance(await store.commit(Txn(operations=more)), Committed)
        await store.commit(Txn(operations=(Put(b"/app/2", b"x"),)))
        await settle()
        seen.append((mirror.is_out_of_step(G), mirror.is_out_of_step(H)))
        if reading is not None:
            # The shared watch ends: the mirror goes on by one of its own, and misses nothing.
            reading.cancel()
    left = set(mirror.joins())
    task.cancel()
    await asyncio.gather(task, *([reading] if reading else []), return_exceptions=True)

    assert seen == [(True, False), (True, True), (False, True)]
    assert left == {(A, H)}
    assert mirror.revision == (await store.status()).revision or not is_shared
    assert all(key.startswith(ROOT) for key in mirror.entries)
