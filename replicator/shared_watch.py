"""One watch of the whole store for everyone in this process who follows its head.

Each stream out of a region, and the look-out for foreign writes, read every revision. A watch for
each made etcd encode, and this process decode, every change several times over. What was read last
is kept here for a moment; who is further behind than that reads by a watch of its own until it is
not, so nobody is held up by another, and nothing is kept for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.errors import MeshError
from meshkit.keys import RegionalKeys
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges, Store, WatchItem
from meshkit.store.txn import WHOLE_STORE
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.pulse import Pulse
from replicator.weight import changes_bytes

_log = structlog.get_logger()

WatchAll = Callable[[Revision], AbstractAsyncContextManager[AsyncIterator[WatchItem]]]
"""Watches the whole store from a revision on, inclusive."""

RETRY_MS = 500


class NotWhole(Exception):
    """A watch of the whole store has left something out; it is read again by another."""


def alone(store: Store) -> WatchAll:
    """Return watches of the whole store that share nothing."""
    return lambda start: store.watch(WHOLE_STORE, start=start)


@attrs.define(eq=False)
class _Link:
    """A revision that was read, and what was read after it."""

    changes: RevisionChanges | None
    """None: a revision before everything that is kept."""
    weight_bytes: int
    after: _Link | None = None
    is_cut: bool = False
    """What came after it is no longer kept."""


class SharedWatch:
    """Reads the head once, for all. Without `run` everyone reads alone.

    Invariant: the links from `_before` on hold every revision past `_floor` that was read, in order
    and without a gap; they weigh no more than `shared_watch_bytes_max`, beside the newest.
    """

    def __init__(self, store: Store, *, clock: Clock, limits: Limits = DEFAULT_LIMITS) -> None:
        self.store = store
        self.pulse = Pulse()
        self._clock = clock
        self._bytes_max = limits.shared_watch_bytes_max
        self._floor: Revision | None = None
        """Everything that was committed after it is here; None: nothing is read."""
        self._before = self._newest = _Link(None, 0, is_cut=True)
        self._kept_bytes = 0

    async def run(self) -> None:
        """Read until cancelled; while the store is away everyone reads alone."""
        while True:
            try:
                await self._read()
            except (MeshError, NotWhole) as error:
                # Who follows has a watch, and a patience, of its own.
                _log.info("shared_watch.interrupted", why=str(error))
            finally:
                self._end()
            await self._clock.sleep_ms(RETRY_MS)

    @asynccontextmanager
    async def watch(self, start: Revision) -> AsyncIterator[AsyncIterator[WatchItem]]:
        """Watch the whole store from revision `start` on, like the store itself does.

        Raises:
            Compacted, Unreachable, NotAllowed: as of a watch of its own.
        """
        reader = _Reader(self, start)
        try:
            await reader.open()
            yield reader
        finally:
            await reader.close()

    def link_at(self, position: Revision) -> _Link | None:
        """Return a link no revision past `position` comes before; None if not all are kept."""
        return self._before if self._floor is not None and position >= self._floor else None

    async def _read(self) -> None:
        seen = await self.store.range((RegionalKeys.fence_index, b""), keys_only=True)
        async with self.store.watch(WHOLE_STORE, start=Revision(seen.revision + 1)) as items:
            self._floor = seen.revision
            self._before = self._newest = _Link(None, 0)
            unseen_bytes, through = 0, int(seen.revision)
            async for item in items:
                if not isinstance(item, RevisionChanges):
                    # Every revision has an event, so it cannot be told of before it was seen.
                    _check(item.revision <= through, item.revision, through)
                    continue
                _check(item.revision == through + 1, item.revision, through)
                through = item.revision
                unseen_bytes += self._append(item)
                if unseen_bytes > self._bytes_max // 4:
                    # A response of etcd is read without a pause; who follows takes it in here.
                    unseen_bytes = 0
                    await asyncio.sleep(0)

    def _append(self, changes: RevisionChanges) -> int:
        link = _Link(changes, changes_bytes(changes))
        self._newest.after = link
        self._newest = link
        self._kept_bytes += link.weight_bytes
        while self._kept_bytes > self._bytes_max and self._before.after is not link:
            self._drop_oldest()
        self.pulse.beat()
        return link.weight_bytes

    def _drop_oldest(self) -> None:
        oldest = self._before.after
        assert oldest is not None, "something is kept"
        assert oldest.changes is not None, "only the first of all is empty"
        # Who has read just the oldest goes on; who has not is behind.
        self._before.after, self._before.is_cut = None, True
        self._before, self._floor = oldest, oldest.changes.revision
        self._kept_bytes -= oldest.weight_bytes

    def _end(self) -> None:
        """Keep nothing: who follows goes on alone once it has read what was kept."""
        self._floor = None
        self._newest.is_cut = True
        self._before = self._newest
        self._kept_bytes = 0
        self.pulse.beat()


def _check(is_sound: bool, revision: Revision, through: int) -> None:
    if not is_sound:
        raise NotWhole(f"revision {revision} was told of after {through}")


class _Reader:
    """Reads what is kept while it can, else by a watch of its own; all of it, and nothing twice."""

    def __init__(self, shared: SharedWatch, start: Revision) -> None:
        self._shared = shared
        self._position = Revision(start - 1)
        self._link: _Link | None = None
        self._own: AsyncIterator[WatchItem] | None = None
        self._opened = AsyncExitStack()

    def __aiter__(self) -> _Reader:
        return self

    async def open(self) -> None:
        """Begin where the others are, or alone."""
        self._link = self._shared.link_at(self._position)
        if self._link is None:
            start = Revision(self._position + 1)
            own = self._shared.store.watch(WHOLE_STORE, start=start)
            self._own = await self._opened.enter_async_context(own)

    async def close(self) -> None:
        """End the watch of its own, if there is one."""
        self._link = self._own = None
        await self._opened.aclose()

    async def __anext__(self) -> WatchItem:
        while True:
            if self._own is not None:
                return await self._next_alone(self._own)
            if self._link is None:
                raise StopAsyncIteration
            changes = await self._next_kept(self._link)
            if changes is not None:
                return changes

    async def _next_alone(self, own: AsyncIterator[WatchItem]) -> WatchItem:
        item = await anext(own)
        if isinstance(item, RevisionChanges):
            self._position = item.revision
            link = self._shared.link_at(item.revision)
            if link is not None:
                self._link, self._own = link, None
                await self._opened.aclose()
        return item

    async def _next_kept(self, link: _Link) -> RevisionChanges | None:
        following = link.after
        if following is not None:
            self._link, changes = following, following.changes
            assert changes is not None, "only the first of all is empty"
            if changes.revision <= self._position:
                return None
            self._position = changes.revision
            return changes
        if link.is_cut:
            await self.open()
        else:
            await self._shared.pulse.wait()
        return None
