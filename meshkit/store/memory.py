"""An etcd in memory: the store for tests and for simulation. It keeps nothing on disk.

`MemoryStore` is one client; `MemoryStore.connect` gives another client of the same server, with
faults of its own, so that a simulation can cut one process off and leave the others alone.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import attrs

from meshkit.clock import Clock
from meshkit.errors import Compacted, MeshError, OutcomeUnknown, Unreachable
from meshkit.etcd_binary import is_progress_sound
from meshkit.ordinals import NO_LEASE, LeaseId, Revision
from meshkit.store.history import changes_within
from meshkit.store.memory_server import MemoryServer
from meshkit.store.port import (
    LeaseGranted,
    LeaseTtl,
    Progress,
    RangeResult,
    RevisionChanges,
    StoreStatus,
    WatchItem,
)
from meshkit.store.txn import KeyRange, KeyValue, Outcome, Txn

DEFAULT_CLUSTER_ID = 0x6D657368


class Fault(enum.Enum):
    """What goes wrong with one call."""

    NONE = "none"
    UNREACHABLE = "unreachable"
    """The request is certainly not sent."""
    REQUEST_LOST = "request_lost"
    """Not applied, but the caller cannot know."""
    REPLY_LOST = "reply_lost"
    """Applied, but the caller cannot know."""


class Faults(Protocol):
    """Decides the fate of each call."""

    async def before(self, operation: str) -> Fault:
        """Return what goes wrong with this call (`"commit"`, `"get"`, ...); may wait first."""


@attrs.define(kw_only=True, eq=False)
class MemoryStore:
    """One client of an etcd in memory. Satisfies `meshkit.store.port.Store`.

    Leases run on `clock` and end at their deadline, or at the next call if nothing slept until
    then. Watches of one client are delivered in the order in which revisions happen.
    """

    clock: Clock
    cluster_id: int = DEFAULT_CLUSTER_ID
    lease_ttl_s_min: int = 2
    version: str = "3.5.30"
    faults: Faults | None = None
    _server: MemoryServer | None = attrs.field(default=None, alias="server")
    _watches: list[_Watch] = attrs.field(factory=list, init=False)
    _is_cut: bool = attrs.field(default=False, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    @property
    def server(self) -> MemoryServer:
        """The server this client speaks to."""
        if self._server is None:
            self._server = MemoryServer(
                clock=self.clock,
                cluster_id=self.cluster_id,
                lease_ttl_s_min=self.lease_ttl_s_min,
                version=self.version,
            )
        return self._server

    def connect(self, *, faults: Faults | None = None) -> MemoryStore:
        """Return another client of the same server."""
        return MemoryStore(
            clock=self.clock, cluster_id=self.cluster_id, faults=faults, server=self.server
        )

    async def get(self, key: bytes) -> KeyValue | None:
        """Return the key (linearizable), or None."""
        result = await self.range((key, b""))
        return result.items[0] if result.items else None

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
        await self._enter_read("range")
        return self.server.history.select(
            key_range,
            revision=revision,
            limit=limit,
            keys_only=keys_only,
            modified_after=modified_after,
            count_only=count_only,
        )

    @property
    def is_connected(self) -> bool:
        """Whether a request would be sent at once; see the port."""
        return not (self._is_cut or self._is_closed)

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        """Apply the transaction at most once; see the port."""
        fault = await self._enter_write("commit")
        try:
            outcome = self.server.commit(txn)
        except MeshError:
            _lose_reply(fault, "commit")
            raise
        _lose_reply(fault, "commit")
        return outcome

    @asynccontextmanager
    async def watch(
        self, key_range: KeyRange, *, start: Revision, progress_every_ms: int | None = None
    ) -> AsyncIterator[AsyncIterator[WatchItem]]:
        """Watch a range from revision `start` (inclusive); see the port."""
        assert start >= 1, "a watch starts at a revision"
        await self._enter_read("watch")
        watch = _Watch(
            store=self,
            key_range=key_range,
            resume_at=start,
            # It answers at once, so how often it is asked makes no difference.
            asks_for_progress=progress_every_ms is not None
            and is_progress_sound(self.server.version),
        )
        self._watches.append(watch)
        self.server.listeners.append(watch)
        watch.reload()
        try:
            yield watch
        finally:
            watch.end()
            self._watches.remove(watch)
            self.server.listeners.remove(watch)

    async def grant(self, *, ttl_s: int, lease_id: LeaseId = NO_LEASE) -> LeaseGranted:
        """Grant a lease; see the port."""
        fault = await self._enter_write("grant")
        granted = self.server.grant(ttl_s=ttl_s, lease_id=lease_id)
        _lose_reply(fault, "grant")
        return granted

    async def keep_alive(self, lease_id: LeaseId, *, timeout_ms: int | None = None) -> int:
        """Renew a lease once and return its TTL in seconds; see the port."""
        fault = await self._enter_write("keep_alive")
        ttl_s = self.server.keep_alive(lease_id)
        _lose_reply(fault, "keep_alive")
        return ttl_s

    async def revoke(self, lease_id: LeaseId) -> None:
        """Revoke a lease and delete its keys. A lease that is not there is a success."""
        fault = await self._enter_write("revoke")
        self.server.revoke(lease_id)
        _lose_reply(fault, "revoke")

    async def time_to_live(self, lease_id: LeaseId) -> int:
        """Return the remaining TTL in whole seconds; see the port."""
        await self._enter_read("time_to_live")
        return self.server.time_to_live(lease_id)

    async def lease_ttl(self, lease_id: LeaseId) -> LeaseTtl:
        """Return the granted and the remaining TTL; see the port."""
        await self._enter_read("lease_ttl")
        return self.server.lease_ttl(lease_id)

    async def lease_keys(self, lease_id: LeaseId) -> tuple[bytes, ...]:
        """Return the keys that hang on a lease; see the port."""
        await self._enter_read("lease_keys")
        return self.server.lease_keys(lease_id)

    async def status(self) -> StoreStatus:
        """Return the status of the one member."""
        await self._enter_read("status")
        return self.server.status()

    async def compact(self, revision: Revision) -> None:
        """Drop history below `revision`. Compacting twice to the same revision is a success."""
        fault = await self._enter_write("compact")
        self.server.history.compact(revision)
        _lose_reply(fault, "compact")

    async def close(self) -> None:
        """Release the client. Its watches end; the server and its other clients go on."""
        self._is_closed = True
        for watch in self._watches:
            watch.end()
        if all(listener in self._watches for listener in self.server.listeners):
            self.server.stop_timer()

    # Hooks for tests and simulation.

    @property
    def is_cut(self) -> bool:
        """Whether this client is partitioned from its server."""
        return self._is_cut

    def expire_due(self) -> None:
        """End every lease whose deadline has passed."""
        self.server.expire_due()

    def restart_refreshing_leases(self) -> None:
        """Do what etcd does when a new leader is elected: every lease gets its full TTL again."""
        self.server.restart_refreshing_leases()

    def partition(self) -> None:
        """Cut this client off: calls raise `Unreachable` and watches fall silent."""
        self._is_cut = True

    def heal(self) -> None:
        """Undo `partition`; watches deliver what they missed."""
        self._is_cut = False
        self.disconnect_watches()

    def disconnect_watches(self) -> None:
        """Make every watch resume as after a broken connection: after its last delivered event."""
        for watch in self._watches:
            watch.reload()

    def break_watches(self, error: MeshError | None = None) -> None:
        """Make every watch raise, as when no member was reached for the watch's patience."""
        for watch in self._watches:
            watch.fail(error or Unreachable("no member could be reached"))

    def announce_progress(self) -> None:
        """Deliver a progress notification to every watch of this client."""
        for watch in self._watches:
            watch.on_progress(self.server.history.revision)

    async def _enter_read(self, operation: str) -> None:
        if await self._enter(operation) is not Fault.NONE:
            raise Unreachable(f"{operation}: the server could not be reached")

    async def _enter_write(self, operation: str) -> Fault:
        fault = await self._enter(operation)
        if fault is Fault.UNREACHABLE:
            raise Unreachable(f"{operation}: the server could not be reached")
        if fault is Fault.REQUEST_LOST:
            raise OutcomeUnknown(f"{operation}: the reply was lost")
        return fault

    async def _enter(self, operation: str) -> Fault:
        fault = Fault.NONE if self.faults is None else await self.faults.before(operation)
        if self._is_cut or self._is_closed:
            return Fault.UNREACHABLE
        self.server.tick()
        return fault


@attrs.define(kw_only=True, eq=False)
class _Watch:
    """One watch: what the server has sent it and the consumer has not yet taken.

    Invariant: `resume_at` is one more than the greatest revision delivered to the consumer.
    """

    store: MemoryStore
    key_range: KeyRange
    resume_at: Revision
    asks_for_progress: bool = False
    _inbox: deque[WatchItem | MeshError] = attrs.field(factory=deque, init=False)
    _is_over: bool = attrs.field(default=False, init=False)
    _waiter: asyncio.Future[None] | None = attrs.field(default=None, init=False)

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> WatchItem:
        while self.store.is_cut or not self._inbox:
            if self._is_over and not self._inbox:
                raise StopAsyncIteration
            self.store.server.tick()
            if self.asks_for_progress and not self.store.is_cut and not self._inbox:
                self._answer_progress()
            if self._inbox and not self.store.is_cut:
                break
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._inbox.popleft()
        if isinstance(item, MeshError):
            self._is_over = True
            raise item
        self.resume_at = max(self.resume_at, Revision(item.revision + 1))
        return item

    def on_changes(self, changes: RevisionChanges) -> None:
        """Take in a new revision from the server."""
        if self.store.is_cut or changes.revision < self.resume_at:
            return
        seen = changes_within(changes, self.key_range)
        if seen is not None:
            self._push(seen)
        elif self.asks_for_progress:
            self._wake()

    def on_progress(self, revision: Revision) -> None:
        """Take in a progress notification."""
        self._push(Progress(revision=revision))

    def reload(self) -> None:
        """Start again after the last revision that was delivered."""
        self._inbox.clear()
        history = self.store.server.history
        try:
            backlog = history.since(self.resume_at)
        except Compacted as error:
            self.fail(error)
            return
        for changes in backlog:
            self.on_changes(changes)

    def fail(self, error: MeshError) -> None:
        """Raise `error` to the consumer after what was delivered before."""
        self._push(error)

    def end(self) -> None:
        """End the iteration."""
        self._is_over = True
        self._inbox.clear()
        self._wake()

    def _answer_progress(self) -> None:
        revision = self.store.server.history.revision
        if self.resume_at <= revision:
            self.on_progress(revision)

    def _push(self, item: WatchItem | MeshError) -> None:
        if not self._is_over:
            self._inbox.append(item)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _lose_reply(fault: Fault, operation: str) -> None:
    if fault is Fault.REPLY_LOST:
        raise OutcomeUnknown(f"{operation}: the reply was lost")
