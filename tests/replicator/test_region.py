"""A region reads the same in pages as in one request, and its mirror knows who is out of step."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
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
    SegmentCut,
    SegmentOpened,
    SegmentScope,
)
from meshkit.store.memory import MemoryStore
from meshkit.store.port import RangeResult
from meshkit.store.txn import Committed, Delete, KeyRange, Outcome, Put, Txn
from replicator.region import LARGE_GROUPS, RegionMirror, RegionReader, read_region
from replicator.region_state import RegionState
from replicator.shared_watch import SharedWatch
from tests.replicator.mesh import A, G, H


class Counting(MemoryStore):
    """Counts transactions, and the keys that were read."""

    commits = 0
    fetched = 0

    async def range(self, key_range: KeyRange, **more: Any) -> RangeResult:
        result = await super().range(key_range, **more)
        self.fetched += len(result.items)
        return result

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


def changes_of_a_region() -> list[Txn]:
    """Return what happens to groups: opened, cut, undrained, out of step and back, parked."""
    one, two, new = GroupName("g000"), GroupName("g001"), GroupName("zz-new")

    def fence(group: GroupName, epoch: int, mode: FenceMode) -> Put:
        record = Fence(group=group, epoch=Epoch(epoch), mode=mode, token=NO_TOKEN)
        return Put(RegionalKeys.fence(group), encode(record))

    def opened(group: GroupName, epoch: int) -> tuple[Put, Put]:
        begun = SegmentOpened(group=group, epoch=Epoch(epoch), token=NO_TOKEN, lineage=None)
        scope = SegmentScope(group=group, epoch=Epoch(epoch), prefixes=(f"/{group}/",))
        return (
            Put(RegionalKeys.segment_opened(group, Epoch(epoch)), encode(begun)),
            Put(RegionalKeys.segment_scope(group, Epoch(epoch)), encode(scope)),
        )

    def cut(group: GroupName, epoch: int) -> Put:
        record = SegmentCut(group=group, epoch=Epoch(epoch), command_token=NO_TOKEN)
        return Put(RegionalKeys.segment_cut(group, Epoch(epoch)), encode(record))

    index = Put(RegionalKeys.fence_index, encode(FenceIndex(count=4)))
    steps: tuple[tuple[Put | Delete, ...], ...] = (
        (fence(one, 1, FenceMode.DRAINED), cut(one, 1), index),
        (fence(two, 1, FenceMode.DRAINED), cut(two, 1), joining(one)),
        (Delete(RegionalKeys.segment_cut(one, Epoch(1))), fence(one, 1, FenceMode.OPEN)),
        (fence(new, 1, FenceMode.OPEN), *opened(new, 1)),
        (Delete(RegionalKeys.group_checkpoint(A, one)), joining(new)),
        (fence(two, 3, FenceMode.OPEN), *opened(two, 3)),
        (Put(RegionalKeys.attachments + b"g001/x", b""),),
        (Put(b"/zoo/1", b"x"),),
        (Delete(RegionalKeys.fence(new)), cut(two, 3)),
    )
    return [Txn(operations=operations) for operations in steps]


async def test_of_a_large_region_what_has_changed_is_read_and_what_was_deleted_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("replicator.region.LARGE_GROUPS", 0)
    store = MemoryStore(clock=ManualClock())
    for number in range(3):
        group = GroupName(f"g{number:03d}")
        fence = Fence(group=group, epoch=Epoch(1), mode=FenceMode.OPEN, token=NO_TOKEN)
        await store.commit(Txn(operations=(Put(RegionalKeys.fence(group), encode(fence)),)))
    reader = RegionReader(store)
    await reader.read()
    await reader.read()

    for txn in changes_of_a_region():
        await store.commit(txn)
        for _ in range(2):
            state = await reader.read()
            whole = await read_region(store)
            assert plain(state) == plain(whole), txn
            # What the caller does with it is nobody else's.
            state.fences.clear()
            state.own.take(())


async def test_of_a_large_region_only_what_has_changed_is_fetched() -> None:
    store = Counting(clock=ManualClock())
    for number in range(LARGE_GROUPS + 1):
        group = GroupName(f"g{number:03d}")
        fence = Fence(group=group, epoch=Epoch(1), mode=FenceMode.OPEN, token=NO_TOKEN)
        await store.commit(Txn(operations=(Put(RegionalKeys.fence(group), encode(fence)),)))
    reader = RegionReader(store)
    await reader.read()
    await reader.read()
    store.fetched = 0

    for txn in changes_of_a_region()[:2]:
        await store.commit(txn)
        await reader.read()

    assert store.fetched == 6


async def test_a_large_region_whose_etcd_went_back_is_read_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("replicator.region.LARGE_GROUPS", 0)
    opened = Fence(group=G, epoch=Epoch(1), mode=FenceMode.OPEN, token=NO_TOKEN)
    drained = attrs.evolve(opened, mode=FenceMode.DRAINED)
    store, older = MemoryStore(clock=ManualClock()), MemoryStore(clock=ManualClock())
    for record in (opened, drained):
        await store.commit(Txn(operations=(Put(RegionalKeys.fence(G), encode(record)),)))
    await older.commit(Txn(operations=(Put(RegionalKeys.fence(G), encode(opened)),)))
    reader = RegionReader(store)
    await reader.read()
    before = await reader.read()

    reader.store = older
    after = await reader.read()

    assert (before.fences[G].mode, after.fences[G].mode) == (FenceMode.DRAINED, FenceMode.OPEN)


def plain(state: RegionState) -> dict[str, object]:
    """Return what can be compared of a state."""
    fields = attrs.asdict(state, recurse=False)
    own, attachments = fields.pop("own"), fields.pop("attachments")
    keys = (b"/g000/a", b"/g001/a", b"/zz-new/a", b"/zoo/1")
    owners = [own.owner_of(key) for key in keys]
    may_have = [attachments.may_have(GroupName(name)) for name in ("g000", "g001")]
    return {**fields, "own": own.all_newest(), "owners": owners, "attached": may_have}


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
