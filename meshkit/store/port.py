"""The store port: the one interface through which MeshKit speaks to an etcd.

Every implementation passes `tests/contract/`. Errors (all of `meshkit.errors`):

* a read or a watch that cannot be served raises `Unreachable`;
* a write raises `Refused` (one of its children) when it certainly did not happen, and
  `OutcomeUnknown` when nobody can know; no implementation ever retries a write by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs

from meshkit.ordinals import NO_LEASE, LeaseId, Revision
from meshkit.store.txn import KeyRange, KeyValue, Outcome, Txn, prefix_range


@attrs.frozen(kw_only=True)
class Columns:
    """Keys by what they are made of: each place is one of them, in key order."""

    keys: Sequence[bytes]
    values: Sequence[bytes]
    leases: Sequence[LeaseId]
    mod_revisions: Sequence[Revision]


class LateItems(Sequence[KeyValue]):
    """Keys that are made only when they are asked for; their columns cost much less."""

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """The keys by what they are made of."""


def columns_of(items: Sequence[KeyValue]) -> Columns:
    """Return keys by what they are made of; made once, and cheaply, where there are many."""
    if isinstance(items, LateItems):
        return items.columns
    return Columns(
        keys=[item.key for item in items],
        values=[item.value for item in items],
        leases=[item.lease for item in items],
        mod_revisions=[item.mod_revision for item in items],
    )


@attrs.frozen(kw_only=True)
class RangeResult:
    """Keys of a range in key order, as of `revision` (the store's revision for a current read).

    `more` says that `limit` cut the answer short. `count` is the number of live keys in the whole
    range, whatever `limit` and `modified_after` left out (as etcd counts).
    """

    revision: Revision
    items: Sequence[KeyValue]
    more: bool = False
    count: int = 0


@attrs.frozen(kw_only=True)
class Change:
    """One put or delete. `item.value` is empty for a delete; `lease` is 0 for a delete."""

    item: KeyValue
    is_delete: bool

    @property
    def key(self) -> bytes:
        """The key that changed."""
        return self.item.key


class LateChanges(Sequence[Change]):
    """Changes that are made only when they are asked for; their keys cost much less."""

    @property
    @abstractmethod
    def keys(self) -> tuple[bytes, ...]:
        """The keys that changed, in order."""

    @property
    @abstractmethod
    def data_bytes(self) -> int:
        """What the keys and values weigh together."""


@attrs.frozen(kw_only=True)
class RevisionChanges:
    """Every change of one revision inside the watched range: never split, never merged."""

    revision: Revision
    changes: Sequence[Change]

    @property
    def keys(self) -> Sequence[bytes]:
        """The keys that changed, in order. Ask for them first where most revisions are not read."""
        changes = self.changes
        if isinstance(changes, LateChanges):
            return changes.keys
        return [change.item.key for change in changes]

    @property
    def data_bytes(self) -> int:
        """What the keys and values weigh together."""
        changes = self.changes
        if isinstance(changes, LateChanges):
            return changes.data_bytes
        return sum(len(change.item.key) + len(change.item.value) for change in changes)

    def within(self, begin: bytes, end: bytes) -> list[Change]:
        """Return the changes of keys in `[begin, end)`, in order."""
        changes = self.changes
        places = [place for place, key in enumerate(self.keys) if begin <= key < end]
        return [changes[place] for place in places]

    def under(self, prefix: bytes) -> list[Change]:
        """Return the changes of keys that start with `prefix`, in order."""
        return self.within(*prefix_range(prefix))


@attrs.frozen(kw_only=True)
class Progress:
    """Everything up to and including `revision` has been delivered (only from sound servers)."""

    revision: Revision


WatchItem = RevisionChanges | Progress


@attrs.frozen(kw_only=True)
class LeaseGranted:
    """A lease as the server granted it; `ttl_s` may be larger than what was asked for."""

    lease_id: LeaseId
    ttl_s: int


@attrs.frozen(kw_only=True)
class LeaseTtl:
    """How long a lease was granted for, and what is left of it, in whole seconds."""

    granted_s: int
    remaining_s: int


@attrs.frozen(kw_only=True)
class StoreStatus:
    """What one member says of itself and its cluster."""

    cluster_id: int
    member_id: int
    version: str
    revision: Revision
    raft_term: int
    raft_index: int
    leader_id: int
    db_size_bytes: int
    alarms: tuple[str, ...] = ()


class Commits(Protocol):
    """The part of a store that commits."""

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        """Apply the transaction at most once; see `Store.commit`."""


class Store(Protocol):
    """An etcd, or something that behaves exactly like one."""

    @property
    def is_connected(self) -> bool:
        """Whether a request would be sent at once; otherwise it first waits for a connection."""

    async def get(self, key: bytes) -> KeyValue | None:
        """Return the key (linearizable), or None."""

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
        """Return the keys of a range in key order, linearizable, or as of `revision`.

        `limit` 0 means all, fetched in bounded pages at one revision. `modified_after` keeps
        only keys whose mod revision is greater. `count_only` returns no items, only `count`.

        Raises:
            Compacted: `revision` is no longer there.
            Unreachable: no member answered.
        """

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        """Apply the transaction at most once.

        Raises:
            LeaseLost: a put named a lease that does not exist; nothing was written.
            NoSpace, TooLarge, InvalidInput, NotAllowed, Unreachable: nothing was written.
            OutcomeUnknown: the reply was lost; it may or may not have been applied.
        """

    def watch(
        self, key_range: KeyRange, *, start: Revision, progress_every_ms: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchItem]]:
        """Watch a range from revision `start` (inclusive; must be >= 1), whole revisions in order.

        Entering the context returns once the watch is created on the server. The iterator
        survives the loss of a member by resuming after the greatest event revision delivered.
        With `progress_every_ms` a watch that was quiet for so long asks for `Progress`; whether
        and when a server answers is its own affair.

        Raises (while iterating):
            Compacted: history from the resume point is gone; the caller must reconcile.
            Unreachable: no member could be reached for the watch's patience.
        """

    async def grant(self, *, ttl_s: int, lease_id: LeaseId = NO_LEASE) -> LeaseGranted:
        """Grant a lease; with `lease_id` under that very id.

        Raises:
            Conflict: the id is in use.
            OutcomeUnknown: it may exist; it will run out by itself.
        """

    async def keep_alive(self, lease_id: LeaseId, *, timeout_ms: int | None = None) -> int:
        """Renew a lease once and return its TTL in seconds.

        Raises:
            LeaseLost: it has run out or was revoked.
            OutcomeUnknown: the renewal may or may not have been counted.
        """

    async def revoke(self, lease_id: LeaseId) -> None:
        """Revoke a lease and delete its keys. A lease that is not there is a success."""

    async def time_to_live(self, lease_id: LeaseId) -> int:
        """Return the remaining TTL in whole seconds.

        Raises:
            LeaseLost: it does not exist.
        """

    async def lease_ttl(self, lease_id: LeaseId) -> LeaseTtl:
        """Return the TTL a lease was granted with, which `keep_alive` restores, and what is left.

        Raises:
            LeaseLost: it does not exist.
        """

    async def lease_keys(self, lease_id: LeaseId) -> tuple[bytes, ...]:
        """Return the keys that hang on a lease.

        Raises:
            LeaseLost: it does not exist.
        """

    async def status(self) -> StoreStatus:
        """Return the status of the member now in use, with the cluster's alarms."""

    async def compact(self, revision: Revision) -> None:
        """Drop history below `revision`. Compacting twice to the same revision is a success."""

    async def close(self) -> None:
        """Release every connection. Watches end."""
