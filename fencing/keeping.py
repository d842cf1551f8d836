"""Going on without the coordination etcd, by the promise of every passive member (4.1 rule 4).

Where the chain waits for the coordination etcd, it waits in `Keeping.during`. If that takes so long
that permits would run out, rounds are made here in the meantime: ask every member of every group
that has a pact, give exactly the groups that all promised a permit, beat, renew. Promises stand
where the coordination lease stood, and the same rules hold (`fencing/chain.py`):

* One renewal for one set of promises, which were asked for after the renewal before it was
  acknowledged. So a permit ends less than `2*Tr` after they were asked for, and each promise lasts
  longer than that (`Timing.promise_ttl_s`).
* The lease is granted before the promises are asked for. After an unknown outcome it is given up.
* The beat is everybody's. So before the first one here, the permits of the groups that lapse are
  deleted, and each beat compares that no other was put since.

What makes it safe whatever was not heard: a member promises only while its fence is in no higher
epoch, neither frozen nor about to open one; and nobody may be promoted who is not asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Protocol, TypeVar

import attrs
import structlog

from fencing import keeping_txns
from fencing.beating import Beats
from fencing.chain_calls import ChainCalls
from fencing.keeping_txns import Keepable
from fencing.lease import Lease, live_id
from fencing.obedience import Obedience
from fencing.patience import Signal, within
from fencing.timing import Timing
from meshkit.clock import Clock
from meshkit.errors import MeshError, Refused
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Revision
from meshkit.regional import Fence

_log = structlog.get_logger()

T = TypeVar("T")
Given = Mapping[ClusterName, AbstractSet[GroupName]]
"""What each member has promised."""

_RETRY_MS = 100
_PATIENCE_MS = 50
"""However late it is: an answer that comes at once costs no promises."""
_ASK_SHARE = 0.5
"""Of `Tr` since the last renewal, after which members are asked; as long they may take."""
_ACT_SHARE = 0.75
"""Of `Tr`, after which what lapses is given up: an election of the coordination etcd is shorter."""


class Promises(Protocol):
    """Asks other clusters for promises."""

    async def ask(
        self,
        member: ClusterName,
        groups: Mapping[GroupName, Epoch],
        *,
        term: Revision,
        number: int,
        ttl_s: int,
    ) -> AbstractSet[GroupName]:
        """Return which of the groups `member` has promised not to open, for `ttl_s` from now on.

        Raises:
            MeshError: it does not answer.
        """

    async def end(
        self, member: ClusterName, groups: AbstractSet[GroupName], *, term: Revision, number: int
    ) -> None:
        """Tell `member` that what was asked for in this term up to `number` is not relied on."""


@attrs.define(kw_only=True, eq=False)
class Keeping:
    """The rounds of one term that rest on promises. Never concurrent with those of the chain."""

    cluster: ClusterName
    calls: ChainCalls
    promises: Promises | None
    obedience: Obedience
    beats: Beats
    on_act: Callable[[], None]
    """Called before anything of the region is changed: the chain's own lease is given up."""
    acts: int = 0
    """How often something of the region was changed. What the coordination etcd confirmed before
    the last time justifies nothing any more."""
    _lease: Lease | None = attrs.field(default=None, init=False)
    _kept: dict[GroupName, Fence] = attrs.field(factory=dict, init=False)
    _number: int = attrs.field(default=0, init=False)
    _asked: dict[ClusterName, set[GroupName]] = attrs.field(factory=dict, init=False)
    _renewed_at_ms: int = attrs.field(default=0, init=False)
    _next_at_ms: int = attrs.field(default=0, init=False)
    _problem: str = attrs.field(default="", init=False)
    _done: Signal = attrs.field(factory=Signal, init=False)

    @property
    def timing(self) -> Timing:
        """The lease times, which promises obey too."""
        return self.calls.timing

    @property
    def clock(self) -> Clock:
        """The clock of the chain."""
        return self.calls.clock

    @property
    def kept(self) -> Mapping[GroupName, Fence]:
        """The groups whose writes go on by promise, as far as their lease is certainly alive."""
        if live_id(self._lease, now_ms=self.clock.now_ms()) is None:
            return MappingProxyType({})
        return MappingProxyType(self._kept)

    async def during(self, work: Coroutine[None, None, T], tasks: asyncio.TaskGroup | None) -> T:
        """Return what `work` returns; writes go on by promise meanwhile, if they may."""
        if self.promises is None or tasks is None:
            return await work
        working = asyncio.ensure_future(work)
        working.add_done_callback(lambda _: self._done.notify())
        patient_ms = self.clock.now_ms() + _PATIENCE_MS
        try:
            while not working.done():
                await self._wait(working, until_ms=max(self._due_at_ms(), patient_ms))
                if not working.done():
                    await self._try_round(working, tasks)
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    def renewed(self) -> int:
        """Note and return when the regional lease was renewed as the coordination etcd allowed."""
        self._renewed_at_ms = self.clock.now_ms()
        return self._renewed_at_ms

    def stand_down(self) -> None:
        """Note that the chain has begun anew: no permit hangs on a lease of ours any more."""
        if self._kept:
            _log.warning("promises.not_needed", cluster=self.cluster, groups=len(self._kept))
        self._forget()

    def release(self, tasks: asyncio.TaskGroup) -> None:
        """Tell the members, in the background, that nothing rests on their promises any more."""
        if self._asked and not self._kept:
            asked, self._asked = self._asked, {}
            tasks.create_task(self._end(asked, self._number))

    # --- when ----------------------------------------------------------------------------------

    def _due_at_ms(self) -> int:
        if self._kept:
            return self._next_at_ms
        since_ms = self._renewed_at_ms + int(self.timing.regional_ttl_ms * _ASK_SHARE)
        return max(since_ms, self._next_at_ms)

    async def _wait(self, working: asyncio.Task[T], *, until_ms: int) -> None:
        if not working.done():
            await self._done.wait_until(self.clock, until_ms)

    # --- a round -------------------------------------------------------------------------------

    async def _try_round(self, working: asyncio.Task[T], tasks: asyncio.TaskGroup) -> None:
        began_at_ms = self.clock.now_ms()
        self._next_at_ms = began_at_ms + self.timing.round_interval_ms
        problem = ""
        try:
            await self._round(working, tasks)
        except MeshError as error:  # also that the term ended, of which the chain is told
            problem = str(error)
            self._lease = None
            self._next_at_ms = self.clock.now_ms() + _RETRY_MS
        if problem and problem != self._problem:
            _log.warning("keeping.round_failed", cluster=self.cluster, problem=problem)
        self._problem = problem

    async def _round(self, working: asyncio.Task[T], tasks: asyncio.TaskGroup) -> None:
        look = await self._look()
        groups = keeping_txns.keepable(look, me=self.cluster)
        if not groups and not self._kept:
            return
        if self._lease is None:
            self._lease = await self.calls.grant_inner()
        lease = self._lease
        asked_at_ms = self.clock.now_ms()
        timing = attrs.evolve(self.timing, regional_ttl_ms=lease.ttl_ms)
        asking = asyncio.ensure_future(
            self._ask_all(groups, asked_at_ms=asked_at_ms, ttl_s=timing.promise_ttl_s)
        )
        promises = await self._unless_needless(asking, working)
        kept = keeping_txns.promised_by_all(groups, promises)
        if not self._kept:
            act_at_ms = self._renewed_at_ms + int(self.timing.regional_ttl_ms * _ACT_SHARE)
            await self._wait(working, until_ms=act_at_ms)
            if working.done() or not kept:
                self._lease = None
                return
        await self._act(look, kept, lease, asked_at_ms=asked_at_ms, tasks=tasks)

    async def _unless_needless(
        self, asking: asyncio.Task[Given], working: asyncio.Task[T]
    ) -> Given:
        """Return what is promised, or nothing once nobody needs it any more."""
        asking.add_done_callback(lambda _: self._done.notify())
        try:
            while not asking.done() and (self._kept or not working.done()):
                await self._done.wait()
            return asking.result() if asking.done() else {}
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _act(
        self,
        look: keeping_txns.Look,
        kept: Mapping[GroupName, Fence],
        lease: Lease,
        *,
        asked_at_ms: int,
        tasks: asyncio.TaskGroup,
    ) -> None:
        await self.beats.ready()
        self._require_fresh(asked_at_ms)
        self.acts += 1
        self.on_act()
        lined_up = look.permits.revision
        txn = keeping_txns.line_up(look, kept, lease=lease.lease_id)
        if txn is not None:
            lined_up = (await self.calls.commit(txn)).revision
        self._note_kept(kept)
        if not kept:
            self._forget()
            return
        if self.obedience.lasts:
            self._require_fresh(asked_at_ms)
            guard = keeping_txns.as_lined_up(lined_up)
            await self.beats.put(lease.lease_id, guards=(guard,))
            self.obedience.prolong()
        else:
            self.obedience.begin_in(tasks)
        self._require_fresh(asked_at_ms)
        self._lease = await self.calls.renew_inner(lease)

    async def _look(self) -> keeping_txns.Look:
        """Look by plain reads: etcd 3.5.1 dies of a cancelled transaction that only reads."""
        _, leases_revision = await self.calls.stored_leases()
        fences = await self.calls.heard(self.calls.regional.range(keeping_txns.FENCES))
        pacts = await self.calls.heard(self.calls.regional.range(keeping_txns.PACTS))
        permits = await self.calls.permits()
        return keeping_txns.look_of(fences, pacts, permits, leases_revision=leases_revision)

    def _require_fresh(self, asked_at_ms: int) -> None:
        age_ms = self.clock.now_ms() - asked_at_ms
        if age_ms >= self.timing.regional_ttl_ms:
            raise Refused(f"stopped for {age_ms} ms after the promises were asked for")

    def _note_kept(self, kept: Mapping[GroupName, Fence]) -> None:
        if kept.keys() != self._kept.keys():
            gone = sorted(self._kept.keys() - kept.keys())
            _log.warning("promises.kept_by", cluster=self.cluster, groups=sorted(kept), not_=gone)
        self._kept = dict(kept)

    def _forget(self) -> None:
        self._lease, self._kept = None, {}

    # --- asking --------------------------------------------------------------------------------

    async def _ask_all(
        self, groups: Mapping[GroupName, Keepable], *, asked_at_ms: int, ttl_s: int
    ) -> Given:
        """Return what each member promises, within the time there is."""
        self._number += 1
        asked = keeping_txns.by_member(groups)
        until_ms = asked_at_ms + int(self.timing.regional_ttl_ms * _ASK_SHARE)
        for member, wanted in asked.items():
            self._asked.setdefault(member, set()).update(wanted)
        answers = await asyncio.gather(
            *(
                self._ask(member, wanted, until_ms=until_ms, ttl_s=ttl_s)
                for member, wanted in asked.items()
            )
        )
        return dict(zip(asked, answers, strict=True))

    async def _ask(
        self,
        member: ClusterName,
        groups: Mapping[GroupName, Epoch],
        *,
        until_ms: int,
        ttl_s: int,
    ) -> AbstractSet[GroupName]:
        assert self.promises is not None, "without it there are no rounds"
        term, number = self.calls.term.created_at, self._number
        problem = "there was no time left"
        while (left_ms := until_ms - self.clock.now_ms()) > 0:
            ask = self.promises.ask(member, groups, term=term, number=number, ttl_s=ttl_s)
            try:
                return await within(self.clock, left_ms, ask)
            except MeshError as error:
                problem = str(error)
                await self.clock.sleep_ms(min(_RETRY_MS, left_ms))
        _log.warning("promise.not_given", member=member, why=problem)
        return frozenset()

    async def _end(self, asked: Mapping[ClusterName, AbstractSet[GroupName]], number: int) -> None:
        assert self.promises is not None, "without it nobody was asked"
        term = self.calls.term.created_at
        for member, groups in asked.items():
            end = self.promises.end(member, groups, term=term, number=number)
            try:
                await within(self.clock, self.timing.call_timeout_ms, end)
            except MeshError as error:
                _log.info("promise.not_ended", member=member, why=str(error))
