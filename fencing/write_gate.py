"""The SDK: guarded writes that go to whichever cluster may accept them now.

A guarded write is an ordinary transaction with one more compare: the permit has the value we know.
Any etcd client can do that (docs/guarded-writes.md). `WriteGate` adds what the compare alone
cannot know: it finds the active cluster and follows it, and believes no answer of an etcd whose
region's replicator has not shown itself lately. It never retries a write that may have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Self

import attrs
import structlog

from fencing.gate_member import RETRY_MS, Connect, Member, follow_routing
from fencing.gate_view import NO_RANK, MemberView, Opening, Rank, opening_of, why_closed
from fencing.in_flight import InFlight
from fencing.patience import Signal
from meshkit.clock import Clock, SystemClock
from meshkit.errors import Conflict, InvalidInput, NotAllowed, OutcomeUnknown, Refused, Unreachable
from meshkit.keys import RegionalKeys
from meshkit.model import Routing
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Revision
from meshkit.store.port import Store
from meshkit.store.shape import guard_range
from meshkit.store.txn import (
    Committed,
    CreateRevisionIs,
    Get,
    Guard,
    KeyValue,
    ModRevisionIs,
    NoneModifiedSince,
    Operation,
    Rejected,
    Txn,
    ValueIs,
)

_log = structlog.get_logger()

DEADLINE_MS = 30_000
ACCESS_PATIENCE_MS = 3_000
"""For so long after a move, a write that etcd does not allow is tried again."""
"""How long a write waits for a cluster that accepts it: the promise for the worst emergency."""

REGIONAL_TTL_MS = 4_000
"""`Tr` of the default profile: the longest for which a beat is trusted."""


class GateClosed(Refused):
    """No cluster accepted writes for the group within the deadline; nothing was written."""

    code = "gate_closed"


class GuardFailed(Conflict):
    """One of the caller's own guards does not hold; nothing was written."""

    code = "guard_failed"

    def __init__(self, broken: tuple[Guard, ...], *, why: str = "") -> None:
        keys = ", ".join(guard_range(guard)[0].decode(errors="replace") for guard in broken)
        super().__init__(f"{keys}: {why}" if why else f"the guard on {keys} does not hold")
        self.broken = broken


@attrs.frozen(kw_only=True)
class Written:
    """A write that was accepted: certainly there, and not lost by a planned failover."""

    revision: Revision
    epoch: Epoch
    cluster: ClusterName
    opening: Opening = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Reading:
    """A key as the active cluster has it. `opening` goes with guards on its revisions."""

    item: KeyValue | None
    revision: Revision
    opening: Opening = attrs.field(repr=False)


class WriteGate:
    """Guarded writes for one group, wherever it is active. Use it as an async context manager.

    `routing` are stores that hold the routing record: the coordination etcd, or any region's etcd
    (its local copy). Members are reached through `members`, or through `connect` with the
    endpoints in the routing record. `regional_ttl_ms` is the most a beat is trusted for; the beat
    itself says how long the mesh's `Tr` is, and the smaller one holds.
    """

    def __init__(
        self,
        group: GroupName,
        *,
        routing: Sequence[Store] = (),
        connect: Connect | None = None,
        members: Mapping[ClusterName, Store] | None = None,
        regional_ttl_ms: int = REGIONAL_TTL_MS,
        clock: Clock | None = None,
    ) -> None:
        self.group = group
        self.clock: Clock = clock or SystemClock()
        self._routing_sources = tuple(routing)
        self._connect = connect
        self._fixed = dict(members or {})
        self._ttl_ms = regional_ttl_ms
        self._routing: Routing | None = None
        self._members: dict[ClusterName, Member] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[ClusterName, asyncio.Task[None]] = {}
        self._rank_seen: Rank = NO_RANK
        self._opening: Opening | None = None
        self._moved_at_ms = 0
        self._changed = Signal()
        self._in_flight = InFlight(clock=self.clock)

    async def __aenter__(self) -> Self:
        """Begin to watch."""
        for cluster, store in self._fixed.items():
            self._add(cluster, store=store)
        for source in self._routing_sources:
            follow = follow_routing(
                source, self.group, clock=self.clock, on_routing=self._on_routing
            )
            self._start(follow)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop watching and close the stores that `connect` made."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._members.clear()
        self._look()

    @property
    def active(self) -> Opening | None:
        """Where writes go at this moment; None while the gate is closed."""
        return self._look()

    @property
    def routing(self) -> Routing | None:
        """The newest routing record seen."""
        return self._routing

    async def wait_open(self, *, deadline_ms: int = DEADLINE_MS) -> Opening:
        """Return where writes go, waiting up to `deadline_ms` for it.

        Raises:
            GateClosed: no cluster accepts writes; says why, for each member.
        """
        return await self._wait_open(self.clock.now_ms() + deadline_ms)

    async def events(self) -> AsyncIterator[Opening | None]:
        """Yield where writes go now, and again whenever that changes; None: nowhere.

        Only the latest is kept for a slow reader.
        """
        yielded = self._look()
        yield yielded
        while True:
            while (opening := self._look()) == yielded:
                await self._changed.wait()
            yielded = opening
            yield opening

    async def write(
        self,
        operations: Sequence[Operation],
        *,
        guards: Sequence[Guard] = (),
        since: Opening | None = None,
        deadline_ms: int = DEADLINE_MS,
    ) -> Written:
        """Write all operations at one revision of the active cluster, if every guard holds there.

        While no cluster accepts writes, it waits for up to `deadline_ms`. Guards on revisions mean
        something only in the cluster they were read from: give `since=reading.opening` with them.

        Raises:
            GateClosed: no cluster accepted it in time; nothing was written.
            GuardFailed: one of `guards` does not hold, or writes have moved on `since` then.
            OutcomeUnknown: it may have been written. It is never tried again by itself.
            Refused: etcd refused the request as such; nothing was written.
        """
        bound = tuple(guard for guard in guards if _is_bound(guard))
        if bound and since is None:
            raise InvalidInput("a guard on a revision needs `since`: the opening it was read in")
        committed, opening = await self._commit(
            tuple(operations), guards=tuple(guards), since=since, deadline_ms=deadline_ms
        )
        return Written(
            revision=committed.revision,
            epoch=opening.epoch,
            cluster=opening.cluster,
            opening=opening,
        )

    async def read(self, key: bytes, *, deadline_ms: int = DEADLINE_MS) -> Reading:
        """Return a key from the active cluster, read while the permit was there.

        Raises:
            GateClosed: no cluster was active in time.
            OutcomeUnknown: the answer came too late to be believed.
        """
        committed, opening = await self._commit(
            (Get(key),), guards=(), since=None, deadline_ms=deadline_ms
        )
        items = committed.reads[0]
        return Reading(
            item=items[0] if items else None, revision=committed.revision, opening=opening
        )

    # --- one attempt after another -------------------------------------------------------------

    async def _commit(
        self,
        operations: tuple[Operation, ...],
        *,
        guards: tuple[Guard, ...],
        since: Opening | None,
        deadline_ms: int,
    ) -> tuple[Committed, Opening]:
        until_ms = self.clock.now_ms() + deadline_ms
        while True:
            opening = await self._wait_open(until_ms)
            if since is not None and opening != since:
                raise GuardFailed(guards, why=f"writes have moved to {opening.cluster}")
            try:
                committed = await self._attempt(opening, operations, guards, until_ms)
            except (Unreachable, NotAllowed) as error:
                # Certainly not written; the beats will tell whether that cluster is gone.
                if isinstance(error, NotAllowed) and not self._has_just_moved():
                    raise
                retry_at_ms = min(until_ms, self.clock.now_ms() + RETRY_MS)
                await self._changed.wait_until(self.clock, retry_at_ms)
                continue
            if committed is not None:
                return committed, opening

    def _has_just_moved(self) -> bool:
        """Return whether etcd may not let us write yet (`fence_mode: rbac`)."""
        return self.clock.now_ms() - self._moved_at_ms < ACCESS_PATIENCE_MS

    async def _attempt(
        self,
        opening: Opening,
        operations: tuple[Operation, ...],
        guards: tuple[Guard, ...],
        until_ms: int,
    ) -> Committed | None:
        """Commit once; None if the permit is not what we know, so that nothing happened."""
        member = self._members[opening.cluster]
        assert member.store is not None, "an open member is connected"
        if not member.store.is_connected:
            # Its watches are connecting. Writes may move meanwhile, and this one has not been sent.
            raise Unreachable(f"the connection to {opening.cluster} is lost")
        permit = ValueIs(RegionalKeys.permit(self.group), opening.permit)
        sent_at_ms = self.clock.now_ms()
        async with self._in_flight.sent_to(opening):
            outcome = await member.store.commit(
                Txn(guards=(permit, *guards), operations=operations),
                timeout_ms=max(1, until_ms - sent_at_ms),
            )
        member.view.on_anchor(sent_at_ms=sent_at_ms, revision=outcome.revision)
        match outcome:
            case Rejected(broken=broken) if permit in broken:
                member.view.on_refusal(opening.permit, outcome.revision)
                self._look()
                return None
            case Rejected(broken=broken):
                raise GuardFailed(broken)
            case Committed() if member.view.is_vouched(now_ms=self.clock.now_ms()):
                return outcome
            case Committed():
                raise OutcomeUnknown(
                    f"{opening.cluster} answered after the gate had closed: the write may be lost"
                )

    async def _wait_open(self, until_ms: int) -> Opening:
        while (opening := self._look()) is None:
            if self.clock.now_ms() >= until_ms:
                raise GateClosed(f"no cluster accepts writes for {self.group}: {self._why()}")
            await self._changed.wait_until(self.clock, until_ms)
        return opening

    def _why(self) -> str:
        if not self._members:
            return "no routing record was found"
        now_ms = self.clock.now_ms()
        views = [self._members[cluster].view for cluster in sorted(self._members)]
        return "; ".join(why_closed(v, now_ms=now_ms, rank_seen=self._rank_seen) for v in views)

    # --- what was seen -------------------------------------------------------------------------

    def _look(self) -> Opening | None:
        """Return the opening now, and wake those who wait if it is another."""
        views = [member.view for member in self._members.values()]
        self._rank_seen = max([self._rank_seen, *(view.permit_rank for view in views)])
        now_ms = self.clock.now_ms()
        found = (opening_of(view, now_ms=now_ms, rank_seen=self._rank_seen) for view in views)
        opening = next((o for o in found if o is not None), None)
        if opening != self._opening:
            self._opening, self._moved_at_ms = opening, now_ms
            _log.info(
                "gate.moved" if opening else "gate.closed",
                group=self.group,
                cluster=opening.cluster if opening else None,
                epoch=opening.epoch if opening else None,
            )
            self._changed.notify()
            if opening is not None and self._in_flight.is_waiting:
                self._start(self._in_flight.end_before(opening))
        return opening

    def _on_routing(self, routing: Routing) -> None:
        rank = (routing.epoch, routing.token)
        if self._routing is not None and rank < (self._routing.epoch, self._routing.token):
            return
        self._routing = routing
        self._rank_seen = max(self._rank_seen, rank)
        for cluster in [c for c in self._members if c not in self._fixed]:
            if routing.endpoints.get(cluster) != self._members[cluster].endpoints:
                self._drop(cluster)
        if self._connect is not None:
            for cluster, endpoints in routing.endpoints.items():
                if cluster not in self._members:
                    self._add(cluster, endpoints=endpoints)
        self._look()

    def _add(
        self, cluster: ClusterName, *, endpoints: tuple[str, ...] = (), store: Store | None = None
    ) -> None:
        view = MemberView(cluster=cluster, regional_ttl_ms=self._ttl_ms)
        member = Member(
            group=self.group,
            view=view,
            clock=self.clock,
            on_change=self._look_only,
            endpoints=endpoints,
            connect=self._connect,
            store=store,
        )
        self._members[cluster] = member
        self._running[cluster] = self._start(member.run())

    def _drop(self, cluster: ClusterName) -> None:
        del self._members[cluster]
        self._running.pop(cluster).cancel()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_ended)
        return task

    def _on_ended(self, task: asyncio.Task[None]) -> None:
        """A watcher ends only by being cancelled; anything else is a bug, and said so."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("gate.watcher_failed", group=self.group, exc_info=error)

    def _look_only(self) -> None:
        self._look()


def permit_key(group: GroupName) -> bytes:
    """Return the key that every guarded write compares: the contract for any etcd client."""
    return RegionalKeys.permit(group)


def _is_bound(guard: Guard) -> bool:
    """Return whether the guard means something only in the cluster it was read from."""
    match guard:
        case ModRevisionIs(revision=revision) | CreateRevisionIs(revision=revision):
            return revision != ABSENT
        case NoneModifiedSince():
            return True
        case _:
            return False
