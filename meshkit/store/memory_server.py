"""The server behind `MemoryStore`: one history, its leases, and who listens to it."""

from __future__ import annotations

import asyncio
import copy
from typing import Protocol

import attrs

from meshkit.clock import Clock
from meshkit.errors import Conflict, LeaseLost, NoSpace
from meshkit.ordinals import NO_LEASE, LeaseId, Revision
from meshkit.store.history import History, has_put
from meshkit.store.port import LeaseGranted, LeaseTtl, RevisionChanges, StoreStatus
from meshkit.store.shape import OPERATIONS_MAX, REQUEST_BYTES_MAX, check_shape
from meshkit.store.txn import Outcome, Rejected, Txn

_FIRST_LEASE_ID = 0x7000_0000_0000_0001


_RESTORED_RAFT_INDEX = 4


class Listener(Protocol):
    """Learns of every new revision."""

    def on_changes(self, changes: RevisionChanges) -> None:
        """Take in the changes of one whole revision."""


@attrs.define(kw_only=True)
class _Lease:
    lease_id: LeaseId
    ttl_s: int
    deadline_ms: int
    keys: set[bytes] = attrs.field(factory=set)


@attrs.frozen(kw_only=True)
class Snapshot:
    """What a server held at some time."""

    history: History
    leases: dict[LeaseId, _Lease]
    lease_of_key: dict[bytes, LeaseId]


@attrs.define(kw_only=True, eq=False)
class MemoryServer:
    """A one-member etcd.

    Invariant: a key is in the key set of exactly the lease its newest version names.
    """

    clock: Clock
    cluster_id: int
    lease_ttl_s_min: int = 2
    version: str = "3.5.30"
    member_id: int = 1
    raft_term: int = 2
    raft_offset: int = 0
    """How far the raft index is from the revision: every entry makes one, but a restore cuts."""
    operations_max: int = OPERATIONS_MAX
    request_bytes_max: int = REQUEST_BYTES_MAX
    has_space: bool = True
    history: History = attrs.field(factory=History)
    listeners: list[Listener] = attrs.field(factory=list)
    _leases: dict[LeaseId, _Lease] = attrs.field(factory=dict, init=False)
    _lease_of_key: dict[bytes, LeaseId] = attrs.field(factory=dict, init=False)
    _leases_granted: int = attrs.field(default=0, init=False)
    _timer: asyncio.Task[None] | None = attrs.field(default=None, init=False)
    _timer_due_ms: int = attrs.field(default=0, init=False)

    def commit(self, txn: Txn) -> Outcome:
        """Apply a transaction.

        Raises:
            Refused: nothing was written.
        """
        check_shape(
            txn, operations_max=self.operations_max, request_bytes_max=self.request_bytes_max
        )
        if not self.has_space and has_put(txn.operations):
            raise NoSpace("database space exceeded")
        outcome, changes = self.history.apply(txn, leases=self._leases)
        assert changes is None or not isinstance(outcome, Rejected), "a rejected txn wrote"
        self._publish(changes)
        return outcome

    def grant(self, *, ttl_s: int, lease_id: LeaseId) -> LeaseGranted:
        """Grant a lease, under `lease_id` unless that is 0."""
        if not self.has_space:
            raise NoSpace("database space exceeded")
        if lease_id == NO_LEASE:
            lease_id = LeaseId(_FIRST_LEASE_ID + self._leases_granted)
            self._leases_granted += 1
        if lease_id in self._leases:
            raise Conflict(f"lease {lease_id:x} already exists")
        ttl_s = max(ttl_s, self.lease_ttl_s_min)
        deadline_ms = self.clock.now_ms() + ttl_s * 1000
        self._leases[lease_id] = _Lease(lease_id=lease_id, ttl_s=ttl_s, deadline_ms=deadline_ms)
        self._set_timer()
        return LeaseGranted(lease_id=lease_id, ttl_s=ttl_s)

    def keep_alive(self, lease_id: LeaseId) -> int:
        """Give a lease its full TTL again and return that."""
        lease = self._lease(lease_id)
        lease.deadline_ms = self.clock.now_ms() + lease.ttl_s * 1000
        return lease.ttl_s

    def revoke(self, lease_id: LeaseId) -> None:
        """End a lease, if it is there, deleting its keys at one revision."""
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self._publish(self.history.delete_keys(sorted(lease.keys)))

    def time_to_live(self, lease_id: LeaseId) -> int:
        """Return the whole seconds a lease has left."""
        return (self._lease(lease_id).deadline_ms - self.clock.now_ms()) // 1000

    def lease_ttl(self, lease_id: LeaseId) -> LeaseTtl:
        """Return the seconds a lease was granted for, and those it has left."""
        remaining_s = self.time_to_live(lease_id)
        return LeaseTtl(granted_s=self._lease(lease_id).ttl_s, remaining_s=remaining_s)

    def lease_keys(self, lease_id: LeaseId) -> tuple[bytes, ...]:
        """Return the keys that hang on a lease, in order."""
        return tuple(sorted(self._lease(lease_id).keys))

    def status(self) -> StoreStatus:
        """Describe the one member."""
        return StoreStatus(
            cluster_id=self.cluster_id,
            member_id=self.member_id,
            version=self.version,
            revision=self.history.revision,
            raft_term=self.raft_term,
            raft_index=self.history.revision + self.raft_offset,
            leader_id=self.member_id,
            db_size_bytes=0,
            alarms=() if self.has_space else ("NOSPACE",),
        )

    def tick(self) -> None:
        """End due leases and make sure that the next one will be ended in time."""
        self.expire_due()
        self._set_timer()

    def expire_due(self) -> None:
        """End every lease whose deadline has passed, each at its own revision."""
        now_ms = self.clock.now_ms()
        due = [lease for lease in self._leases.values() if lease.deadline_ms <= now_ms]
        for lease in sorted(due, key=lambda lease: (lease.deadline_ms, lease.lease_id)):
            self.revoke(lease.lease_id)

    def stop_timer(self) -> None:
        """Stop waiting for the next deadline; the next call of any client starts it again."""
        if self._timer is not None and not self._timer.done() and self._is_own_loop():
            self._timer.cancel()
        self._timer = None

    def restart_refreshing_leases(self) -> None:
        """Elect a new leader: the raft term rises and every lease gets its full TTL."""
        self.raft_term += 1
        for lease in self._leases.values():
            lease.deadline_ms = self.clock.now_ms() + lease.ttl_s * 1000

    def snapshot(self) -> Snapshot:
        """Return what `restore` puts back."""
        return Snapshot(
            history=copy.deepcopy(self.history),
            leases=copy.deepcopy(self._leases),
            lease_of_key=dict(self._lease_of_key),
        )

    def restore(self, snapshot: Snapshot, *, bump_revision: int = 0) -> None:
        """Go back to a snapshot as `etcdutl snapshot restore` does: ids and keys stay.

        The raft log begins anew, leases get their full TTL, and watches of the future go on
        waiting.
        """
        self.history = copy.deepcopy(snapshot.history)
        self._leases = copy.deepcopy(snapshot.leases)
        self._lease_of_key = dict(snapshot.lease_of_key)
        self.restart_refreshing_leases()
        self.raft_term = 2
        self.history.revision = Revision(self.history.revision + bump_revision)
        self.raft_offset = _RESTORED_RAFT_INDEX - self.history.revision
        self.tick()

    def _lease(self, lease_id: LeaseId) -> _Lease:
        lease = self._leases.get(lease_id)
        if lease is None:
            raise LeaseLost(lease_id)
        return lease

    def _publish(self, changes: RevisionChanges | None) -> None:
        if changes is None:
            return
        for change in changes.changes:
            before = self._leases.get(self._lease_of_key.pop(change.key, NO_LEASE))
            if before is not None:
                before.keys.discard(change.key)
            after = self._leases.get(change.item.lease)
            if after is not None:
                after.keys.add(change.key)
                self._lease_of_key[change.key] = after.lease_id
        for listener in list(self.listeners):
            listener.on_changes(changes)

    def _set_timer(self) -> None:
        """Sleep until the earliest deadline, so that watchers learn of it without a call."""
        if not self._leases:
            return
        due_ms = min(lease.deadline_ms for lease in self._leases.values())
        if self._timer is not None and not self._timer.done() and self._is_own_loop():
            if self._timer_due_ms <= due_ms:
                return
            self._timer.cancel()
        self._timer_due_ms = due_ms
        self._timer = asyncio.get_running_loop().create_task(self._expire_on_time())

    def _is_own_loop(self) -> bool:
        assert self._timer is not None, "asked only about a timer that is set"
        return self._timer.get_loop() is asyncio.get_running_loop()

    async def _expire_on_time(self) -> None:
        while self._leases:
            self._timer_due_ms = min(lease.deadline_ms for lease in self._leases.values())
            await self.clock.sleep_ms(self._timer_due_ms - self.clock.now_ms())
            self.expire_due()
