"""The store port on a real etcd, over grpc.aio. It never retries a write by itself.

`EtcdStore` says what each operation is on the wire; which member is asked, and what an error
means, is decided in `etcd_pool` and `etcd_errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs

from meshkit.clock import Clock, SystemClock
from meshkit.errors import Compacted, InvalidInput, LeaseLost, NotAllowed
from meshkit.ordinals import NO_LEASE, LeaseId, Revision
from meshkit.store.etcd_channel import (
    STATUS,
    TIME_TO_LIVE,
    EtcdTls,
    Method,
    parse_endpoints,
)
from meshkit.store.etcd_codec import EncodedTxn, decode_outcome, first_lease
from meshkit.store.etcd_errors import Subject
from meshkit.store.etcd_late import decode_kv, decode_kvs
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.etcd_pool import EndpointPool, EtcdTimeouts, Kind
from meshkit.store.etcd_reads import is_long, is_reading_sound, only_reads, read_apart
from meshkit.store.etcd_watch import EtcdWatch
from meshkit.store.port import LeaseGranted, LeaseTtl, RangeResult, StoreStatus, WatchItem
from meshkit.store.txn import Attempt, Committed, KeyRange, KeyValue, Outcome, Txn

__all__ = ["EtcdStore", "EtcdTimeouts", "EtcdTls"]

_PAGE_KEYS = 4_000
"""Keys in one answer at most, so that no answer holds up the connection for long."""

_RANGE_ATTEMPTS_MAX = 3
"""How often a current read starts again when its revision is compacted between two pages."""

_RANGE = Method(path="/etcdserverpb.KV/Range", response=wire.RangeResponse)
_TXN = Method(path="/etcdserverpb.KV/Txn", response=wire.TxnResponse)
_COMPACT = Method(path="/etcdserverpb.KV/Compact", response=wire.CompactionResponse)
_GRANT = Method(path="/etcdserverpb.Lease/LeaseGrant", response=wire.LeaseGrantResponse)
_REVOKE = Method(path="/etcdserverpb.Lease/LeaseRevoke", response=wire.LeaseRevokeResponse)
_KEEP_ALIVE = Method(
    path="/etcdserverpb.Lease/LeaseKeepAlive",
    response=wire.LeaseKeepAliveResponse,
    is_stream=True,
)
_ALARM = Method(path="/etcdserverpb.Maintenance/Alarm", response=wire.AlarmResponse)

_ALARM_NAMES = {1: "NOSPACE", 2: "CORRUPT"}


@attrs.define(kw_only=True, eq=False)
class EtcdStore:
    """A client of one etcd cluster. Satisfies `meshkit.store.port.Store`.

    It remembers the cluster id of the first answer and refuses answers from any other cluster
    with `StoreReplaced`.
    """

    pool: EndpointPool
    progress_every_ms: int | None = None
    _watches: set[EtcdWatch] = attrs.field(factory=set, init=False)

    @classmethod
    def connect(
        cls,
        endpoints: Iterable[str],
        *,
        tls: EtcdTls | None = None,
        username: str | None = None,
        password: str | None = None,
        clock: Clock | None = None,
        timeouts: EtcdTimeouts | None = None,
        cluster_id: int | None = None,
        progress_every_ms: int | None = None,
    ) -> EtcdStore:
        """Return a store; nothing is sent before its first use.

        With `cluster_id` any other cluster is refused from the start. With `progress_every_ms`
        quiet watches ask the server for progress notifications.

        Raises:
            InvalidConfig: there is no endpoint, or one needs TLS and none is configured.
        """
        pool = EndpointPool(
            endpoints=parse_endpoints(endpoints, tls),
            clock=clock or SystemClock(),
            timeouts=timeouts or EtcdTimeouts(),
            username=username,
            password=password,
            cluster_id=cluster_id,
        )
        return cls(pool=pool, progress_every_ms=progress_every_ms)

    async def get(self, key: bytes) -> KeyValue | None:
        """Return the key (linearizable), or None."""
        answer = await self._read(wire.RangeRequest(key=key))
        return decode_kv(answer.kvs[0]) if answer.kvs else None

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
        """Return the keys of a range, in pages of one revision; see the port."""
        template = wire.RangeRequest(
            key=key_range[0],
            range_end=key_range[1],
            revision=revision or 0,
            keys_only=keys_only,
            min_mod_revision=0 if modified_after is None else modified_after + 1,
            count_only=count_only,
        )
        attempts_left = _RANGE_ATTEMPTS_MAX
        while True:
            attempts_left -= 1
            try:
                return await self._read_pages(template, limit)
            except Compacted:
                if revision is not None or attempts_left == 0:
                    raise

    @property
    def is_connected(self) -> bool:
        """Whether a request would be sent at once; see the port."""
        return self.pool.is_connected

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        """Apply the transaction at most once; see the port.

        One that only reads is sent as single reads to an etcd that it could kill.
        """
        if only_reads(txn) and not await self._reads_whole():
            if is_long(txn):
                return await self._commit_logged(txn, timeout_ms)
            return await read_apart(txn, partial(self._read, timeout_ms=timeout_ms))
        return await self._commit(txn, timeout_ms)

    async def _commit_logged(self, txn: Txn, timeout_ms: int | None) -> Outcome:
        """Commit reads by way of etcd's log, as it does with all that nests; it outlives us."""
        outcome = await self._commit(Txn(operations=(Attempt(txn),)), timeout_ms)
        assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
        return outcome.attempts[0]

    async def _commit(self, txn: Txn, timeout_ms: int | None) -> Outcome:
        subject = Subject(operation="commit", lease_id=first_lease(txn.operations))
        answer = await self.pool.call(
            _TXN, EncodedTxn(txn), kind=Kind.WRITE, subject=subject, timeout_ms=timeout_ms
        )
        return decode_outcome(txn, answer)

    @asynccontextmanager
    async def watch(
        self, key_range: KeyRange, *, start: Revision, progress_every_ms: int | None = None
    ) -> AsyncIterator[AsyncIterator[WatchItem]]:
        """Watch a range from revision `start` (inclusive); see the port.

        `Compacted` may be raised already on entering.
        """
        assert start >= 1, "a watch starts at a revision"
        watch = EtcdWatch(
            pool=self.pool,
            key_range=key_range,
            resume_at=start,
            progress_every_ms=progress_every_ms or self.progress_every_ms,
        )
        self._watches.add(watch)
        try:
            await watch.open()
            yield watch
        finally:
            self._watches.discard(watch)
            await watch.close()

    async def grant(self, *, ttl_s: int, lease_id: LeaseId = NO_LEASE) -> LeaseGranted:
        """Grant a lease; see the port."""
        answer = await self.pool.call(
            _GRANT,
            wire.LeaseGrantRequest(TTL=ttl_s, ID=lease_id),
            kind=Kind.WRITE,
            subject=Subject(operation="grant", lease_id=lease_id),
        )
        if answer.error:
            raise InvalidInput(f"grant: {answer.error}")
        return LeaseGranted(lease_id=LeaseId(answer.ID), ttl_s=answer.TTL)

    async def keep_alive(self, lease_id: LeaseId, *, timeout_ms: int | None = None) -> int:
        """Renew a lease once and return its TTL in seconds; see the port.

        It may be asked of more than one member: a lease renewed twice is a lease renewed.
        """
        answer = await self.pool.call(
            _KEEP_ALIVE,
            wire.LeaseKeepAliveRequest(ID=lease_id),
            kind=Kind.RENEWAL,
            subject=Subject(operation="keep_alive", lease_id=lease_id),
            timeout_ms=timeout_ms,
        )
        ttl_s: int = answer.TTL
        if ttl_s <= 0:
            raise LeaseLost(lease_id)
        return ttl_s

    async def revoke(self, lease_id: LeaseId) -> None:
        """Revoke a lease and delete its keys. A lease that is not there is a success."""
        subject = Subject(operation="revoke", lease_id=lease_id)
        request = wire.LeaseRevokeRequest(ID=lease_id)
        try:
            await self.pool.call(_REVOKE, request, kind=Kind.WRITE, subject=subject)
        except LeaseLost:
            return

    async def time_to_live(self, lease_id: LeaseId) -> int:
        """Return the remaining TTL in whole seconds; see the port."""
        return (await self.lease_ttl(lease_id)).remaining_s

    async def lease_ttl(self, lease_id: LeaseId) -> LeaseTtl:
        """Return the granted and the remaining TTL; see the port."""
        answer = await self._read_lease(wire.LeaseTimeToLiveRequest(ID=lease_id))
        return LeaseTtl(granted_s=answer.grantedTTL, remaining_s=answer.TTL)

    async def lease_keys(self, lease_id: LeaseId) -> tuple[bytes, ...]:
        """Return the keys that hang on a lease; see the port."""
        answer = await self._read_lease(wire.LeaseTimeToLiveRequest(ID=lease_id, keys=True))
        return tuple(sorted(answer.keys))

    async def _read_lease(self, request: wire.LeaseTimeToLiveRequest) -> Any:
        lease_id = LeaseId(request.ID)
        subject = Subject(operation="time_to_live", lease_id=lease_id)
        answer = await self.pool.call(TIME_TO_LIVE, request, kind=Kind.READ, subject=subject)
        if answer.TTL < 0:
            raise LeaseLost(lease_id)
        return answer

    async def status(self) -> StoreStatus:
        """Return the status of the member now in use, with the cluster's alarms.

        Newer versions tell administrators only (etcd's role `root`). To other users they say
        no more than every answer does: then version, leader, size and raft index are empty.
        """
        subject = Subject(operation="status")
        alarms = await self.pool.call(_ALARM, wire.AlarmRequest(), kind=Kind.READ, subject=subject)
        names = {_ALARM_NAMES.get(a.alarm, str(a.alarm)) for a in alarms.alarms if a.alarm}
        try:
            status = await self.pool.call(
                STATUS, wire.StatusRequest(), kind=Kind.READ, subject=subject
            )
        except NotAllowed:
            status = wire.StatusResponse(header=alarms.header, raftTerm=alarms.header.raft_term)
        return StoreStatus(
            cluster_id=status.header.cluster_id,
            member_id=status.header.member_id,
            version=status.version,
            revision=Revision(status.header.revision),
            raft_term=status.raftTerm,
            raft_index=status.raftIndex,
            leader_id=status.leader,
            db_size_bytes=status.dbSize,
            alarms=tuple(sorted(names)),
        )

    async def compact(self, revision: Revision) -> None:
        """Drop history below `revision`. Compacting twice to the same revision is a success."""
        request = wire.CompactionRequest(revision=revision)
        subject = Subject(operation="compact", revision=revision)
        try:
            await self.pool.call(_COMPACT, request, kind=Kind.WRITE, subject=subject)
        except Compacted:
            return

    async def close(self) -> None:
        """Release every connection. Watches end."""
        await asyncio.gather(*(watch.close() for watch in list(self._watches)))
        await self.pool.close()

    async def _reads_whole(self) -> bool:
        """Return whether the member that is asked next may be sent a transaction that only reads.

        If it is lost meanwhile the next one may be older: then it is at risk for one request.
        """
        deadline_ms = self.pool.clock.now_ms() + self.pool.timeouts.request_ms
        return is_reading_sound((await self.pool.pick(deadline_ms=deadline_ms)).version)

    async def _read(self, request: wire.RangeRequest, *, timeout_ms: int | None = None) -> Any:
        subject = Subject(operation="range", revision=Revision(request.revision))
        return await self.pool.call(
            _RANGE, request, kind=Kind.READ, subject=subject, timeout_ms=timeout_ms
        )

    async def _read_pages(self, template: wire.RangeRequest, limit: int) -> RangeResult:
        request = wire.RangeRequest()
        request.CopyFrom(template)
        kvs: list[Any] = []
        count: int | None = None
        while True:
            request.limit = min(_PAGE_KEYS, limit - len(kvs)) if limit else _PAGE_KEYS
            page = await self._read(request)
            kvs += page.kvs
            count = page.count if count is None else count
            request.revision = request.revision or page.header.revision
            if request.count_only or not page.more or len(kvs) == limit:
                break
            request.key = kvs[-1].key + b"\x00"
        return RangeResult(
            revision=Revision(request.revision),
            items=decode_kvs(kvs),
            more=page.more and not request.count_only,
            count=count,
        )
