"""Claims about the watcher of a group, over two clusters whose histories are written by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import attrs

from cli.sandbox.etcd import EtcdProcess
from fencing.group_log import GroupChanges, GroupEvent, GroupItem, Place, Reset
from fencing.group_watcher import GroupWatcher
from meshkit.clock import SystemClock
from meshkit.codec import encode
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Lineage, Routing
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence, Token
from meshkit.regional import (
    Checkpoint,
    GroupCheckpoint,
    JoinPhase,
    RegionIncarnation,
    SegmentCut,
    SegmentOpened,
    SegmentScope,
)
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Delete, Operation, Put, Txn

G = GroupName("orders")
A, B = ClusterName("a"), ClusterName("b")
TOKEN = Token(incarnation=1, revision=Revision(5))
DEADLINE_S = 5


@attrs.define
class Cluster:
    """One cluster's etcd, written to as its replicator would."""

    name: ClusterName
    store: Store

    async def commit(self, *operations: Operation) -> int:
        outcome = await self.store.commit(Txn(operations=operations))
        assert isinstance(outcome, Committed)
        return outcome.revision

    async def write(self, key: str, value: str) -> int:
        return await self.commit(Put(f"/orders/{key}".encode(), value.encode()))

    async def set_up(self) -> None:
        identity = RegionIncarnation(cluster=self.name, incarnation=self.incarnation)
        await self.commit(Put(RegionalKeys.incarnation, encode(identity)))

    @property
    def incarnation(self) -> Incarnation:
        return Incarnation(f"{self.name}-1")

    async def open(self, epoch: int, *, parent: "Cluster | None" = None, sequence: int = 0) -> int:
        lineage = None
        if parent is not None:
            lineage = Lineage(
                parent=parent.name,
                parent_incarnation=parent.incarnation,
                parent_epoch=Epoch(epoch - 1),
                sequence=Sequence(sequence),
            )
        number = Epoch(epoch)
        opened = SegmentOpened(group=G, epoch=number, token=TOKEN, lineage=lineage)
        scope = SegmentScope(group=G, epoch=number, prefixes=("/orders/",))
        return await self.commit(
            Put(RegionalKeys.segment_opened(G, number), encode(opened)),
            Put(RegionalKeys.segment_scope(G, number), encode(scope)),
        )

    async def cut(self, epoch: int = 1) -> int:
        cut = SegmentCut(group=G, epoch=Epoch(epoch), command_token=TOKEN)
        return await self.commit(Put(RegionalKeys.segment_cut(G, Epoch(epoch)), encode(cut)))

    async def undo_cut(self, epoch: int = 1) -> int:
        return await self.commit(Delete(RegionalKeys.segment_cut(G, Epoch(epoch))))

    async def apply(self, source: "Cluster", sequence: int, *operations: Operation) -> int:
        checkpoint = Checkpoint(
            source=source.name, incarnation=source.incarnation, sequence=Sequence(sequence)
        )
        tag = Put(RegionalKeys.checkpoint(source.name), encode(checkpoint))
        return await self.commit(*operations, tag)


@attrs.define
class Pair:
    """Cluster a is active in epoch 1, b is passive; `seen` is what the watcher reaches."""

    a: Cluster
    b: Cluster
    coordination: MemoryStore
    a_seen: MemoryStore

    async def route(self, cluster: Cluster, epoch: int) -> None:
        token = Token(incarnation=1, revision=Revision(epoch))
        routing = Routing(group=G, epoch=Epoch(epoch), token=token, active=cluster.name)
        put = Put(CoordinationKeys.routing(G), encode(routing))
        await self.coordination.commit(Txn(operations=(put,)))

    def watcher(self, since: Place | None = None) -> GroupWatcher:
        return GroupWatcher(
            G,
            routing=(self.coordination,),
            members={A: self.a_seen, B: self.b.store},
            since=since,
            drain_patience_ms=20,
        )


async def pair(b_store: Store | None = None) -> Pair:
    a_store = MemoryStore(clock=SystemClock())
    a, b = Cluster(A, a_store), Cluster(B, b_store or MemoryStore(clock=SystemClock()))
    await a.set_up()
    await b.set_up()
    made = Pair(a, b, MemoryStore(clock=SystemClock()), a_store.connect())
    await a.open(1)
    await b.apply(a, await a.write("first", "0"), Put(b"/orders/first", b"0"))
    await made.route(a, 1)
    return made


@contextlib.asynccontextmanager
async def watching(
    made: Pair, since: Place | None = None
) -> AsyncIterator[tuple[AsyncIterator[GroupItem], GroupWatcher]]:
    async with made.watcher(since) as watcher, asyncio.timeout(DEADLINE_S):
        yield watcher.items(), watcher


async def begun(items: AsyncIterator[GroupItem]) -> Reset:
    item = await anext(items)
    assert isinstance(item, Reset)
    return item


async def events(items: AsyncIterator[GroupItem], count: int) -> list[GroupEvent]:
    found: list[GroupEvent] = []
    while len(found) < count:
        item = await anext(items)
        assert isinstance(item, GroupChanges), item
        found += item.events
    return found


def put(key: str, value: str, *, is_repeat: bool = False) -> GroupEvent:
    return GroupEvent(
        key=f"/orders/{key}".encode(),
        value=value.encode(),
        is_delete=False,
        is_repeat=is_repeat,
    )


def raw(key: str, value: str) -> Put:
    return Put(f"/orders/{key}".encode(), value.encode())


async def test_it_begins_with_the_state() -> None:
    made = await pair()
    async with watching(made) as (items, _):
        reset = await begun(items)

    assert (reset.cluster, reset.state) == (A, {b"/orders/first": b"0"})


async def test_it_reads_the_old_cluster_to_the_cut_and_goes_on_at_the_opening() -> None:
    made = await pair()
    async with watching(made) as (items, _):
        await begun(items)
        last = await made.a.write("k", "1")
        cut = await made.a.cut()
        await made.b.apply(made.a, last, raw("k", "1"))
        await made.b.apply(made.a, cut)
        await made.b.open(2, parent=made.a, sequence=cut)
        await made.route(made.b, 2)
        await made.b.write("k", "2")

        found = await events(items, 2)

    assert found == [put("k", "1"), put("k", "2")]


async def test_without_the_old_cluster_it_goes_on_where_the_checkpoint_says() -> None:
    await check_replay(await pair())


async def test_a_real_etcd_answers_for_its_past_in_the_same_way(fresh_etcd: EtcdProcess) -> None:
    """Bisecting over revisions rests on what etcd says of old ones, and of compacted ones."""
    store = EtcdStore.connect([fresh_etcd.endpoint])
    try:
        await store.commit(Txn(operations=(Put(b"/elsewhere", b"1"),)))
        await store.commit(Txn(operations=(Put(b"/elsewhere", b"2"),)))
        await store.compact(Revision(3))

        await check_replay(await pair(store))
    finally:
        await store.close()


async def check_replay(made: Pair) -> None:
    """Let b apply k=1 by itself, then one transaction with k=2, told already, and k=3, not."""
    async with watching(made) as (items, _):
        await begun(items)
        one = await made.a.write("k", "1")
        await made.a.write("same", "x")
        await made.a.write("k", "2")
        await events(items, 3)
        made.a_seen.partition()
        three = await made.a.write("k", "3")
        cut = await made.a.cut()
        await made.b.apply(made.a, one, raw("k", "1"))
        await made.b.apply(made.a, three, raw("k", "3"), raw("same", "x"))
        await made.b.apply(made.a, cut)
        await made.b.open(2, parent=made.a, sequence=cut)
        await made.b.write("k", "4")
        await made.route(made.b, 2)

        found = await events(items, 3)

    assert found == [put("k", "3"), put("same", "x", is_repeat=True), put("k", "4")]


async def test_a_delete_that_etcd_does_not_report_is_told() -> None:
    """The key was put and deleted within one apply: nothing happens to it at b."""
    made = await pair()
    async with watching(made) as (items, _):
        await begun(items)
        await made.a.write("brief", "1")
        await events(items, 1)
        made.a_seen.partition()
        gone = await made.a.commit(Delete(b"/orders/brief"))
        cut = await made.a.cut()
        await made.b.apply(made.a, gone, Delete(b"/orders/brief"), raw("other", "1"))
        await made.b.apply(made.a, cut)
        await made.b.open(2, parent=made.a, sequence=cut)
        await made.route(made.b, 2)

        found = await events(items, 2)

    assert found[0] == put("other", "1")
    assert found[1] == GroupEvent(key=b"/orders/brief", value=b"", is_delete=True)


async def test_compacted_history_is_a_reset_with_its_reason() -> None:
    made = await pair()
    async with watching(made) as (items, _):
        await begun(items)
        made.a_seen.partition()
        last = await made.a.write("k", "1")
        await made.b.apply(made.a, last, raw("k", "1"))
        cut = await made.a.cut()
        await made.b.apply(made.a, cut)
        opened = await made.b.open(2, parent=made.a, sequence=cut)
        await made.b.store.compact(Revision(opened))
        await made.route(made.b, 2)

        reset = await begun(items)

    assert "does not go back" in reset.reason
    assert reset.state == {b"/orders/first": b"0", b"/orders/k": b"1"}


async def test_a_copy_made_anew_is_a_reset() -> None:
    """A copy ships only what differs: what was deleted in between is in no event."""
    made = await pair()
    async with watching(made) as (items, _):
        await begun(items)
        made.a_seen.partition()
        last = await made.a.write("k", "1")
        join = GroupCheckpoint(
            source=A,
            group=G,
            incarnation=made.a.incarnation,
            phase=JoinPhase.JOINING,
            epoch=Epoch(1),
        )
        own = RegionalKeys.group_checkpoint(A, G)
        await made.b.commit(Put(own, encode(join)))
        cut = await made.a.cut()
        await made.b.apply(made.a, last, raw("k", "1"))
        await made.b.apply(made.a, cut, Delete(own))
        await made.b.open(2, parent=made.a, sequence=cut)
        await made.route(made.b, 2)

        reset = await begun(items)

    assert "copying" in reset.reason


async def test_what_an_emergency_lost_is_a_reset() -> None:
    """The consumer was told of a write that is no longer part of the group's history."""
    made = await pair()
    async with watching(made) as (items, _):
        await begun(items)
        contained = await made.a.write("k", "1")
        await made.b.apply(made.a, contained, raw("k", "1"))
        await made.a.write("lost", "1")
        await events(items, 2)
        await made.b.open(2, parent=made.a, sequence=contained)
        await made.route(made.b, 2)

        reset = await begun(items)

    assert "lost" in reset.reason
    assert b"/orders/lost" not in reset.state


async def test_revisions_without_events_of_the_group_are_not_lost_in_an_emergency() -> None:
    """The old etcd's revision rises with every beat; only what was told can be lost."""
    made = await pair()
    async with watching(made) as (items, _):
        await begun(items)
        contained = await made.a.write("k", "1")
        await made.b.apply(made.a, contained, raw("k", "1"))
        await made.a.commit(Put(b"/elsewhere", b"1"))
        await events(items, 1)
        await made.b.open(2, parent=made.a, sequence=contained)
        await made.route(made.b, 2)
        await made.b.write("k", "2")

        found = await events(items, 1)

    assert found == [put("k", "2")]


async def test_after_an_undone_cut_the_log_goes_on() -> None:
    made = await pair()
    async with watching(made) as (items, _):
        await begun(items)
        await made.a.cut()
        await made.a.undo_cut()
        await made.a.write("k", "1")

        found = await events(items, 1)

    assert found == [put("k", "1")]


async def test_writes_inside_an_undone_cut_are_a_reset() -> None:
    made = await pair()
    async with watching(made) as (items, _):
        await begun(items)
        await made.a.cut()
        await made.a.write("k", "unguarded")
        await made.a.undo_cut()

        reset = await begun(items)

    assert reset.state[b"/orders/k"] == b"unguarded"


async def test_a_watcher_goes_on_from_the_place_of_an_earlier_one() -> None:
    made = await pair()
    async with watching(made) as (items, watcher):
        await begun(items)
        await made.a.write("k", "1")
        await events(items, 1)
        place = watcher.place
    await made.a.write("k", "2")
    cut = await made.a.cut()
    await made.b.apply(made.a, cut, raw("k", "2"))
    await made.b.open(2, parent=made.a, sequence=cut)
    await made.route(made.b, 2)
    await made.b.write("k", "3")

    async with watching(made, since=place) as (items, _):
        found = await events(items, 2)

    assert found == [put("k", "2"), put("k", "3")]
