"""A shared store answers as the store does, with fewer requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshkit.clock import ManualClock
from meshkit.keys import ROOT
from meshkit.ordinals import Revision
from meshkit.store.memory import MemoryStore
from meshkit.store.port import RangeResult
from meshkit.store.shared import SharedCommits
from meshkit.store.shared_store import SMALL_READ_MAX, SharedStore
from meshkit.store.txn import Committed, Get, Outcome, Put, Txn, prefix_range

OWN = ROOT + b"fence/"


class Counting(MemoryStore):
    """Counts requests."""

    commits = 0
    ranges = 0

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        self.commits += 1
        return await super().commit(txn, timeout_ms=timeout_ms)

    async def range(self, *args: object, **options: object) -> RangeResult:
        self.ranges += 1
        return await super().range(*args, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def sharing(keys: int) -> AsyncIterator[tuple[Counting, SharedStore]]:
    store = Counting(clock=ManualClock())
    for number in range(keys):
        await store.commit(Txn(operations=(Put(OWN + b"%03d" % number, b"v"),)))
    store.commits = 0
    commits = SharedCommits(store=store)
    running = asyncio.create_task(commits.run())
    try:
        yield store, SharedStore(store=store, commits=commits)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_small_reads_of_the_same_moment_are_one_request() -> None:
    async with sharing(3) as (store, shared):
        one, missing, pair, commit = await asyncio.gather(
            shared.get(OWN + b"001"),
            shared.get(OWN + b"none"),
            shared.range(prefix_range(OWN), limit=3, keys_only=True),
            shared.commit(Txn(operations=(Put(OWN + b"a", b"v"),))),
        )

        assert (store.commits, store.ranges) == (1, 0)
        assert one is not None
        assert one.value == b"v"
        assert missing is None
        assert [item.key for item in pair.items] == [OWN + b"%03d" % n for n in range(3)]
        assert not pair.more
        assert isinstance(commit, Committed)


async def test_a_range_has_the_answer_of_the_store_itself() -> None:
    """Also where there is more than asked for, which only the store can count."""
    asked: list[dict[str, object]] = [
        {},
        {"limit": 2},
        {"limit": 5, "keys_only": True},
        {"limit": SMALL_READ_MAX + 1},
        {"revision": Revision(3)},
        {"modified_after": Revision(3)},
        {"count_only": True},
    ]
    async with sharing(5) as (store, shared):
        for options in asked:
            for key_range in (prefix_range(OWN), (OWN + b"001", b""), (b"/orders/", b"")):
                expected = await store.range(key_range, **options)  # type: ignore[arg-type]

                assert await shared.range(key_range, **options) == expected  # type: ignore[arg-type]


async def test_applications_values_are_read_alone() -> None:
    """They may be large: sixty-four of them might not fit into one answer."""
    async with sharing(1) as (store, shared):
        await asyncio.gather(
            shared.get(b"/orders/1"),
            shared.commit(Txn(operations=(Get(b"/orders/1"),))),
            shared.commit(Txn(operations=(Get(b"/orders/2"),))),
        )

        assert store.commits == 2


async def test_an_applications_key_shares_a_revision_with_nothing() -> None:
    """A revision with a checkpoint in it counts as applied, so that write would be in no log."""
    async with sharing(0) as (store, shared):
        hang, join = await asyncio.gather(
            shared.commit(Txn(operations=(Put(b"/orders/1", b"v"),))),
            shared.commit(Txn(operations=(Put(ROOT + b"checkpoint/b/orders", b"c"),))),
        )

        assert store.commits == 2
        assert hang.revision != join.revision
