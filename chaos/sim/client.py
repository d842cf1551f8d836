"""A client of a simulated etcd: every request, reply and event crosses the network by itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs

from chaos.sim.etcd import SimEtcd
from chaos.sim.loop import NS_PER_MS
from chaos.sim.network import Network, Site, sleep_ns
from meshkit.errors import Compacted, MeshError, OutcomeUnknown, Unreachable
from meshkit.ordinals import NO_LEASE, LeaseId, Revision
from meshkit.store.history import changes_within
from meshkit.store.port import (
    LeaseGranted,
    LeaseTtl,
    Progress,
    RangeResult,
    RevisionChanges,
    StoreStatus,
    WatchItem,
)
from meshkit.store.txn import Get, KeyRange, KeyValue, Outcome, Txn

T = TypeVar("T")

REQUEST_MS = 2_000
"""How long a client waits for an answer unless told otherwise."""
WATCH_PATIENCE_MS = 3_000
RECONNECT_NS = 150 * NS_PER_MS

REFUSED_AT_ONCE = 0.3
"""Chance that a cut network is noticed before anything is sent."""
RESET = 0.3
"""Chance that a lost reply is noticed at once, by a reset connection."""


@attrs.define(kw_only=True, eq=False)
class SimStore:
    """One process's client. Satisfies `meshkit.store.port.Store`.

    A request and its reply each cross the network. Either may be lost; then the client learns
    nothing until its time is up, or, where the connection was reset, a little later.
    """

    server: SimEtcd
    network: Network
    site: Site
    _watches: list[SimWatch] = attrs.field(factory=list, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.server.know(self)

    @property
    def is_connected(self) -> bool:
        """Whether a request would be sent at once; see the port."""
        return not self._is_closed

    async def get(self, key: bytes) -> KeyValue | None:
        """Return the key, or None."""
        return next(iter((await self.range((key, b""))).items), None)

    async def range(
        self,
        key_range: KeyRange,
        *,
        revision: Revision | None = None,
        limit: int = 0,
        keys_only: bool = False,
        modified_after: Revision | None = None,
        count_only: bool = False,
    ) -> RangeResult:
        """Return the keys of a range; see the port."""

        def select() -> RangeResult:
            return self.server.history.select(
                key_range,
                revision=revision,
                limit=limit,
                keys_only=keys_only,
                modified_after=modified_after,
                count_only=count_only,
            )

        return await self._call("range", select, is_write=False)

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        """Apply the transaction at most once; see the port."""
        is_write = bool(txn.guards) or not _only_reads(txn)
        return await self._call(
            "commit", lambda: self.server.commit(txn), is_write=is_write, timeout_ms=timeout_ms
        )

    async def grant(self, *, ttl_s: int, lease_id: LeaseId = NO_LEASE) -> LeaseGranted:
        """Grant a lease; see the port."""
        return await self._call(
            "grant", lambda: self.server.grant(ttl_s=ttl_s, lease_id=lease_id), is_write=True
        )

    async def keep_alive(self, lease_id: LeaseId, *, timeout_ms: int | None = None) -> int:
        """Renew a lease once; see the port."""
        return await self._call(
            "keep_alive",
            lambda: self.server.keep_alive(lease_id),
            is_write=True,
            timeout_ms=timeout_ms,
        )

    async def revoke(self, lease_id: LeaseId) -> None:
        """Revoke a lease."""
        await self._call("revoke", lambda: self.server.revoke(lease_id), is_write=True)

    async def time_to_live(self, lease_id: LeaseId) -> int:
        """Return the remaining TTL in whole seconds."""
        return (await self.lease_ttl(lease_id)).remaining_s

    async def lease_ttl(self, lease_id: LeaseId) -> LeaseTtl:
        """Return the granted and the remaining TTL."""
        ttl = self.server.lease_ttl
        return await self._call("lease_ttl", lambda: ttl(lease_id), is_write=False)

    async def lease_keys(self, lease_id: LeaseId) -> tuple[bytes, ...]:
        """Return the keys that hang on a lease."""
        keys = self.server.lease_keys
        return await self._call("lease_keys", lambda: keys(lease_id), is_write=False)

    async def status(self) -> StoreStatus:
        """Return the status of the one member."""
        return await self._call("status", self.server.status, is_write=False)

    async def compact(self, revision: Revision) -> None:
        """Drop history below `revision`."""
        await self._call("compact", lambda: self.server.history.compact(revision), is_write=True)

    async def close(self) -> None:
        """Release the client; its watches end."""
        self.cut_off()

    def cut_off(self) -> None:
        """The process is gone: nothing reaches it any more."""
        self._is_closed = True
        for watch in list(self._watches):
            watch.end()
        self.server.forget(self)

    @asynccontextmanager
    async def watch(
        self, key_range: KeyRange, *, start: Revision, progress_every_ms: int | None = None
    ) -> AsyncIterator[AsyncIterator[WatchItem]]:
        """Watch a range from revision `start` (inclusive); see the port."""
        assert start >= 1, "a watch starts at a revision"
        await self._call("watch", lambda: None, is_write=False)
        watch = SimWatch(store=self, key_range=key_range, resume_at=start)
        self._watches.append(watch)
        self.server.listeners.append(watch)
        watch.reload()
        if progress_every_ms is not None:
            watch.ask_for_progress(progress_every_ms * NS_PER_MS)
        try:
            yield watch
        finally:
            watch.end()
            self._watches.remove(watch)

    def resume_watches(self) -> None:
        """The server is back: its watches go on after what was delivered."""
        for watch in self._watches:
            watch.reload()

    def lose_watches(self) -> None:
        """The server is gone: its watches look for it for as long as they have patience."""
        for watch in self._watches:
            watch.lose()

    # --- one call ------------------------------------------------------------------------------

    async def _call(
        self, operation: str, act: Callable[[], T], *, is_write: bool, timeout_ms: int | None = None
    ) -> T:
        loop, network, server = self.server.loop, self.network, self.server
        future: asyncio.Future[T] = loop.create_future()
        if self._is_closed:
            raise Unreachable(f"{operation}: the client is closed")
        there_ns = network.transit_ns(self.site, server.site)
        if there_ns is None and network.rng.random() < REFUSED_AT_ONCE:
            # No route: certainly not sent.
            await sleep_ns(loop, int(network.rng.uniform(1, 20) * NS_PER_MS))
            raise Unreachable(f"{operation}: {server.name} could not be reached")

        def serve() -> None:
            try:
                result, error = act(), None
            except MeshError as refused:
                result, error = None, refused
            self._reply(future, operation, result, error, is_write=is_write)

        def refuse() -> None:
            error = Unreachable(f"{operation}: {server.name} refused the connection")
            self._reply(future, operation, None, error, is_write=is_write)

        if there_ns is not None:
            due_ns = loop.now_ns + there_ns
            loop.call_at_ns(due_ns, server.receive, serve, refuse, context=loop.outside)
        timer = loop.call_at_ns(
            loop.now_ns + (timeout_ms or REQUEST_MS) * NS_PER_MS,
            _fail,
            future,
            _silence(operation, server.name, is_write=is_write),
        )
        try:
            return await future
        finally:
            timer.cancel()

    def _reply(
        self,
        future: asyncio.Future[T],
        operation: str,
        result: T | None,
        error: MeshError | None,
        *,
        is_write: bool,
    ) -> None:
        loop, network, server = self.server.loop, self.network, self.server
        back_ns = network.transit_ns(server.site, self.site)
        if back_ns is None:
            if network.rng.random() < RESET:
                broken = _silence(operation, server.name, is_write=is_write)
                loop.call_at_ns(loop.now_ns + 2 * NS_PER_MS, _fail, future, broken)
            return
        if error is not None:
            loop.call_at_ns(loop.now_ns + back_ns, _fail, future, error, context=loop.outside)
        else:
            loop.call_at_ns(loop.now_ns + back_ns, _succeed, future, result, context=loop.outside)


@attrs.define(kw_only=True, eq=False)
class SimWatch:
    """One watch: changes cross the network in order, and are repeated from where they stopped.

    Invariant: `resume_at` is one more than the greatest revision delivered or on its way.
    """

    store: SimStore
    key_range: KeyRange
    resume_at: Revision
    _inbox: deque[WatchItem | MeshError] = attrs.field(factory=deque, init=False)
    _is_over: bool = attrs.field(default=False, init=False)
    _is_waiting: bool = attrs.field(default=False, init=False)
    _generation: int = attrs.field(default=0, init=False)
    _last_ns: int = attrs.field(default=0, init=False)
    _waiter: asyncio.Future[None] | None = attrs.field(default=None, init=False)

    def __aiter__(self) -> SimWatch:
        return self

    async def __anext__(self) -> WatchItem:
        while not self._inbox:
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = self.store.server.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._inbox.popleft()
        if isinstance(item, MeshError):
            self._is_over = True
            raise item
        return item

    def on_changes(self, changes: RevisionChanges) -> None:
        """Send a new revision on its way."""
        if self._is_waiting or self._is_over or changes.revision < self.resume_at:
            return
        start, end = self.key_range
        is_seen = end == b"\x00" or _is_within(changes, start, end or start + b"\x00")
        seen = changes_within(changes, self.key_range) if is_seen else None
        if seen is not None and self._send(seen):
            self.resume_at = Revision(changes.revision + 1)

    def _send(self, item: WatchItem) -> bool:
        """Send something on its way, behind what was sent before; False if it gets lost."""
        server, store = self.store.server, self.store
        loop = server.loop
        way_ns = store.network.transit_ns(server.site, store.site)
        if way_ns is None:
            self.lose()
            return False
        self._last_ns = max(self._last_ns, loop.now_ns + way_ns)
        loop.call_at_ns(self._last_ns, self._deliver, item, context=loop.outside)
        return True

    def ask_for_progress(self, interval_ns: int) -> None:
        """Have the server say now and then how far the watch is."""
        server = self.store.server
        if self._is_over:
            return
        if not self._is_waiting and server.is_up and not server.is_frozen:
            self._send(Progress(revision=server.history.revision))
        server.loop.call_at_ns(
            server.loop.now_ns + interval_ns,
            self.ask_for_progress,
            interval_ns,
            context=server.loop.outside,
        )

    def lose(self) -> None:
        """The connection broke."""
        if not self._is_waiting:
            now_ns = self.store.server.loop.now_ns
            self._retry_until(now_ns + WATCH_PATIENCE_MS * NS_PER_MS)

    def _retry_until(self, deadline_ns: int) -> None:
        """Connect again every so often, and give up after the patience."""
        self._is_waiting = True
        self._generation += 1
        loop = self.store.server.loop
        loop.call_at_ns(
            loop.now_ns + RECONNECT_NS,
            self._reconnect,
            self._generation,
            deadline_ns,
            context=loop.outside,
        )

    def _reconnect(self, generation: int, deadline_ns: int) -> None:
        if generation != self._generation or not self._is_waiting or self._is_over:
            return
        server, network, site = self.store.server, self.store.network, self.store.site
        is_open = server.is_up and not server.is_frozen
        if (
            is_open
            and not network.is_cut(site, server.site)
            and not network.is_cut(server.site, site)
        ):
            self.reload()
        elif server.loop.now_ns >= deadline_ns:
            self._deliver(Unreachable(f"{server.name} could not be reached"))
        else:
            self._retry_until(deadline_ns)

    def reload(self) -> None:
        """Send everything again that has not been sent."""
        self._is_waiting = False
        try:
            backlog = list(self.store.server.history.since(self.resume_at))
        except Compacted as error:
            self._deliver(error)
            return
        for changes in backlog:
            self.on_changes(changes)

    def end(self) -> None:
        """End the iteration."""
        self._is_over = True
        self._inbox.clear()
        listeners = self.store.server.listeners
        if self in listeners:
            listeners.remove(self)
        self._wake()

    def _deliver(self, item: WatchItem | MeshError) -> None:
        if not self._is_over:
            self._inbox.append(item)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _is_within(changes: RevisionChanges, start: bytes, end: bytes) -> bool:
    return any([start <= change.item.key < end for change in changes.changes])  # noqa: C419 -- quicker


def _only_reads(txn: Txn) -> bool:
    return all(isinstance(operation, Get) for operation in txn.operations)


def _silence(operation: str, name: str, *, is_write: bool) -> MeshError:
    text = f"{operation}: no answer from {name}"
    return OutcomeUnknown(text) if is_write else Unreachable(text)


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: MeshError) -> None:
    if not future.done():
        future.set_exception(error)
