"""The calls of the chain of two leases: each bounded in time, regional answers noted."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TypeVar

import attrs

from fencing import chain_txns as txns
from fencing.lease import Lease, lease_of
from fencing.patience import within
from fencing.term import GuardsBroken, Term, commit_in_term
from fencing.timing import Timing
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import LeaseLost, MeshError, Refused, RevisionConflict, TermEnded
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority, CoordinationIncarnation
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Incarnation, LeaseId, Revision
from meshkit.regional import ChainLeases
from meshkit.store.port import Commits, RangeResult, Store
from meshkit.store.txn import Committed, Get, KeyValue, Outcome, Txn

T = TypeVar("T")

_RETRY_MS = 100
_GETS_MAX = 64
"""In one transaction, below etcd's limit of 128."""


@attrs.define(kw_only=True, eq=False)
class ChainCalls:
    """What the chain asks of its two etcds.

    Every call raises `OutcomeUnknown` after `timing.call_timeout_ms` by our own clock, whatever
    the client does.
    """

    coordination: Store
    regional: Store
    term: Term
    timing: Timing
    clock: Clock
    regional_heard_at_ms: int
    """When the regional etcd last answered."""
    holders: Commits | None = None
    """What holders are made through, if not each by itself."""
    _incarnation: Incarnation | None = attrs.field(default=None, init=False)
    """The coordination etcd's, when this term's rounds began."""

    # --- the coordination etcd -----------------------------------------------------------------

    async def renew_outer(self, lease_id: LeaseId) -> Lease:
        """Renew a coordination lease once, and return it as it is after that."""
        sent_at_ms = self.clock.now_ms()
        timeout_ms = self.timing.call_timeout_ms
        ttl_s = await self._within(self.coordination.keep_alive(lease_id, timeout_ms=timeout_ms))
        return self._lease(lease_id, sent_at_ms, ttl_s)

    async def adopt_outer(self, lease_id: LeaseId) -> Lease | None:
        """Renew a predecessor's coordination lease; None if it has run out."""
        try:
            return await self.renew_outer(lease_id)
        except LeaseLost:
            return None

    async def grant_outer(self) -> Lease:
        """Grant a coordination lease."""
        sent_at_ms = self.clock.now_ms()
        granted = await self._within(self.coordination.grant(ttl_s=self.timing.coordination_ttl_s))
        return self._lease(granted.lease_id, sent_at_ms, granted.ttl_s)

    async def sealed(self) -> dict[GroupName, Epoch]:
        """Return the greatest sealed epoch of each sealed group.

        Read with it, at one revision: whether the coordination etcd began a new incarnation. What
        the rounds of this term rest on is then nothing any more: no round goes on past this.

        Raises:
            TermEnded: it did.
        """
        return (await self._sealed())[0]

    async def sealed_and_held(
        self, lease_id: LeaseId
    ) -> tuple[dict[GroupName, Epoch], dict[GroupName, Epoch]]:
        """Return what `sealed` and `held` do, read at one revision and in one request.

        Raises:
            TermEnded: see `sealed`.
        """
        sealed, (holders,) = await self._sealed(Get(*txns.HOLDERS))
        return sealed, txns.held_epochs(
            RangeResult(items=holders, revision=ABSENT), lease_id=lease_id
        )

    async def _sealed(
        self, *more: Get
    ) -> tuple[dict[GroupName, Epoch], tuple[tuple[KeyValue, ...], ...]]:
        reads = (Get(*txns.SEALS), Get(CoordinationKeys.incarnation), *more)
        outcome = await self.commit_outside(Txn(operations=reads))
        assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
        seals, incarnation, *others = outcome.reads
        stored = decode(CoordinationIncarnation, incarnation[0].value) if incarnation else None
        now = (stored or CoordinationIncarnation()).identity
        if self._incarnation not in (None, now):
            self.term.end("the coordination etcd began a new incarnation")
            raise TermEnded("the coordination etcd began a new incarnation")
        self._incarnation = now
        sealed = txns.sealed_epochs(RangeResult(items=seals, revision=outcome.revision))
        return sealed, tuple(others)

    async def held(self, lease_id: LeaseId) -> dict[GroupName, Epoch]:
        """Return the groups whose holder hangs on the lease, with its epoch."""
        holders = await self._within(self.coordination.range(txns.HOLDERS))
        return txns.held_epochs(holders, lease_id=lease_id)

    async def authorities(
        self, groups: Iterable[GroupName]
    ) -> dict[GroupName, tuple[Authority, Revision]]:
        """Return the authority over each of the groups, with its mod revision."""
        names = sorted(groups)
        found: dict[GroupName, tuple[Authority, Revision]] = {}
        for at in range(0, len(names), _GETS_MAX):
            keys = [CoordinationKeys.authority(name) for name in names[at : at + _GETS_MAX]]
            outcome = await self.commit_outside(Txn(operations=tuple(Get(key) for key in keys)))
            assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
            for items in outcome.reads:
                for item in items:
                    authority = decode(Authority, item.value)
                    found[authority.group] = (authority, item.mod_revision)
        return found

    async def commit_outside(self, txn: Txn) -> Outcome:
        """Commit to the coordination etcd."""
        timeout_ms = self.timing.call_timeout_ms
        return await self._within(self.coordination.commit(txn, timeout_ms=timeout_ms))

    async def hold(
        self, authority: Authority, revision: Revision, *, cluster: ClusterName, lease: LeaseId
    ) -> None:
        """Make the group's holder, perhaps together with those of other groups.

        Raises:
            Refused: the authority moved (`RevisionConflict`), or the group is sealed.
            OutcomeUnknown: the holder may exist; asking again is safe.
        """
        txn = txns.hold(authority, authority_revision=revision, cluster=cluster, lease=lease)
        commits = self.holders or self.coordination
        timeout_ms = self.timing.call_timeout_ms
        outcome = await self._within(commits.commit(txn, timeout_ms=timeout_ms))
        if isinstance(outcome, Committed):
            return
        if txn.guards[0] in outcome.broken:
            raise RevisionConflict(f"the authority over {authority.group} has moved")
        raise Refused(f"{authority.group} is sealed: {cluster} is being fenced")

    # --- the regional etcd ---------------------------------------------------------------------

    async def renew_inner(self, lease: Lease) -> Lease:
        """Renew a regional lease once, and return it as it is after that."""
        sent_at_ms = self.clock.now_ms()
        timeout_ms = self.timing.call_timeout_ms
        await self.heard(self.regional.keep_alive(lease.lease_id, timeout_ms=timeout_ms))
        return lease.renewed(sent_at_ms=sent_at_ms)

    async def grant_inner(self) -> Lease:
        """Grant a regional lease."""
        sent_at_ms = self.clock.now_ms()
        granted = await self.heard(self.regional.grant(ttl_s=self.timing.regional_ttl_s))
        return self._lease(granted.lease_id, sent_at_ms, granted.ttl_s)

    async def revoke_inner(self, lease_id: LeaseId) -> None:
        """Revoke a regional lease with whatever hangs on it."""
        await self.heard(self.regional.revoke(lease_id))

    async def stored_leases(self) -> tuple[ChainLeases | None, Revision]:
        """Return the leases a predecessor left, and the mod revision of their record."""
        item = await self.heard(self.regional.get(RegionalKeys.leases))
        if item is None:
            return None, ABSENT
        return decode(ChainLeases, item.value), item.mod_revision

    async def permits(self) -> txns.Permits:
        """Return the permits that are there."""
        return txns.permits_of(await self.heard(self.regional.range(txns.PERMITS)))

    async def beat_revision(self) -> Revision:
        """Return the mod revision of the beat. Also the way to ask whether the region answers."""
        item = await self.heard(self.regional.get(RegionalKeys.beat))
        return ABSENT if item is None else item.mod_revision

    async def until_region_answers(self, note: Callable[[str], None]) -> None:
        """Return once the region was heard within `Tr`: else nothing is renewed (4.1 rule 3)."""
        while self.clock.now_ms() - self.regional_heard_at_ms >= self.timing.regional_ttl_ms:
            try:
                await self.beat_revision()
            except MeshError as error:
                note(f"regional etcd: {error}")
                await self.clock.sleep_ms(_RETRY_MS)

    async def commit(self, txn: Txn) -> Committed:
        """Commit to the regional etcd in our term."""
        timeout_ms = self.timing.call_timeout_ms
        commit = commit_in_term(self.regional, self.term, txn, timeout_ms=timeout_ms)
        try:
            return await self.heard(commit)
        except GuardsBroken:
            self.regional_heard_at_ms = self.clock.now_ms()
            raise

    def _lease(self, lease_id: LeaseId, sent_at_ms: int, ttl_s: int) -> Lease:
        return lease_of(
            lease_id,
            sent_at_ms=sent_at_ms,
            ttl_s=ttl_s,
            clock_rate_error=self.timing.clock_rate_error,
        )

    async def _within(self, work: Coroutine[None, None, T]) -> T:
        return await within(self.clock, self.timing.call_timeout_ms, work)

    async def heard(self, work: Coroutine[None, None, T]) -> T:
        """Return what the regional etcd answers to `work`, in time, and note that it did."""
        answer = await self._within(work)
        self.regional_heard_at_ms = self.clock.now_ms()
        return answer
