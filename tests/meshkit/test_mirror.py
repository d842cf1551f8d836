"""A mirrored prefix equals the prefix, also after the store was away or compacted."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from meshkit.clock import ManualClock, settle
from meshkit.mirror import RETRY_MS, PrefixMirror
from meshkit.ordinals import Revision
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Delete, Operation, Put, Txn

PREFIX = b"/mesh/v1/groups/"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@asynccontextmanager
async def mirroring(store: MemoryStore, clock: ManualClock) -> AsyncIterator[PrefixMirror]:
    """Run a mirror on a client of its own, so that cutting it off leaves the writer alone."""
    mirror = PrefixMirror(store, PREFIX, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mirror.run())
        await settle()
        yield mirror
        running.cancel()


async def write(store: MemoryStore, *operations: Operation) -> None:
    await store.commit(Txn(operations=operations))
    await settle()


def put(name: bytes, value: bytes = b"1") -> Put:
    return Put(PREFIX + name, value)


def shown(mirror: PrefixMirror) -> dict[bytes, bytes]:
    return {key.removeprefix(PREFIX): item.value for key, item in mirror.entries.items()}


@contextmanager
def listening(mirror: PrefixMirror) -> Iterator[list[set[bytes]]]:
    heard: list[set[bytes]] = []
    mirror.on_change(lambda keys: heard.append({key.removeprefix(PREFIX) for key in keys}))
    yield heard


async def test_it_starts_with_what_is_there_and_nothing_else(
    store: MemoryStore, clock: ManualClock
) -> None:
    await write(store, put(b"a"), Put(b"/mesh/v1/groupsother", b"x"), Put(b"/orders/1", b"x"))

    async with mirroring(store, clock) as mirror:
        assert mirror.ready.is_set()
        assert shown(mirror) == {b"a": b"1"}
        assert mirror.revision == 2


async def test_it_follows_puts_and_deletes(store: MemoryStore, clock: ManualClock) -> None:
    async with mirroring(store, clock) as mirror:
        await write(store, put(b"a"), put(b"b"))
        await write(store, put(b"a", b"2"), Delete(PREFIX + b"b"))

        assert shown(mirror) == {b"a": b"2"}
        assert mirror.revision == 3


async def test_a_transaction_is_seen_whole(store: MemoryStore, clock: ManualClock) -> None:
    """Who decides from half a transaction decides wrongly."""
    async with mirroring(store, clock) as mirror:
        with listening(mirror) as heard:
            await write(store, put(b"a"), put(b"b"))
            await write(store, Delete(PREFIX, PREFIX + b"\xff"))

        assert heard == [{b"a", b"b"}, {b"a", b"b"}]


async def test_it_knows_the_mod_revision_that_a_guard_compares(
    store: MemoryStore, clock: ManualClock
) -> None:
    async with mirroring(store, clock) as mirror:
        await write(store, put(b"a"))
        await write(store, put(b"a", b"2"))

        item = mirror.entries[PREFIX + b"a"]
        assert (item.create_revision, item.mod_revision) == (2, 3)


async def test_it_is_not_ready_before_it_has_read_the_store(
    store: MemoryStore, clock: ManualClock
) -> None:
    """An empty mirror of an unreachable store must not pass for an empty store."""
    client = store.connect()
    client.partition()

    async with mirroring(client, clock) as mirror:
        assert not mirror.ready.is_set()

        client.heal()
        await clock.advance_ms(RETRY_MS)

        assert mirror.ready.is_set()


async def test_after_an_absence_it_shows_what_changed_meanwhile(
    store: MemoryStore, clock: ManualClock
) -> None:
    client = store.connect()
    await write(store, put(b"kept"), put(b"gone"), put(b"changed"))

    async with mirroring(client, clock) as mirror:
        with listening(mirror) as heard:
            client.partition()
            client.break_watches()
            await write(store, Delete(PREFIX + b"gone"), put(b"changed", b"2"), put(b"new"))
            assert shown(mirror) == {b"kept": b"1", b"gone": b"1", b"changed": b"1"}

            client.heal()
            await clock.advance_ms(RETRY_MS)

            assert shown(mirror) == {b"kept": b"1", b"changed": b"2", b"new": b"1"}
            assert set().union(*heard) == {b"gone", b"changed", b"new"}


async def test_compaction_past_its_place_makes_it_read_anew(
    store: MemoryStore, clock: ManualClock
) -> None:
    client = store.connect()
    await write(store, put(b"gone"))

    async with mirroring(client, clock) as mirror:
        client.partition()
        await write(store, Delete(PREFIX + b"gone"))
        await write(store, put(b"a"))
        await write(store, put(b"a", b"2"))
        await store.compact(Revision(5))

        client.heal()
        await settle()
        await clock.advance_ms(RETRY_MS)

        assert shown(mirror) == {b"a": b"2"}
        await write(store, put(b"b"))
        assert shown(mirror) == {b"a": b"2", b"b": b"1"}


async def test_changes_wakes_once_for_many_changes_while_nobody_looked(
    store: MemoryStore, clock: ManualClock
) -> None:
    async with mirroring(store, clock) as mirror:
        changes = mirror.changes()
        await anext(changes)
        await write(store, put(b"a"))
        await write(store, put(b"b"))

        await anext(changes)
        waiting = asyncio.ensure_future(anext(changes))
        await settle()

        assert shown(mirror) == {b"a": b"1", b"b": b"1"}
        assert not waiting.done()
        waiting.cancel()


async def test_a_listener_hears_of_the_first_reading(
    store: MemoryStore, clock: ManualClock
) -> None:
    await write(store, put(b"a"))
    mirror = PrefixMirror(store, PREFIX, clock=clock)
    with listening(mirror) as heard:
        running = asyncio.ensure_future(mirror.run())
        await settle()
        running.cancel()

    assert heard[0] == {b"a"}


async def test_whoever_waits_for_one_key_is_woken_by_no_other(
    store: MemoryStore, clock: ManualClock
) -> None:
    """A thousand groups that wait for their authority would otherwise wake a million times."""
    async with mirroring(store, clock) as mirror:
        seen: list[bytes | None] = []

        async def follow() -> None:
            async for _ in mirror.changes_of(PREFIX + b"a"):
                item = mirror.entries.get(PREFIX + b"a")
                seen.append(item.value if item else None)

        following = asyncio.create_task(follow())
        await settle()
        await write(store, put(b"b"))
        await write(store, put(b"a", b"1"), put(b"c"))
        await write(store, put(b"c", b"2"))
        await write(store, Delete(PREFIX + b"a"))
        following.cancel()

    assert seen == [None, b"1", None]
