"""The chain of two leases: a region's permits live only while its coordination lease is renewed.

One round: renew the coordination lease, read the seals, beat, renew the regional lease. Each act
begins only when the one before was acknowledged. The invariant, on which `2*Tr + delay <= Tc`
rests: **once the coordination lease has run out, or `Tc` after a seal was put, no permit of this
region is alive**. Why it holds:

* A regional renewal arrives while the lease still lives, that is less than `Tr` after the
  acknowledgement before it, and lasts `Tr`. The beat comes *before* that renewal, so it hangs on
  the same bound; a gate that closes `Tr` after a beat closes no later than the permit may end.
* A coordination renewal of unknown outcome may be repeated (S23): a stray one only makes the
  *outer* lease last longer, and nothing regional follows but after an acknowledged one.
* A regional renewal of unknown outcome may arrive late, when nothing justifies it. So that lease
  is never used again: a new one is granted, and only after the *next* acknowledged round the
  permits are moved onto it, in a transaction that does not change what they say. The same is done
  on taking over, because a predecessor that was stopped may still send its last renewal.
* New regional leases are granted before the round that justifies what is put on them (S24): that
  ends less than `Tr` after that round unless a later one renews it.
* A permit may only be put on the lease that `permit_lease` returned. A sealed group that was held
  but has no permit yet may have one on its way; the lease it would hang on is then given up too.

While the coordination etcd is silent groups may go on by promise, with a chain of their own
(`fencing/keeping.py`). What was confirmed before that acted is void.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

import attrs
import structlog

from fencing import chain_txns as txns
from fencing.beating import Beats
from fencing.chain_calls import ChainCalls
from fencing.chain_groups import ChainGroups
from fencing.chain_state import ChainState
from fencing.keeping import Keeping, Promises
from fencing.lease import Lease, live_id
from fencing.obedience import Obedience
from fencing.patience import Signal
from fencing.term import Term
from fencing.timing import Timing, check_granted
from meshkit.clock import Clock
from meshkit.errors import (
    InvalidConfig,
    LeaseLost,
    MeshError,
    OutcomeUnknown,
    Refused,
    TermEnded,
    Unreachable,
)
from meshkit.model import Authority
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import LeaseId, Revision
from meshkit.regional import ChainLeases
from meshkit.store.port import Commits, Store

_log = structlog.get_logger()

T = TypeVar("T")

_RETRY_MS = 100


@attrs.define(kw_only=True, eq=False)
class Chain:
    """The chain of one region, run by its leading replicator.

    `obey` brings fences and permits here in line with authority and seals. It is awaited before the
    first beat of a term, after every new pair of leases, and when no beat was put for `Tr`; rounds
    go on meanwhile, without beats. `on_sealed` is awaited for each sealed group with a permit here.
    """

    cluster: ClusterName
    replicator: str
    coordination: Store
    regional: Store
    term: Term
    timing: Timing
    clock: Clock
    obey: Callable[[], Coroutine[None, None, None]]
    on_sealed: Callable[[GroupName], Coroutine[None, None, None]]
    promises: Promises | None = None
    """By which groups with a pact go on while the coordination etcd is silent."""
    holders: Commits | None = None
    """What holders are made through, if not each by itself."""
    _calls: ChainCalls = attrs.field(init=False)
    _obedience: Obedience = attrs.field(init=False)
    _outer: Lease | None = attrs.field(default=None, init=False)
    _inner: Lease | None = attrs.field(default=None, init=False)
    _inner_granted_at_ms: int = attrs.field(default=0, init=False)
    _confirmed_at_ms: int = attrs.field(default=0, init=False)
    _confirmed_after_acts: int = attrs.field(default=0, init=False)
    _beats: Beats = attrs.field(init=False)
    _keeping: Keeping = attrs.field(init=False)
    _tasks: asyncio.TaskGroup | None = attrs.field(default=None, init=False)
    _groups: ChainGroups = attrs.field(init=False)
    _is_handing_over: bool = attrs.field(default=False, init=False)
    _rounds: int = attrs.field(default=0, init=False)
    _round_ms: int | None = attrs.field(default=None, init=False)
    _problem: str = attrs.field(default="no round yet", init=False)
    _due: Signal = attrs.field(factory=Signal, init=False)
    _changed: Signal = attrs.field(factory=Signal, init=False)

    def __attrs_post_init__(self) -> None:
        self._calls = ChainCalls(
            coordination=self.coordination,
            regional=self.regional,
            term=self.term,
            timing=self.timing,
            clock=self.clock,
            holders=self.holders,
            regional_heard_at_ms=self.clock.now_ms(),
        )
        self._obedience = Obedience(
            obey=self.obey,
            silence_ms_max=self.timing.regional_ttl_ms,
            clock=self.clock,
            on_done=self._due.notify,
        )
        cluster, calls = self.cluster, self._calls
        self._groups = ChainGroups(cluster=cluster, calls=calls, on_sealed=self.on_sealed)
        self._beats = Beats(calls=calls, replicator=self.replicator)
        self._keeping = Keeping(
            cluster=cluster,
            calls=calls,
            promises=self.promises,
            obedience=self._obedience,
            beats=self._beats,
            on_act=self._give_up_inner,
        )

    # --- what others ask -----------------------------------------------------------------------

    @property
    def state(self) -> ChainState:
        """How the chain stands now, by our own clock."""
        return ChainState(
            is_healthy=self._obedience.lasts and not self.problem(),
            rounds=self._rounds,
            round_ms=self._round_ms,
            problem=self.problem(),
            coordination=self.coordination_lease(),
            regional=self.current_lease(),
        )

    def problem(self) -> str:
        """Return what is wrong, or nothing."""
        if self.kept:
            return f"writes of {', '.join(self.kept)} go on by promise: {self._problem}"
        if not self._problem and self.current_lease() is None:
            return "the regional lease has run out by our clock"
        return self._problem

    @property
    def kept(self) -> tuple[GroupName, ...]:
        """The groups whose writes go on by promise now."""
        return tuple(sorted(self._keeping.kept))

    def current_lease(self) -> LeaseId | None:
        """Return the regional lease, or None while none is certainly alive."""
        return live_id(self._inner, now_ms=self.clock.now_ms())

    def coordination_lease(self) -> LeaseId | None:
        """Return the coordination lease, or None while none is certainly alive."""
        return live_id(self._outer, now_ms=self.clock.now_ms())

    def current_leases(self) -> ChainLeases | None:
        """Return both leases, or None while one of them is not certainly alive."""
        outer, inner = self.coordination_lease(), self.current_lease()
        if outer is None or inner is None:
            return None
        return ChainLeases(coordination=outer, regional=inner)

    def regional_lease_for_permit(self, *, confirmed_at_ms: int) -> LeaseId | None:
        """Return the lease for a permit whose authority was confirmed by a request sent then.

        None if there is no live lease, or only one granted after that (S24).
        """
        if self._inner_granted_at_ms > confirmed_at_ms:
            return None
        return self.current_lease()

    async def permit_lease(self, authority: Authority, revision: Revision) -> LeaseId:
        """Hold the group and return the regional lease its permit may hang on.

        The lease was granted before the authority was confirmed, in a transaction that compares
        `authority` unchanged at `revision` and no seal. Waits until there are leases.

        Raises:
            Refused: the authority moved (`RevisionConflict`), the group is sealed, or the lease ran
                out meanwhile.
            OutcomeUnknown: the holder may exist; asking again is safe.
        """
        while self.current_leases() is None:
            await self._changed.wait()
        while (leases := self.current_leases()) is not None:
            await self._groups.hold(authority, revision, leases.coordination)
            if self._inner is not None and self._inner.lease_id == leases.regional:
                return leases.regional
        raise Refused("the leases ran out while the authority was confirmed")

    async def release(self, group: GroupName) -> None:
        """Delete the group's holder, if it hangs on our lease. Its permit must be gone."""
        lease = self._outer.lease_id if self._outer is not None else None
        await self._groups.release(group, lease=lease)

    async def run(self) -> None:
        """Go round until the term ends or `hand_over` was called. Cancelling leaves the leases.

        Raises:
            TermEnded: another replicator leads, or may.
            InvalidConfig: (in a group) the TTLs etcd granted do not fit each other.
        """
        self._confirmed_at_ms = self._calls.regional_heard_at_ms = self._keeping.renewed()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            rounds = tasks.create_task(self._run_rounds(tasks))
            lost = tasks.create_task(self.term.lost())
            await asyncio.wait({rounds, lost}, return_when=asyncio.FIRST_COMPLETED)
            rounds.cancel()
            lost.cancel()
            self._obedience.reset()
        if self.term.reason and not self._is_handing_over:
            raise TermEnded(f"the region's term ended: {self.term.reason}")

    def hand_over(self) -> None:
        """End `run` after the next complete round, so that a successor has the full time."""
        self._is_handing_over = True
        self._due.notify()

    # --- the rounds ----------------------------------------------------------------------------

    async def _run_rounds(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            began_at_ms = self.clock.now_ms()
            try:
                has_beaten = await self._round(tasks)
            except TermEnded:
                return
            except InvalidConfig:
                raise
            except MeshError as error:
                self._note(str(error))
                await self._outside(self.clock.sleep_ms(_RETRY_MS))
                continue
            self._rounds += 1
            self._round_ms = self.clock.now_ms() - began_at_ms
            self._note("")
            if self._is_handing_over:
                return
            if self._obedience.lasts and not has_beaten:
                continue
            await self._due.wait_until(self.clock, began_at_ms + self.timing.round_interval_ms)

    async def _round(self, tasks: asyncio.TaskGroup) -> bool:
        """Go round once and return whether a beat was put."""
        if self._outer is None or self._inner is None:
            await self._begin()  # Confirms and reads the seals itself: far away, twice is too long.
        else:
            await self._confirm()
            await self._obey_seals()
        if self._inner is None:
            raise Refused("the regional lease is given up for a seal, or for promises")
        may_beat = self._obedience.lasts
        if may_beat:
            await self._beat(self._inner)
        else:
            self._obedience.begin_in(tasks)
        await self._renew_inner(self._inner)
        self._keeping.release(tasks)
        return may_beat

    async def _outside(self, work: Coroutine[None, None, T]) -> T:
        """Wait for the coordination etcd; what goes on by promise does so meanwhile."""
        return await self._keeping.during(work, self._tasks)

    async def _confirm(self) -> None:
        """Renew the coordination lease until that is acknowledged.

        There is no limit of attempts: without an answer the permits end by themselves, or writes go
        on by promise. A renewal that was sent before the last act of that justifies nothing.

        Raises:
            LeaseLost: it has run out; so have the permits that are not kept by promise.
        """
        assert self._outer is not None, "there is a coordination lease from the beginning on"
        while True:
            await self._calls.until_region_answers(self._note)
            acts = self._keeping.acts
            try:
                self._outer = await self._outside(self._renew_outer(self._outer.lease_id))
            except LeaseLost:
                self._outer = None
                raise
            except (OutcomeUnknown, Refused) as error:
                self._note(f"coordination etcd: {error}")
                await self._outside(self.clock.sleep_ms(_RETRY_MS))
                continue
            if acts == self._keeping.acts:
                self._confirmed_after_acts = acts
                return

    async def _renew_outer(self, lease_id: LeaseId) -> Lease:
        renewed = await self._calls.renew_outer(lease_id)
        self._confirmed_at_ms = self.clock.now_ms()
        return renewed

    async def _obey_seals(self) -> None:
        """Leave no sealed permit on a lease that is about to be renewed (4.1 rule 2)."""
        if await self._groups.obey(await self._outside(self._calls.sealed())):
            self._inner = None

    async def _beat(self, inner: Lease) -> None:
        await self._beats.ready()
        self._require_fresh_confirmation()
        try:
            await self._beats.put(inner.lease_id)
        except LeaseLost:
            self._inner = None
            raise
        self._obedience.prolong()

    async def _renew_inner(self, inner: Lease) -> None:
        self._require_fresh_confirmation()
        try:
            self._inner = await self._calls.renew_inner(inner)
        except Unreachable:
            raise
        except MeshError:
            self._inner = None
            raise
        self._keeping.renewed()

    def _require_fresh_confirmation(self) -> None:
        if self._confirmed_after_acts != self._keeping.acts:
            raise Refused("writes went on by promise since the coordination lease was renewed")
        age_ms = self.clock.now_ms() - self._confirmed_at_ms
        if age_ms >= self.timing.regional_ttl_ms:
            raise Refused(f"stopped for {age_ms} ms after the coordination lease was renewed")

    def _give_up_inner(self) -> None:
        self._inner = None

    # --- beginning with new leases -------------------------------------------------------------

    async def _begin(self) -> None:
        """Adopt the coordination lease or grant one, grant a regional one, move the permits."""
        self._inner = None
        stored, revision = await self._calls.stored_leases()
        if self._outer is None and stored is not None:
            self._outer = await self._outside(self._calls.adopt_outer(stored.coordination))
        if self._outer is None:
            self._outer = await self._begin_outer(stored)
        self._groups.held = await self._outside(self._calls.held(self._outer.lease_id))
        kept, lease = self._keeping.kept, self._outer.lease_id
        await self._outside(self._groups.hold_kept(kept, lease))
        inner = await self._calls.grant_inner()
        granted_at_ms = self.clock.now_ms()
        tc_s, tr_s = self._outer.ttl_ms // 1000, inner.ttl_ms // 1000
        check_granted(self.timing, coordination_ttl_s=tc_s, regional_ttl_s=tr_s)
        await self._confirm()
        sealed, still_held = await self._outside(self._calls.sealed_and_held(lease))
        self._groups.confine(still_held)
        await self._groups.obey(sealed)
        leases = ChainLeases(coordination=self._outer.lease_id, regional=inner.lease_id)
        permits = await self._calls.permits()
        self._require_fresh_confirmation()
        self._obedience.reset()
        held = self._groups.held
        txn = txns.begin(permits, keep=held, leases=leases, record_revision=revision)
        await self._calls.commit(txn)
        self._inner, self._inner_granted_at_ms = inner, granted_at_ms
        self._keeping.stand_down()
        pair = f"{leases.coordination:x}/{leases.regional:x}"
        _log.info("chain.began", cluster=self.cluster, leases=pair, permits=len(permits.items))

    async def _begin_outer(self, stored: ChainLeases | None) -> Lease:
        """Grant a coordination lease, after the permits that hung on the one before are gone.

        Those that are kept by promise hang on none, and stay.
        """
        self._groups.held = {}
        if not self._keeping.kept:
            if stored is not None:
                await self._calls.revoke_inner(stored.regional)
            await self._calls.commit(txns.delete_all_permits())
        return await self._outside(self._calls.grant_outer())

    def _note(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.warning("chain.round_failed", cluster=self.cluster, problem=problem)
        elif self._problem and not problem:
            _log.info("chain.healthy", cluster=self.cluster, round_ms=self._round_ms)
        self._problem = problem
        self._changed.notify()
