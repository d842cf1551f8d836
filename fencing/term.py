"""A term: one unbroken leadership, and committing only while it lasts."""

from __future__ import annotations

import asyncio

import attrs
import structlog

from fencing.lease import Lease
from fencing.patience import within
from meshkit.clock import Clock
from meshkit.errors import Compacted, LeaseLost, MeshError, RevisionConflict, TermEnded
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.shape import guard_range
from meshkit.store.txn import Committed, CreateRevisionIs, Delete, Guard, Rejected, Txn

_log = structlog.get_logger()

_RENEWALS_PER_TTL = 3
_RETRY_MS = 200
_RESIGN_TIMEOUT_MS = 2_000


class GuardsBroken(RevisionConflict):
    """A key moved between reading it and writing it; nothing was written."""

    def __init__(self, broken: tuple[Guard, ...]) -> None:
        keys = ", ".join(guard_range(guard)[0].decode(errors="replace") for guard in broken)
        super().__init__(f"moved under us: {keys}")
        self.broken = broken


@attrs.define(kw_only=True, eq=False)
class Term:
    """One unbroken leadership, named by the revision that created the leader key.

    Invariant: whoever holds `guard()` in a transaction writes only while the leader key is the one
    this term created. The clock only tells the holder when to stop by itself.
    """

    store: Store
    clock: Clock
    leader_key: bytes
    created_at: Revision
    _lease: Lease
    _ended: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _reason: str = attrs.field(default="", init=False)
    _keeper: asyncio.Task[None] | None = attrs.field(default=None, init=False)

    def guard(self) -> CreateRevisionIs:
        """Return the guard that demands that this term still lasts."""
        return CreateRevisionIs(self.leader_key, self.created_at)

    @property
    def lease(self) -> Lease:
        """The lease the leader key hangs on."""
        return self._lease

    @property
    def reason(self) -> str:
        """Why the term ended; empty while it lasts."""
        return self._reason

    def is_held(self) -> bool:
        """Return whether the term certainly lasts, by the holder's own clock."""
        return not self._ended.is_set() and self._lease.is_held(now_ms=self.clock.now_ms())

    async def lost(self) -> str:
        """Return, with the reason, once the term has ended or may have."""
        await self._ended.wait()
        return self._reason

    def end(self, reason: str) -> None:
        """Note that the term has ended or may have. Only the first reason is kept."""
        if not self._ended.is_set():
            self._reason = reason
            self._ended.set()
            _log.info(
                "term.ended",
                key=self.leader_key.decode(errors="replace"),
                term=self.created_at,
                reason=reason,
            )

    def keep(self) -> None:
        """Begin to renew the lease and to watch the leader key, until `abandon` or `resign`."""
        assert self._keeper is None, "a term is kept once"
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def abandon(self) -> None:
        """Stop keeping it, and leave the key to run out with its lease, as a crash would."""
        self.end("abandoned")
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def resign(self) -> None:
        """Give leadership up, so that the next one leads at once. Never raises a `MeshError`."""
        self.end("resigned")
        await self.abandon()
        txn = Txn(guards=(self.guard(),), operations=(Delete(self.leader_key),))
        try:
            await within(self.clock, _RESIGN_TIMEOUT_MS, self.store.commit(txn))
            await within(self.clock, _RESIGN_TIMEOUT_MS, self.store.revoke(self._lease.lease_id))
        except MeshError as error:
            _log.warning("term.resignation_failed", term=self.created_at, error=str(error))

    async def _keep(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._renew()),
                tasks.create_task(self._watch_key()),
                tasks.create_task(self._end_at_deadline()),
            ]
            await self._ended.wait()
            for task in running:
                task.cancel()

    async def _renew(self) -> None:
        interval_ms = self._lease.ttl_ms // _RENEWALS_PER_TTL
        pause_ms = interval_ms
        while True:
            await self.clock.sleep_ms(pause_ms)
            sent_at_ms = self.clock.now_ms()
            try:
                await self.store.keep_alive(self._lease.lease_id, timeout_ms=interval_ms)
            except LeaseLost:
                self.end("the lease was lost")
                return
            except MeshError as error:
                _log.warning("term.renewal_failed", term=self.created_at, error=str(error))
                pause_ms = _RETRY_MS
                continue
            self._lease = self._lease.renewed(sent_at_ms=sent_at_ms)
            pause_ms = max(0, sent_at_ms + interval_ms - self.clock.now_ms())

    async def _end_at_deadline(self) -> None:
        while (remaining_ms := self._lease.deadline_ms - self.clock.now_ms()) > 0:
            await self.clock.sleep_ms(remaining_ms)
        self.end("the lease could not be renewed in time")

    async def _watch_key(self) -> None:
        start = Revision(self.created_at + 1)
        while True:
            try:
                async with self.store.watch((self.leader_key, b""), start=start) as items:
                    async for item in items:
                        if isinstance(item, RevisionChanges) and item.changes[-1].is_delete:
                            self.end("the leader key was deleted")
                            return
            except Compacted as error:
                start = Revision(error.compact_revision)
                await self._check_key()
                continue
            except MeshError as error:
                _log.warning("term.watch_broken", term=self.created_at, error=str(error))
            await self.clock.sleep_ms(_RETRY_MS)

    async def _check_key(self) -> None:
        """End the term if the key is another one; what a compaction hid shows only this way."""
        try:
            item = await self.store.get(self.leader_key)
        except MeshError:
            await self.clock.sleep_ms(_RETRY_MS)
            return
        if item is None or item.create_revision != self.created_at:
            self.end("the leader key is no longer ours")


async def commit_in_term(
    store: Store, term: Term, txn: Txn, *, timeout_ms: int | None = None
) -> Committed:
    """Commit `txn` only while `term` lasts, and return what came of it.

    Raises:
        TermEnded: Another process leads, or nobody does.
        GuardsBroken: We still lead, but a key moved under us (a `RevisionConflict`).
        OutcomeUnknown: The reply was lost; read the keys back.
    """
    leading = term.guard()
    guarded = attrs.evolve(txn, guards=(leading, *txn.guards))
    match await store.commit(guarded, timeout_ms=timeout_ms):
        case Committed() as committed:
            return committed
        case Rejected(broken=broken) if leading in broken:
            term.end("the leader key is no longer ours")
            key = term.leader_key.decode(errors="replace")
            raise TermEnded(f"{key} is no longer ours")
        case Rejected(broken=broken):
            raise GuardsBroken(broken)
