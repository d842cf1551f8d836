"""Everyone who follows the head by one watch sees what a watch of its own would have shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from meshkit.clock import ManualClock, settle
from meshkit.errors import Compacted
from meshkit.ordinals import Revision
from meshkit.store.memory import MemoryStore
from meshkit.store.port import Progress, RevisionChanges, WatchItem
from meshkit.store.txn import KeyRange, Put, Txn
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.shared_watch import SharedWatch

SMALL = Limits(shared_watch_bytes_max=2_000)
"""Keeps some six revisions of these."""


@attrs.define(kw_only=True, eq=False)
class Spied(MemoryStore):
    """Remembers where watches began; the first of them may add, or leave out, something."""

    starts: list[Revision] = attrs.field(factory=list)
    loses: Revision | None = None
    says_early: Revision | None = None

    @asynccontextmanager
    async def watch(
        self, key_range: KeyRange, *, start: Revision, progress_every_ms: int | None = None
    ) -> AsyncIterator[AsyncIterator[WatchItem]]:
        is_first = not self.starts
        self.starts.append(start)
        async with MemoryStore.watch(self, key_range, start=start) as items:
            yield self._spoilt(items) if is_first else items

    async def _spoilt(self, items: AsyncIterator[WatchItem]) -> AsyncIterator[WatchItem]:
        async for item in items:
            if item.revision == self.says_early:
                yield Progress(revision=Revision(item.revision + 50))
                await asyncio.Event().wait()
            if item.revision != self.loses:
                yield item


@attrs.define
class Follower:
    """Reads until it is held."""

    shared: SharedWatch
    start: Revision
    seen: list[int] = attrs.field(factory=list)
    may_go_on: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def run(self) -> None:
        async with self.shared.watch(self.start) as items:
            async for item in items:
                if isinstance(item, RevisionChanges):
                    self.seen.append(item.revision)
                await self.may_go_on.wait()


class Scene:
    """One store, one shared watch, and who follows it."""

    def __init__(self, store: Spied, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.store = store
        self.shared = SharedWatch(store, clock=store.clock, limits=limits)
        self.tasks = [asyncio.ensure_future(self.shared.run())]

    async def follow(self, start: int, *, is_held: bool = False) -> Follower:
        follower = Follower(self.shared, Revision(start))
        if not is_held:
            follower.may_go_on.set()
        self.tasks.append(asyncio.ensure_future(follower.run()))
        await settle()
        return follower

    async def write(self, count: int) -> int:
        for _ in range(count):
            await self.store.commit(Txn(operations=(Put(b"/orders/1", b"x" * 40),)))
            await settle()
        return (await self.store.range((b"\0", b""))).revision


@asynccontextmanager
async def scene(
    store: Spied | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> AsyncIterator[Scene]:
    made = Scene(store or Spied(clock=ManualClock()), limits=limits)
    await settle()
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_followers_of_the_head_share_one_watch() -> None:
    """Each watch costs etcd and this process every change once more."""
    async with scene() as made:
        head = await made.write(1)
        one, other = await made.follow(head + 1), await made.follow(head + 1)
        last = await made.write(3)

        assert one.seen == other.seen == list(range(head + 1, last + 1))
        assert len(made.store.starts) == 1


async def test_who_is_behind_reads_alone_until_it_is_not() -> None:
    """What is kept is bounded, and nobody is to miss anything for it."""
    async with scene(limits=SMALL) as made:
        last = await made.write(30)
        late = await made.follow(2)
        assert late.seen == list(range(2, last + 1))
        begun = len(made.store.starts)

        last = await made.write(30)

        assert late.seen == list(range(2, last + 1))
        assert len(made.store.starts) == begun == 2


async def test_who_is_held_up_holds_up_nobody_and_misses_nothing() -> None:
    """A target that takes nothing must not stop another."""
    async with scene(limits=SMALL) as made:
        head = await made.write(1)
        held, free = await made.follow(head + 1, is_held=True), await made.follow(head + 1)
        last = await made.write(50)
        assert free.seen == list(range(head + 1, last + 1))
        assert len(held.seen) == 1

        held.may_go_on.set()
        await settle()

        assert held.seen == free.seen


async def test_a_follower_goes_on_alone_when_the_shared_watch_ends() -> None:
    """It must not stop with it, and what it missed meanwhile is still in the store."""
    async with scene() as made:
        head = await made.write(1)
        follower = await made.follow(head + 1)
        await made.write(2)
        made.tasks[0].cancel()
        await settle()

        last = await made.write(2)

        assert follower.seen == list(range(head + 1, last + 1))


@pytest.mark.parametrize("fault", ["loses", "says_early"])
async def test_a_shared_watch_that_leaves_something_out_is_not_believed(fault: str) -> None:
    """One server's watch that is wrong would else be wrong for all, and until the process ends."""
    async with scene(Spied(clock=ManualClock(), **{fault: Revision(4)})) as made:
        follower = await made.follow(2)
        last = await made.write(6)

        assert follower.seen == list(range(2, last + 1))


async def test_what_is_compacted_is_told_at_once() -> None:
    """Whoever asks for it has to begin elsewhere, as with a watch of its own."""
    async with scene(limits=SMALL) as made:
        last = await made.write(30)
        await made.store.compact(Revision(last - 1))

        with pytest.raises(Compacted):
            async with made.shared.watch(Revision(3)) as items:
                await anext(items)
