"""What is set aside is there once, whole, in pages, until somebody lets it go."""

from contextlib import aclosing

import attrs
import pytest

from meshkit.clock import ManualClock
from meshkit.errors import Compacted, NotFound, TermEnded
from meshkit.keys import RegionalKeys
from meshkit.names import GroupName
from meshkit.ordinals import Epoch, Revision, Sequence
from meshkit.quarantine import (
    CHUNK_BYTES_MAX,
    INLINE_BYTES_MAX,
    Completeness,
    Origin,
    QuarantineClass,
    QuarantineEntry,
    SetAside,
    classed,
    set_aside,
)
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import WHOLE_STORE, Committed, Delete, Put, Txn, absent
from replicator.quarantine import Quarantine
from replicator.tail import TailReader, Theirs

GROUP = GroupName("orders")
EPOCH = Epoch(3)
LEADER = absent(b"/somebody-else-leads")


def entry_of(sequence: int, key: bytes = b"/orders/a") -> QuarantineEntry:
    return QuarantineEntry(
        group=GROUP,
        epoch=EPOCH,
        sequence=Sequence(sequence),
        key=key,
        origin=Origin.TAIL,
        divergence=QuarantineClass.CONFLICTING,
        completeness=Completeness.COMPLETE,
    )


def one_of(sequence: int, *, here: bytes = b"ours", there: bytes | None = b"theirs") -> SetAside:
    return set_aside(entry_of(sequence), here=here, there=there)


def new_store() -> MemoryStore:
    return MemoryStore(clock=ManualClock())


def quarantine_in(store: MemoryStore) -> Quarantine:
    return Quarantine(regional=store, leader=LEADER)


async def put(store: MemoryStore, key: bytes, value: bytes, lease: int = 0) -> Revision:
    outcome = await store.commit(Txn(operations=(Put(key, value, lease=lease),)))
    assert isinstance(outcome, Committed)
    return outcome.revision


async def delete(store: MemoryStore, key: bytes) -> Revision:
    outcome = await store.commit(Txn(operations=(Delete(key),)))
    assert isinstance(outcome, Committed)
    return outcome.revision


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (b"1", None, QuarantineClass.ONLY_HERE),
        (None, b"1", QuarantineClass.ONLY_THERE),
        (b"1", b"2", QuarantineClass.CONFLICTING),
        (b"1", b"1", QuarantineClass.SAME),
        (None, None, QuarantineClass.SAME),
    ],
)
def test_a_key_is_classed_by_what_it_has_on_both_sides(
    here: bytes | None, there: bytes | None, expected: QuarantineClass
) -> None:
    assert classed(here, there) is expected


async def test_what_is_set_aside_twice_is_there_once_as_it_was_first() -> None:
    """Whoever begins again after a crash must not double the loss, nor rewrite it."""
    quarantine = quarantine_in(new_store())

    first = await quarantine.put([one_of(5, there=b"then")])
    second = await quarantine.put([one_of(5, there=b"later"), one_of(6)])

    page = await quarantine.page(GROUP)
    assert (first, second) == (1, 1)
    assert [entry.sequence for entry in page.entries] == [5, 6]
    assert (await quarantine.whole(GROUP, EPOCH, one_of(5).entry.name)).there == b"then"


async def test_large_values_come_back_whole_and_no_key_outgrows_etcd() -> None:
    store = new_store()
    quarantine = quarantine_in(store)
    large, larger = b"x" * (3 * CHUNK_BYTES_MAX + 1), b"y" * (8 * CHUNK_BYTES_MAX)

    await quarantine.put([one_of(7, here=large, there=larger)])

    name = one_of(7).entry.name
    found = await quarantine.whole(GROUP, EPOCH, name)
    stored = await store.range(WHOLE_STORE)
    assert (found.here, found.there) == (large, larger)
    assert max(len(item.value) for item in stored.items) <= CHUNK_BYTES_MAX


async def test_pages_are_bounded_and_leave_nothing_out() -> None:
    quarantine = quarantine_in(new_store())
    value = b"v" * INLINE_BYTES_MAX
    await quarantine.put([one_of(n, here=value) for n in range(1, 131)])

    sizes, seen, start = [], [], None
    while True:
        page = await quarantine.page(GROUP, start=start, limit=50)
        sizes.append(len(page.entries))
        seen += [entry.sequence for entry in page.entries]
        if page.next_key is None:
            break
        start = page.next_key

    assert sizes == [50, 50, 30]
    assert seen == list(range(1, 131))


async def test_only_the_leader_of_the_region_sets_aside() -> None:
    store = new_store()
    await put(store, b"/somebody-else-leads", b"1")

    with pytest.raises(TermEnded):
        await quarantine_in(store).put([one_of(5)])

    assert not (await quarantine_in(store).page(GROUP)).entries


async def test_a_replayed_entry_stays_and_is_counted_apart() -> None:
    quarantine = quarantine_in(new_store())
    await quarantine.put([one_of(5), one_of(6)])
    entry = (await quarantine.page(GROUP)).entries[0]

    await quarantine.mark_replayed(entry, by="operator/ann", now_ms=9)
    await quarantine.mark_replayed(entry, by="operator/bob", now_ms=10)

    counts = await quarantine.counts(GROUP)
    assert counts.waiting == {QuarantineClass.CONFLICTING: 1}
    assert (counts.total, counts.replayed) == (1, 1)
    assert (await quarantine.page(GROUP)).entries[0].replayed_by == "operator/ann"


async def test_a_discarded_entry_is_gone_with_its_chunks() -> None:
    store = new_store()
    quarantine = quarantine_in(store)
    await quarantine.put([one_of(5, here=b"x" * 500_000)])
    name = one_of(5).entry.name

    assert await quarantine.discard(GROUP, EPOCH, name)
    assert not await quarantine.discard(GROUP, EPOCH, name)

    with pytest.raises(NotFound):
        await quarantine.whole(GROUP, EPOCH, name)
    assert not (await store.range(WHOLE_STORE)).items


# --- reading a tail -----------------------------------------------------------------------------


def reader_of(store: MemoryStore, after: int, there: dict[bytes, bytes]) -> TailReader:
    async def read(keys: object) -> Theirs:
        del keys
        return Theirs(values=there)

    return TailReader(
        regional=store,
        group=GROUP,
        epoch=EPOCH,
        prefixes=(b"/orders/",),
        after=Sequence(after),
        origin=Origin.TAIL,
        read_there=read,
        now_ms=1,
    )


async def tail_of(reader: TailReader) -> list[SetAside]:
    async with aclosing(reader.batches()) as batches:
        return [one async for batch in batches for one in batch]


async def test_a_tail_is_every_change_past_the_point_that_no_apply_made() -> None:
    store = new_store()
    await put(store, b"/orders/before", b"0")
    after = await put(store, b"/orders/gone", b"0")
    wanted = [await put(store, b"/orders/a", b"1"), await put(store, b"/orders/a", b"2")]
    await put(store, b"/other/a", b"1")
    applied = (Put(b"/orders/applied", b"1"), Put(RegionalKeys.checkpoint("b"), b"{}"))
    await store.commit(Txn(operations=applied))
    wanted.append(await delete(store, b"/orders/gone"))

    found = await tail_of(reader_of(store, after, {b"/orders/gone": b"0"}))

    entries = [one.entry for one in found]
    assert [entry.sequence for entry in entries] == wanted
    assert [one.here for one in found] == [b"1", b"2", None]
    assert [entry.is_newest for entry in entries] == [False, True, True]
    only_here, only_there = QuarantineClass.ONLY_HERE, QuarantineClass.ONLY_THERE
    assert [e.divergence for e in entries] == [only_here, only_here, only_there]


async def test_deletes_by_expiry_are_classed_apart_from_those_that_somebody_made() -> None:
    """S14: nobody wrote them; a lease that is still there tells an ordinary delete."""
    store = new_store()
    ended = (await store.grant(ttl_s=100)).lease_id
    alive = (await store.grant(ttl_s=100)).lease_id
    await put(store, b"/orders/session", b"1", ended)
    after = await put(store, b"/orders/lock", b"1", alive)
    await store.revoke(ended)
    await delete(store, b"/orders/lock")

    found = await tail_of(reader_of(store, after, {}))

    origins = {one.entry.key: one.entry.origin for one in found}
    assert origins == {b"/orders/session": Origin.EXPIRY, b"/orders/lock": Origin.TAIL}


async def test_a_tail_that_was_compacted_away_is_not_passed_over() -> None:
    store = new_store()
    after = await put(store, b"/orders/a", b"1")
    await put(store, b"/orders/a", b"2")
    await store.compact(await put(store, b"/orders/a", b"3"))

    with pytest.raises(Compacted):
        await tail_of(reader_of(store, after, {}))


async def test_a_long_tail_is_read_in_batches() -> None:
    store = new_store()
    after = await put(store, b"/orders/first", b"1")
    for number in range(200):
        await put(store, b"/orders/%03d" % number, b"1")

    reader = reader_of(store, after, {})
    async with aclosing(reader.batches()) as batches:
        sizes = [len(batch) async for batch in batches]

    assert sum(sizes) == 200
    assert max(sizes) <= 64


def test_the_name_of_an_entry_is_as_long_for_every_key() -> None:
    names = {len(attrs.evolve(entry_of(5), key=key).name) for key in (b"a", b"a" * 100_000)}

    assert len(names) == 1
