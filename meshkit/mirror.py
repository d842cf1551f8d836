"""A prefix of a store, mirrored in memory and kept up to date by a watch.

For reading the state of affairs without asking each time. It may lag behind the store; whatever
is decided from it is guarded by revisions when it is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import structlog

from meshkit.clock import Clock
from meshkit.errors import Compacted, MeshError
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import KeyValue, prefix_range

_log = structlog.get_logger()

RETRY_MS = 250
"""How long a mirror waits before it reads anew after its store could not be reached."""


class PrefixMirror:
    """The keys below a prefix, as of `revision`.

    Invariant: `entries` is exactly the prefix's content at `revision` once `ready` is set.
    """

    def __init__(self, store: Store, prefix: bytes, *, clock: Clock) -> None:
        self.entries: dict[bytes, KeyValue] = {}
        self.revision = Revision(0)
        self.ready = asyncio.Event()
        self._store = store
        self._range = prefix_range(prefix)
        self._clock = clock
        self._listeners: list[Callable[[frozenset[bytes]], None]] = []
        self._moved = asyncio.Event()
        self._waiting: dict[bytes, set[asyncio.Event]] = {}

    def on_change(self, listener: Callable[[frozenset[bytes]], None]) -> None:
        """Call `listener` with the keys that changed, after each revision that changed some."""
        self._listeners.append(listener)

    async def changes(self) -> AsyncIterator[None]:
        """Yield once when ready and then after each change; changes in between are merged."""
        await self.ready.wait()
        while True:
            self._moved.clear()
            yield
            await self._moved.wait()

    async def changes_of(self, key: bytes) -> AsyncGenerator[None, None]:
        """Yield once when ready and then after each change of this key; others wake nobody."""
        await self.ready.wait()
        moved = asyncio.Event()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(moved)
        try:
            while True:
                moved.clear()
                yield
                await moved.wait()
        finally:
            waiting.discard(moved)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]

    async def run(self) -> None:
        """Mirror until cancelled; survives the store's absence."""
        while True:
            try:
                await self._load()
                await self._follow()
            except Compacted:
                continue
            except MeshError as error:
                _log.warning("mirror.interrupted", prefix=self._range[0].decode(), why=str(error))
                await self._clock.sleep_ms(RETRY_MS)

    async def _load(self) -> None:
        result = await self._store.range(self._range)
        fresh = {item.key: item for item in result.items}
        changed = {
            key
            for key in fresh.keys() | self.entries.keys()
            if fresh.get(key) != self.entries.get(key)
        }
        self.entries = fresh
        self._advance(result.revision, frozenset(changed))
        self.ready.set()

    async def _follow(self) -> None:
        async with self._store.watch(self._range, start=Revision(self.revision + 1)) as items:
            async for item in items:
                if isinstance(item, RevisionChanges):
                    self._take_in(item)

    def _take_in(self, item: RevisionChanges) -> None:
        for change in item.changes:
            if change.is_delete:
                self.entries.pop(change.key, None)
            else:
                self.entries[change.key] = change.item
        self._advance(item.revision, frozenset(change.key for change in item.changes))

    def _advance(self, revision: Revision, changed: frozenset[bytes]) -> None:
        self.revision = revision
        for listener in self._listeners:
            listener(changed)
        if self._waiting:
            for key in changed & self._waiting.keys():
                for moved in self._waiting[key]:
                    moved.set()
        self._moved.set()
