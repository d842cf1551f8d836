"""A long backlog read by several watches is the same log as the one watch reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.sandbox.etcd import EtcdProcess
from meshkit.clock import ManualClock, SystemClock, settle
from meshkit.errors import Compacted
from meshkit.etcd_binary import EtcdBinary
from meshkit.ordinals import Revision, Sequence
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from meshkit.store.port import RevisionChanges, Store, WatchItem
from meshkit.store.txn import WHOLE_STORE, Delete, KeyRange, Operation, Put, Txn, prefix_range
from replicator.catch_up import CatchUp, NotByMany, is_trusted
from replicator.limits import Limits
from replicator.record import Record
from replicator.segments import SegmentMap
from replicator.source import Tail
from replicator.spans import Spans
from tests.conftest import etcd_params
from tests.replicator.records import at, opened
from tests.replicator.records import put as put_change

ONE_WATCH = Limits(catch_up_revisions=1_000_000)
MANY = Limits(
    catch_up_revisions=1,
    catch_up_watches=4,
    catch_up_span_revisions=5,
    catch_up_bytes_max=200_000,
)


@attrs.define(kw_only=True, eq=False)
class Spied(MemoryStore):
    """Remembers where watches began. A watch may leave a revision out."""

    starts: list[Revision] = attrs.field(factory=list)
    loses: Revision | None = None

    @asynccontextmanager
    async def watch(
        self, key_range: KeyRange, *, start: Revision, progress_every_ms: int | None = None
    ) -> AsyncIterator[AsyncIterator[WatchItem]]:
        assert key_range == WHOLE_STORE
        self.starts.append(start)
        async with MemoryStore.watch(self, key_range, start=start) as items:
            yield items if self.loses is None else _without(self.loses, items)


async def _without(lost: Revision, items: AsyncIterator[WatchItem]) -> AsyncIterator[WatchItem]:
    async for item in items:
        if item.revision != lost:
            yield item


def spied(**options: Any) -> Spied:
    return Spied(clock=ManualClock(), **options)


async def begin(store: Store) -> None:
    """Open the group's segment, so that its keys belong to the log."""
    puts = tuple(Put(change.key, change.item.value) for change in opened())
    await store.commit(Txn(operations=puts))


async def commit(store: Store, writes: Mapping[str, str | None]) -> None:
    operations: list[Operation] = [
        Delete(key.encode()) if value is None else Put(key.encode(), value.encode())
        for key, value in writes.items()
    ]
    await store.commit(Txn(operations=tuple(operations)))


async def fill(store: Store, count: int = 40) -> Sequence:
    """Write a backlog of one key a revision, spread over the alphabet."""
    await begin(store)
    for number in range(count):
        await commit(store, {f"/orders/{number * 7 % 26:02}/{number}": str(number)})
    return await head_of(store)


async def head_of(store: Store) -> Sequence:
    return Sequence((await store.range((b"\0", b""))).revision)


def tail_of(store: Store, limits: Limits, *, after: int = 1) -> Tail:
    # Nothing was opened before the first revision.
    clock = getattr(store, "clock", None) or SystemClock()
    return Tail(store, clock=clock, after=Sequence(after), segments=SegmentMap(), limits=limits)


async def read(tail: Tail, through: Sequence) -> list[Record]:
    """Return the records up to a revision; batches must follow each other without a gap."""
    records: list[Record] = []
    running = asyncio.ensure_future(tail.run())
    try:
        while tail.position < through:
            before = tail.position
            pending = asyncio.ensure_future(tail.next_batch())
            await asyncio.wait({running, pending}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                pending.cancel()
                running.result()
            batch = await pending
            assert batch.after == before
            records += batch.records
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return records


# The same log

KEY = st.sampled_from([f"/{place}/{n}" for place in ("orders", "other") for n in range(8)])
WRITES = st.dictionaries(KEY, st.one_of(st.none(), st.sampled_from("xyz")), min_size=1, max_size=6)
PROGRAMS = st.lists(st.one_of(WRITES, st.just("range")), min_size=1, max_size=25)


@settings(max_examples=80, deadline=None)
@given(
    PROGRAMS,
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([1, 2_000, 100_000]),
    st.sampled_from([400, 1_000_000]),
    st.integers(0, 10),
)
def test_random_programs_give_the_same_records_as_the_one_watch(
    program: list[Any], watches: int, span: int, held_bytes: int, backlog_bytes: int, skipped: int
) -> None:
    async def run() -> None:
        store = spied()
        await begin(store)
        for writes in program:
            if writes == "range":
                start, end = prefix_range(b"/orders/")
                await store.commit(Txn(operations=(Delete(start, end),)))
            else:
                await commit(store, writes)
        head = await head_of(store)
        after = min(1 + skipped, head - 1)
        limits = attrs.evolve(
            MANY,
            catch_up_watches=watches,
            catch_up_span_revisions=span,
            catch_up_bytes_max=held_bytes,
            source_backlog_bytes_max=backlog_bytes,
        )
        expected = await read(tail_of(store, ONE_WATCH, after=after), head)
        assert store.starts == [after + 1]

        records = await read(tail_of(store, limits, after=after), head)

        assert records == expected

    asyncio.run(run())


async def test_a_backlog_is_read_by_several_watches_and_then_by_one() -> None:
    store = spied()
    head = await fill(store)
    tail = tail_of(store, MANY)
    running = asyncio.ensure_future(tail.run())
    sequences: list[int] = []
    while tail.position < head:
        sequences += [record.sequence for record in (await tail.next_batch()).records]
    await settle()

    assert store.starts == [*range(2, head + 1, 5), head + 1]
    assert sequences == list(range(2, head + 1))

    await commit(store, {"/orders/late": "1"})
    late = await tail.next_batch()
    running.cancel()

    assert [record.sequence for record in late.records] == [head + 1]
    assert store.starts[-1] == head + 1, "no other was begun"


async def test_a_short_backlog_is_read_by_one_watch() -> None:
    store = spied()
    head = await fill(store)

    await read(tail_of(store, attrs.evolve(MANY, catch_up_revisions=head)), head)

    assert store.starts == [2]


async def test_no_more_watches_than_allowed_are_open() -> None:
    store = spied()
    head = await fill(store)
    running, got, may_go_on = paused(store, head)
    await settle()

    assert got == [2]
    assert store.starts == [2, 7, 12, 17]

    may_go_on.set()
    await running
    assert got == list(range(2, head + 1))


async def test_a_reader_held_up_while_it_follows_catches_up_by_several_watches() -> None:
    store = spied()
    limits = attrs.evolve(MANY, catch_up_revisions=10, source_backlog_bytes_max=2_000)
    tail = tail_of(store, limits)
    running = asyncio.ensure_future(tail.run())
    await settle()
    assert store.starts == [2]
    head = await fill(store, 60)
    sequences: list[int] = []

    while tail.position < head:
        sequences += [record.sequence for record in (await tail.next_batch()).records]
    running.cancel()

    assert sequences == list(range(2, head + 1))
    assert len(store.starts) > 5


# No trust, no several watches


@pytest.mark.parametrize("version", ["", "3.6.0", "3.6.8"])
async def test_a_server_whose_watches_disturb_each_other_is_read_by_one(version: str) -> None:
    store = spied(version=version)
    head = await fill(store)

    records = await read(tail_of(store, MANY), head)

    assert len(records) == head - 1
    assert store.starts == [2]


@pytest.mark.parametrize("version", ["3.4.30", "3.5.1", "3.5.8", "3.5.30", "3.6.9", "3.7.0"])
def test_any_other_server_is_read_by_several_watches(version: str) -> None:
    assert is_trusted(version)


@pytest.mark.parametrize("place", ["where a span begins", "within a span", "where a span ends"])
async def test_a_revision_that_a_watch_left_out_is_missed_and_nothing_is_put_past_it(
    place: str,
) -> None:
    """S28: nothing is believed to be delivered but what was, whatever a server says of progress."""
    store = spied()
    head = await fill(store)
    lost = {"where a span begins": 12, "within a span": 14, "where a span ends": 11}[place]
    store.loses = Revision(lost)
    got: list[int] = []

    async def put(changes: RevisionChanges) -> None:
        got.append(changes.revision)

    with pytest.raises(NotByMany):
        await catch_up(store, head, put).run()

    assert got == list(range(2, 2 + len(got)))
    assert len(got) <= lost - 2


# Bounds, compaction, the end


def catch_up(
    store: Spied, head: int, put: Callable[[RevisionChanges], Any], limits: Limits = MANY
) -> CatchUp:
    return CatchUp(store, after=Revision(1), head=Revision(head), put=put, limits=limits)


def paused(
    store: Spied, head: int, *, after: int = 1, limits: Limits = MANY
) -> tuple[asyncio.Task[None], list[int], asyncio.Event]:
    """Begin to catch up; the consumer takes so many, and waits until it may go on."""
    may_go_on = asyncio.Event()
    got: list[int] = []

    async def put(changes: RevisionChanges) -> None:
        got.append(changes.revision)
        if len(got) >= after:
            await may_go_on.wait()

    return asyncio.ensure_future(catch_up(store, head, put, limits).run()), got, may_go_on


def test_the_heavier_the_revisions_the_fewer_spans_are_read() -> None:
    def open_after(value_bytes: int) -> int:
        limits = Limits(catch_up_span_revisions=10, catch_up_bytes_max=1_000_000)
        spans = Spans(after=Revision(1), through=Revision(10_000), limits=limits)
        span = spans.begin_next()
        assert span is not None
        for revision in range(2, 12):
            spans.add(span, at(revision, put_change("k", "v" * value_bytes)))
        while spans.take() is not None:
            pass
        count = 0
        while spans.begin_next() is not None:
            count += 1
        return count

    assert open_after(10) == 16
    assert 1 < open_after(100_000) < 16
    assert open_after(10_000_000) == 1


async def test_spans_hold_no_more_than_they_may_while_the_consumer_is_slow() -> None:
    store = spied()
    head = await fill(store, 400)
    limits = attrs.evolve(MANY, catch_up_bytes_max=2_000)
    may_go_on = asyncio.Event()

    async def put(changes: RevisionChanges) -> None:
        await may_go_on.wait()

    reading = catch_up(store, head, put, limits)
    running = asyncio.ensure_future(reading.run())
    await settle()

    one_span = 5 * 300
    assert reading._spans.weight_bytes <= limits.catch_up_bytes_max + one_span

    may_go_on.set()
    await running
    assert reading._spans.weight_bytes == 0


async def test_compaction_before_the_backlog_is_read_is_told() -> None:
    store = spied()
    head = await fill(store)
    await store.compact(Revision(head - 5))

    with pytest.raises(Compacted):
        await read(tail_of(store, MANY), head)


async def test_compaction_of_what_no_watch_has_read_yet_is_told() -> None:
    store = spied()
    head = await fill(store, 400)
    running, got, may_go_on = paused(store, head, after=20)
    await settle()
    await store.compact(Revision(head - 5))
    store.disconnect_watches()
    may_go_on.set()

    with pytest.raises(Compacted):
        await running
    assert got == list(range(2, 2 + len(got))), "what was put before is whole"


async def test_cancelling_leaves_no_watch_behind() -> None:
    store = spied()
    head = await fill(store)
    still_to_come = 12
    running, got, _ = paused(store, head + still_to_come, after=1_000)
    await settle()
    assert len(got) == head - 1
    assert len(store._watches) == 3

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert running.cancelled()
    assert store._watches == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


# On real servers


class SpiedEtcd(EtcdStore):
    """Counts its watches."""

    watches = 0

    def watch(self, key_range: KeyRange, **options: Any) -> Any:
        type(self).watches += 1
        return super().watch(key_range, **options)


@pytest.mark.etcd
@pytest.mark.parametrize("binary", etcd_params())
async def test_real_servers_give_the_same_records_to_several_watches(
    binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    process = await asyncio.to_thread(start_etcd, binary)
    store = SpiedEtcd.connect([process.endpoint])
    SpiedEtcd.watches = 0
    try:
        await begin(store)
        for first in range(0, 1_500, 50):
            await asyncio.gather(
                *(
                    commit(store, {f"/orders/{n % 31:02}/{n}": str(n)})
                    for n in range(first, first + 50)
                )
            )
            await commit(store, {f"/orders/{n:02}/all": str(first) for n in range(31)})
        await commit(store, {"/orders/00/all": None, "/orders/30/all": None})
        head = await head_of(store)
        limits = attrs.evolve(MANY, catch_up_revisions=500, catch_up_span_revisions=200)
        async with asyncio.timeout(60):
            expected = await read(tail_of(store, ONE_WATCH), head)
            assert SpiedEtcd.watches == 1

            records = await read(tail_of(store, limits), head)

        assert records == expected
        # Of 1,533 revisions, 200 each; perhaps one more, which goes on where they end.
        assert SpiedEtcd.watches - 1 in ((8, 9) if is_trusted(binary.version) else (1,))
    finally:
        await store.close()
