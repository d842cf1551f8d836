"""Claims about writes that nobody replicated, on a cluster that is passive."""

import asyncio

import pytest

from chaos.history import History
from coordinator.failover.record import Phase
from meshkit.clock import ManualClock, settle
from meshkit.codec import decode, encode
from meshkit.keys import RegionalKeys
from meshkit.model import Group
from meshkit.names import GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Sequence
from meshkit.regional import Fence, FenceMode, SegmentCut
from meshkit.store.memory import MemoryStore
from meshkit.store.port import Change
from meshkit.store.txn import Delete, Put, Txn
from replicator.agent_ports import Region
from replicator.foreign_watch import (
    LISTED_MAX,
    ForeignFold,
    ForeignWatch,
    ForeignWrite,
    ForeignWrites,
)
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_group_watcher import writing
from tests.mesh.test_whole_mesh import move, until_in_step, until_written
from tests.replicator.mesh import ALWAYS, A, B, G, H
from tests.replicator.records import at, delete, put

ORDERS = Group(name=G, prefixes=("/orders/",), members=(A, B))
USERS = Group(name=H, prefixes=("/users/",), members=(A, B))


def fence(mode: FenceMode) -> Change:
    fence = Fence(group=G, epoch=Epoch(1), mode=mode, token=NO_TOKEN)
    return put(RegionalKeys.fence(G), encode(fence))


def fold(mode: FenceMode = FenceMode.SUPERSEDED) -> ForeignFold:
    made = ForeignFold([fence(mode).item])
    made.set_groups([ORDERS, USERS])
    return made


def test_a_write_beside_no_checkpoint_on_a_passive_group_is_foreign() -> None:
    watch = fold()

    changed = watch.take(at(7, put("/orders/k"), delete("/orders/l"), put("/users/u")))

    assert changed == {G}
    assert watch.found[G].count == 2
    assert watch.found[G].latest == (
        ForeignWrite(key="/orders/k", revision=Revision(7)),
        ForeignWrite(key="/orders/l", revision=Revision(7), deleted=True),
    )


def test_what_ran_out_is_not_foreign_and_a_put_beside_it_is() -> None:
    watch = fold()
    item = at(7, delete("/orders/ran-out"), delete("/orders/deleted"), put("/users/u"))

    asked = watch.deletes_to_explain(item)
    watch.take(item, expired={b"/orders/ran-out"})

    assert asked == [b"/orders/ran-out", b"/orders/deleted"]
    assert [one.key for one in watch.found[G].latest] == ["/orders/deleted"]
    assert (
        watch.deletes_to_explain(at(8, delete("/orders/x"), put(RegionalKeys.checkpoint(A)))) == []
    )


async def test_a_lease_that_ends_past_the_cut_raises_no_alarm() -> None:
    """S14: its keys are at the new active cluster; an explicit delete beside it is told."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    region = Region(
        cluster=B,
        incarnation=Incarnation("b-1"),
        replicator="b-0",
        leader=ALWAYS,
        regional=store,
        coordination=store,
        clock=clock,
    )
    fence_now = fence(FenceMode.DRAINED).item
    lease = (await store.grant(ttl_s=5)).lease_id
    leased, other = Put(b"/orders/leased", b"v", lease), Put(b"/orders/other", b"v", lease)
    puts = (Put(fence_now.key, fence_now.value), leased, other, Put(b"/orders/plain", b"v"))
    await store.commit(Txn(operations=puts))
    watch = ForeignWatch(region, lambda: [ORDERS, USERS])
    task = asyncio.ensure_future(watch.run())
    await settle()

    await store.commit(Txn(operations=(Delete(b"/orders/other"),)))
    await clock.advance_ms(6_000)
    await store.commit(Txn(operations=(Delete(b"/orders/plain"),)))
    await clock.advance_ms(1_000)
    told = [one.key for one in watch.found[G].latest]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert told == ["/orders/other", "/orders/plain"]


def test_an_apply_is_not_foreign() -> None:
    watch = fold()

    changed = watch.take(at(7, put("/orders/k"), put(RegionalKeys.checkpoint(A))))

    assert changed == frozenset()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (FenceMode.OPEN, 0),
        (FenceMode.DRAINED, 1),
        (FenceMode.HELD, 1),
        (FenceMode.SUPERSEDED, 1),
    ],
)
def test_only_the_active_cluster_may_be_written_to(mode: FenceMode, expected: int) -> None:
    watch = fold(mode)

    watch.take(at(7, put("/orders/k")))

    assert len(watch.found) == expected


def test_the_mode_is_the_one_in_the_history_and_not_a_later_one() -> None:
    watch = fold(FenceMode.OPEN)

    watch.take(at(7, put("/orders/k")))
    watch.take(at(8, fence(FenceMode.DRAINED)))
    watch.take(at(9, put("/orders/l")))

    assert [one.revision for one in watch.found[G].latest] == [9]


def test_the_list_is_bounded_and_the_count_is_not() -> None:
    watch = fold()

    for revision in range(1, LISTED_MAX + 11):
        watch.take(at(revision, put(b"/orders/" + b"k" * 5_000)))

    found = watch.found[G]
    assert found.count == LISTED_MAX + 10
    assert [one.revision for one in found.latest] == list(range(11, LISTED_MAX + 11))
    assert len(encode(found)) < 16 * 1024


def test_a_group_that_is_copied_anew_has_nothing_foreign_left() -> None:
    watch = fold()
    watch.take(at(7, put("/orders/k")))

    changed = watch.take(at(8, put(RegionalKeys.group_checkpoint(A, G))))

    assert changed == {G}
    assert watch.found == {}


def test_a_group_that_is_opened_here_has_nothing_foreign_left() -> None:
    watch = fold()
    watch.take(at(7, put("/orders/k")))

    watch.take(at(8, fence(FenceMode.OPEN)))

    assert watch.found == {}


def test_a_successor_goes_on_from_the_stored_list() -> None:
    before = fold()
    before.take(at(7, put("/orders/k")))
    stored = put(RegionalKeys.foreign(G), encode(before.found[G])).item

    after = ForeignFold([fence(FenceMode.SUPERSEDED).item], [stored])
    after.set_groups([ORDERS])
    after.take(at(9, put("/orders/l")))

    assert [one.revision for one in after.found[G].latest] == [7, 9]


@pytest.mark.slow
async def test_a_foreign_write_is_shown_with_the_group_and_listed_in_its_region() -> None:
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        stray = Put(b"/orders/stray", b"x")
        await mesh.stores["b"].commit(Txn(operations=(stray,)))

        async with asyncio.timeout(20):
            while "foreign writes: 1," not in (problem := await problem_of(mesh, "b")):
                await asyncio.sleep(0.02)
            while (item := await mesh.stores["b"].get(RegionalKeys.foreign(G))) is None:
                await asyncio.sleep(0.02)

        assert "/orders/stray" in problem
        assert [one.key for one in decode(ForeignWrites, item.value).latest] == ["/orders/stray"]
        assert await problem_of(mesh, "a") == ""
        assert await mesh.stores["a"].get(RegionalKeys.foreign(G)) is None


@pytest.mark.slow
async def test_moves_under_writes_raise_no_alarm() -> None:
    """Whatever MeshKit does itself is not foreign: applies, detached leases, permits."""
    mesh = MemoryMesh()
    history = History()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        async with writing(mesh, history):
            for number, target in enumerate(["b", "a", "c"]):
                await until_written(history, 20 * (number + 1))
                assert await move(mesh, target, f"move-{number}") is Phase.SUCCEEDED

        await until_in_step(mesh)
        found = [await store.get(RegionalKeys.foreign(G)) for store in mesh.stores.values()]
        problems = [await problem_of(mesh, cluster) for cluster in mesh.clusters]

    assert found == [None, None, None]
    assert not any("foreign" in problem for problem in problems)


async def problem_of(mesh: MemoryMesh, cluster: str) -> str:
    view = await mesh.operations().group(G)
    return next(str(c["problem"]) for c in view["clusters"] if c["cluster"] == cluster)


async def cut_then_written(*, is_compacted: bool) -> dict[GroupName, bool]:
    """Return of which groups a successor is certain that nothing was written past their cuts."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    region = Region(
        cluster=B,
        incarnation=Incarnation("b-1"),
        replicator="b-0",
        leader=ALWAYS,
        regional=store,
        coordination=store,
        clock=clock,
    )
    puts: list[Put] = []
    for group in (G, H):
        drained = Fence(group=group, epoch=Epoch(1), mode=FenceMode.DRAINED, token=NO_TOKEN)
        segment = SegmentCut(group=group, epoch=Epoch(1), command_token=NO_TOKEN)
        puts.append(Put(RegionalKeys.fence(group), encode(drained)))
        puts.append(Put(RegionalKeys.segment_cut(group, Epoch(1)), encode(segment)))
    at_cut = (await store.commit(Txn(operations=tuple(puts)))).revision
    await store.commit(Txn(operations=(Put(b"/users/1", b"v"),)))
    if is_compacted:
        head = (await store.commit(Txn(operations=(Put(b"/elsewhere", b"v"),)))).revision
        await store.compact(head)
    watch = ForeignWatch(region, lambda: [ORDERS, USERS])
    task = asyncio.ensure_future(watch.run())
    await settle(50)
    groups = {group.name: group.prefix_bytes for group in (ORDERS, USERS)}
    known = {g: await watch.untouched(g, p, Sequence(at_cut)) for g, p in groups.items()}
    assert watch.found == {}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return known


async def test_a_successor_looks_back_once_at_what_stopped_before_it() -> None:
    """Otherwise it would read the history past the cut once for each of a thousand groups."""
    assert await cut_then_written(is_compacted=False) == {G: True, H: False}


async def test_where_history_is_gone_nothing_is_certain() -> None:
    assert await cut_then_written(is_compacted=True) == {G: False, H: False}
