"""A store whose transactions and small reads share requests with others of the same moment.

Whoever does the same for thousands of groups (read a fence, compare it, replace it) asks one group
at a time and need not know of the others: what waits together is sent together. Watches, leases and
long reads go to the store as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import attrs

from meshkit.errors import OutcomeUnknown, Unreachable
from meshkit.keys import ROOT
from meshkit.ordinals import NO_LEASE, LeaseId, Revision
from meshkit.store.port import (
    LeaseGranted,
    LeaseTtl,
    RangeResult,
    Store,
    StoreStatus,
    WatchItem,
)
from meshkit.store.shape import written_keys
from meshkit.store.shared import SharedCommits
from meshkit.store.txn import Committed, Get, KeyRange, KeyValue, Outcome, Txn

SMALL_READ_MAX = 128
"""A read of at most so many keys shares a request; a longer one would hold the others up.

Applications' values, which may be large, are read alone.
"""


@attrs.frozen(kw_only=True, eq=False)
class SharedStore:
    """`store`, with its commits and small reads through `commits`. Satisfies the port `Store`."""

    store: Store
    commits: SharedCommits

    @property
    def is_connected(self) -> bool:
        """Whether a request would be sent at once; see the port."""
        return self.store.is_connected

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        """Apply the transaction at most once, perhaps together with others; see the port."""
        is_shared = not _reads_values(txn) and not _writes_values(txn)
        commits = self.commits if is_shared else self.store
        return await commits.commit(txn, timeout_ms=timeout_ms)

    async def get(self, key: bytes) -> KeyValue | None:
        """Return the key (linearizable), or None."""
        if not key.startswith(ROOT):
            return await self.store.get(key)
        _, items = await self._read(Get(key))
        return items[0] if items else None

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
        start, end = key_range
        is_plain = revision is None and modified_after is None and not count_only
        is_small = (keys_only or start.startswith(ROOT)) and (
            not end or 0 < limit <= SMALL_READ_MAX
        )
        if is_plain and is_small:
            # One more than asked for tells whether there are more, which only a read of its own
            # can count.
            asked = Get(start, end=end, limit=limit + 1 if end else 0, keys_only=keys_only)
            at, items = await self._read(asked)
            if not limit or len(items) <= limit:
                return RangeResult(revision=at, items=items, count=len(items))
        return await self.store.range(
            key_range,
            revision=revision,
            limit=limit,
            keys_only=keys_only,
            modified_after=modified_after,
            count_only=count_only,
        )

    async def _read(self, get: Get) -> tuple[Revision, tuple[KeyValue, ...]]:
        try:
            outcome = await self.commits.commit(Txn(operations=(get,)))
        except OutcomeUnknown as error:
            raise Unreachable(f"the answer to a read was lost: {error}") from error
        assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
        return outcome.revision, outcome.reads[0]

    # --- as they are ---------------------------------------------------------------------------

    def watch(
        self, key_range: KeyRange, *, start: Revision, progress_every_ms: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchItem]]:
        """Watch a range; see the port."""
        return self.store.watch(key_range, start=start, progress_every_ms=progress_every_ms)

    async def grant(self, *, ttl_s: int, lease_id: LeaseId = NO_LEASE) -> LeaseGranted:
        """Grant a lease; see the port."""
        return await self.store.grant(ttl_s=ttl_s, lease_id=lease_id)

    async def keep_alive(self, lease_id: LeaseId, *, timeout_ms: int | None = None) -> int:
        """Renew a lease once; see the port."""
        return await self.store.keep_alive(lease_id, timeout_ms=timeout_ms)

    async def revoke(self, lease_id: LeaseId) -> None:
        """Revoke a lease; see the port."""
        await self.store.revoke(lease_id)

    async def time_to_live(self, lease_id: LeaseId) -> int:
        """Return the remaining TTL; see the port."""
        return await self.store.time_to_live(lease_id)

    async def lease_ttl(self, lease_id: LeaseId) -> LeaseTtl:
        """Return the granted and the remaining TTL; see the port."""
        return await self.store.lease_ttl(lease_id)

    async def lease_keys(self, lease_id: LeaseId) -> tuple[bytes, ...]:
        """Return the keys that hang on a lease; see the port."""
        return await self.store.lease_keys(lease_id)

    async def status(self) -> StoreStatus:
        """Return the status of the member now in use; see the port."""
        return await self.store.status()

    async def compact(self, revision: Revision) -> None:
        """Drop history; see the port."""
        await self.store.compact(revision)

    async def close(self) -> None:
        """Do nothing: whoever made the store closes it."""


def _writes_values(txn: Txn) -> bool:
    """Return whether it writes applications' keys.

    Such a write is part of the group's log, and what the checkpoints of others are written with
    is not: in one revision nobody could tell them apart (architecture 5, "Origin").
    """
    return any(not key.startswith(ROOT) for key in written_keys(txn.operations))


def _reads_values(txn: Txn) -> bool:
    """Return whether it reads applications' values."""
    return any(
        isinstance(o, Get) and not o.keys_only and not o.key.startswith(ROOT)
        for o in (*txn.operations, *txn.otherwise)
    )
