"""Electing one leader among processes that share a store, by revisions and never by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import structlog

from fencing.lease import lease_of
from fencing.term import Term
from meshkit.clock import Clock
from meshkit.errors import Compacted, LeaseLost, MeshError, OutcomeUnknown, Refused
from meshkit.ordinals import ABSENT, LeaseId, Revision
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import Committed, CreateRevisionIs, KeyValue, Put, Txn

_log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Leader:
    """Who leads, as an observer sees it. `value` is for people and for finding the leader."""

    value: bytes
    created_at: Revision
    """Names the term."""


@attrs.define(kw_only=True, eq=False)
class Election:
    """One candidate for one leader key.

    The key is taken only where it does not exist, and hangs on the candidate's lease; so there is
    at most one term at a time, and a dead leader's ends with its lease. Candidates with the same
    `value` do not confuse it.
    """

    store: Store
    key: bytes
    value: bytes
    ttl_s: int = attrs.field(validator=attrs.validators.gt(0))
    clock: Clock
    clock_rate_error: float = 0.01
    retry_ms: int = 200

    async def campaign(self) -> Term:
        """Wait for leadership and return the term, which is kept alive from then on.

        It waits by watching the key. Whoever asked must end it: `resign`, or `abandon`.
        Cancelling leaves at most a lease behind, which runs out.
        """
        while True:
            try:
                present = await self.store.range((self.key, b""))
                if present.items:
                    await self._until_deleted(Revision(present.revision + 1))
                    continue
                term = await self._try_to_lead()
            except Compacted:
                continue
            except (Refused, OutcomeUnknown) as error:
                _log.warning("election.attempt_failed", key=self._name, error=str(error))
                await self.clock.sleep_ms(self.retry_ms)
                continue
            if term is None:
                # Somebody else was faster; or every put was lost, and the key is not there yet.
                await self.clock.sleep_ms(self.retry_ms)
                continue
            _log.info("term.began", key=self._name, term=term.created_at)
            term.keep()
            return term

    @asynccontextmanager
    async def lead(self) -> AsyncIterator[Term]:
        """Campaign, lead inside the block, and resign at its end however it ends."""
        term = await self.campaign()
        try:
            yield term
        finally:
            await term.resign()

    async def observe(self) -> AsyncIterator[Leader | None]:
        """Yield the leader now, or None, and again whenever that changes. Never ends by itself."""
        seen: Leader | None = None
        is_first = True
        while True:
            try:
                present = await self.store.range((self.key, b""))
                leader = _leader(present.items[0]) if present.items else None
                if is_first or leader != seen:
                    is_first, seen = False, leader
                    yield leader
                start = Revision(present.revision + 1)
                async with self.store.watch((self.key, b""), start=start) as items:
                    async for item in items:
                        if not isinstance(item, RevisionChanges):
                            continue
                        change = item.changes[-1]
                        leader = None if change.is_delete else _leader(change.item)
                        if leader != seen:
                            seen = leader
                            yield leader
            except Compacted:
                continue
            except Refused as error:
                _log.warning("election.watch_broken", key=self._name, error=str(error))
                await self.clock.sleep_ms(self.retry_ms)

    @property
    def _name(self) -> str:
        return self.key.decode(errors="replace")

    async def _until_deleted(self, start: Revision) -> None:
        async with self.store.watch((self.key, b""), start=start) as items:
            async for item in items:
                if isinstance(item, RevisionChanges) and item.changes[-1].is_delete:
                    return

    async def _try_to_lead(self) -> Term | None:
        sent_at_ms = self.clock.now_ms()
        granted = await self.store.grant(ttl_s=self.ttl_s)
        created_at: Revision | None = None
        try:
            created_at = await self._take_key(granted.lease_id)
        finally:
            if created_at is None:
                await self._discard(granted.lease_id)
        if created_at is None:
            return None
        return Term(
            store=self.store,
            clock=self.clock,
            leader_key=self.key,
            created_at=created_at,
            lease=lease_of(
                granted.lease_id,
                sent_at_ms=sent_at_ms,
                ttl_s=granted.ttl_s,
                clock_rate_error=self.clock_rate_error,
            ),
        )

    async def _take_key(self, lease_id: LeaseId) -> Revision | None:
        """Create the key on the lease and return its create revision, or None if it is taken."""
        txn = Txn(
            guards=(CreateRevisionIs(self.key, ABSENT),),
            operations=(Put(self.key, self.value, lease_id),),
        )
        try:
            outcome = await self.store.commit(txn)
        except OutcomeUnknown:
            # The lease id is ours alone, so it tells whether the key is, whatever its value says.
            item = await self.store.get(self.key)
            return item.create_revision if item is not None and item.lease == lease_id else None
        except LeaseLost:
            return None
        return outcome.revision if isinstance(outcome, Committed) else None

    async def _discard(self, lease_id: LeaseId) -> None:
        """Revoke the lease, so that a put still on its way cannot make us leader unawares."""
        try:
            await self.store.revoke(lease_id)
        except MeshError as error:
            _log.warning("election.lease_left_behind", key=self._name, error=str(error))


def _leader(item: KeyValue) -> Leader:
    return Leader(value=item.value, created_at=item.create_revision)
