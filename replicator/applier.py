"""Applies a source's log to this region: one guarded transaction after the other.

Each compares the fence index and the checkpoint it moves, so it happens at most once, and never
after a command, a fence or another leader has moved first. A rejected one is derived anew from
what is there now; an unknown one is settled by reading what is there now. One at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs
import structlog

from meshkit.errors import MeshError, OutcomeUnknown, RevisionConflict, TermEnded
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence
from meshkit.regional import Checkpoint, JoinPhase
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Guard
from replicator.batch import MainBatch
from replicator.changes import Changes
from replicator.draft import ApplyPlan, Hold, Overtaken, Stale, Standpoint
from replicator.in_parts import REFUSALS, InParts
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.messages import CopyPage, SideFrame, Welcome
from replicator.plan import (
    plan_again,
    plan_fresh,
    plan_main,
    plan_page,
    plan_refused,
    plan_side,
)
from replicator.record import Record
from replicator.region import RegionReader
from replicator.region_state import RegionState
from replicator.room import Pace
from replicator.transaction import Prepared, checkpoint_at, committed, prepare

_log = structlog.get_logger()

ATTEMPTS_MAX = 20
"""A transaction is derived anew so often before the stream begins anew."""


class StreamBroken(MeshError):
    """What arrived does not continue what is stored here; the stream begins anew."""

    code = "stream_broken"


Build = Callable[[RegionState], "Prepared | Hold | Stale | None"]
"""Derives a transaction from the region's state; None if nothing is left to do."""


class Applier:
    """The only one that applies one source's log here, while its term lasts.

    `position` is how far the log is applied; the stored checkpoint may lag behind it over a
    stretch that held nothing for this cluster.
    """

    def __init__(
        self,
        store: Store,
        *,
        me: ClusterName,
        source: ClusterName,
        term_guard: Guard | None = None,
        has_given_up: Callable[[ClusterName], bool] = lambda _: False,
        is_exact: Callable[[GroupName], bool] = lambda _: False,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.position = Sequence(0)
        self.joins_version = 0
        self.turn = asyncio.Lock()
        """Held while a transaction is settled; whoever holds it stops the stream for a moment."""
        self.pace = Pace(limits)
        self._store = store
        self._reader = RegionReader(store)
        self._me, self._source = me, source
        self._term_guard = term_guard
        self._has_given_up = has_given_up
        self._is_exact = is_exact
        self._limits = limits
        self._state: RegionState | None = None
        self._incarnation = Incarnation("")
        self._in_parts = InParts(
            source=source,
            settle=self._settle,
            prepare=self._part_prepared,
            at=self._at,
            room=lambda: self.pace.room,
        )

    # --- the region's state --------------------------------------------------------------------

    async def region(self) -> RegionState:
        """Return the region's state, read again if something moved."""
        if self._state is None:
            self._state = await self._reader.read()
            self.joins_version += 1
        return self._state

    def forget(self) -> None:
        """Read the region again before the next transaction."""
        self._state = None

    @property
    def known(self) -> RegionState | None:
        """The region's state as last read, if it is still believed."""
        return self._state

    @property
    def durable(self) -> Sequence:
        """Where the stored checkpoint stands, as last known."""
        own = self._state.checkpoints.get(self._source) if self._state else None
        return own.sequence if own else Sequence(0)

    async def begin(self, *, replaced: frozenset[Incarnation] = frozenset()) -> Checkpoint | None:
        """Return the checkpoint to go on from; None if its log is declared to be `replaced`."""
        self.forget()
        own = (await self.region()).checkpoints.get(self._source)
        if own is None or own.incarnation in replaced:
            return None
        self.position, self._incarnation = own.sequence, own.incarnation
        return own

    def _at(self) -> Standpoint:
        return Standpoint(
            me=self._me,
            source=self._source,
            incarnation=self._incarnation,
            has_given_up=self._has_given_up,
            is_exact=self._is_exact,
        )

    # --- the main stream -----------------------------------------------------------------------

    async def apply_fresh(self, welcome: Welcome) -> Hold | None:
        """Begin at the welcome's start: what came before it will never be seen."""
        self._incarnation = welcome.incarnation

        def build(state: RegionState) -> Prepared | Hold | None:
            own = state.checkpoints.get(self._source)
            before = own.sequence if own and own.incarnation == welcome.incarnation else None
            if before is not None and before >= welcome.start:
                return None
            plan = plan_fresh(
                state, welcome.segments, self._at(), start=welcome.start, before=before
            )
            return self._prepared(state, plan) if isinstance(plan, ApplyPlan) else plan

        result = await self._settle(build)
        if isinstance(result, Hold):
            return result
        self.position = welcome.start
        return None

    async def apply_main(self, batch: MainBatch) -> Hold | None:
        """Apply as much of a batch as may be; `position` says how far. A hold stops at once."""
        if batch.after > self.position:
            raise StreamBroken(f"{batch.after} does not continue {self.position}")
        if batch.piece is not None:
            return await self._apply_in_parts(batch.records[-1])
        while self.position < batch.through:
            held = await self._apply_some(batch)
            if held is not None:
                return held
        return None

    async def _apply_some(self, batch: MainBatch) -> Hold | None:
        try:
            return await self._apply_rest(batch)
        except REFUSALS as error:
            rest = batch.beyond(self.position)
            if not rest.records:
                raise
            self.pace.on_refused()
            _log.warning("apply.refused", source=self._source, why=str(error))
            if len(rest.records) > 1:
                return await self.apply_main(rest.half())
            return await self._apply_in_parts(rest.records[0])

    async def _apply_in_parts(self, record: Record) -> Hold | None:
        """Apply a record that does not fit into a transaction, or a piece of one."""
        if record.sequence <= self.position:
            return None
        self.position = max(self.position, Sequence(record.sequence - 1))
        held = await self._in_parts.apply(record)
        if held is None and (record.piece is None or record.piece.is_last):
            self.position = record.sequence
        return held

    async def _apply_rest(self, batch: MainBatch) -> Hold | None:
        planned: list[ApplyPlan] = []

        def build(state: RegionState) -> Prepared | Hold | None:
            planned.clear()
            own = self._own_checkpoint(state)
            position = max(self.position, own.sequence)
            if position >= batch.through:
                return None
            plan = plan_main(state, batch.beyond(position), self._at())
            if isinstance(plan, Hold):
                return plan
            planned.append(plan)
            return self._prepared(state, plan) if plan.is_durable else None

        result = await self._settle(build)
        if isinstance(result, Hold):
            return result
        self.position = planned[0].through if planned else batch.through
        return None

    async def store_checkpoint(self) -> None:
        """Store how far the log is applied, though nothing of it concerned this cluster."""

        def build(state: RegionState) -> Prepared | None:
            if self._own_checkpoint(state).sequence >= self.position:
                return None
            return self._prepared(state, ApplyPlan(through=self.position))

        await self._settle(build)

    # --- side streams --------------------------------------------------------------------------

    async def apply_changes(
        self, page: CopyPage, changes: Changes
    ) -> Stale | Hold | Overtaken | None:
        """Bring one stretch of a page about, in one transaction.

        Raises:
            TooLarge: it does not fit into one.
        """

        def build(state: RegionState) -> Prepared | Stale | Hold | None:
            plan = plan_page(
                state,
                page,
                self._at(),
                writes=changes.all_writes,
                start=changes.start,
                end=changes.end,
            )
            if not isinstance(plan, ApplyPlan):
                return plan
            prepared = self._side_prepared(state, plan, page.group)
            return attrs.evolve(prepared, looked=changes.guards)

        result = await self._settle(build)
        return None if isinstance(result, Prepared) else result

    async def apply_side(self, frame: SideFrame) -> Stale | Hold | None:
        """Apply a side frame; the last one brings the group back in step with the main stream."""
        key = (self._source, frame.group)
        if frame.is_last and frame.through != self.position:
            raise StreamBroken(f"{frame.group} meets at {frame.through}, not {self.position}")
        while True:
            try:
                result = await self._settle(lambda state: self._side_step(state, frame))
            except REFUSALS as error:
                await self.join_again(Hold(reason=str(error)), frame.group)
                return None
            if not isinstance(result, Prepared):
                return result if isinstance(result, Stale | Hold) else None
            own = result.plan.joins.get(key)
            if own is None:
                _log.info("group.in_step", group=frame.group, source=self._source)
            if own is None or own.phase is not JoinPhase.FOLLOWING or own.sequence >= frame.through:
                return None

    def _side_step(self, state: RegionState, frame: SideFrame) -> Prepared | Stale | Hold | None:
        """Return the next transaction of a side frame: as a rule it takes all of it."""
        key = (self._source, frame.group)
        own = state.followed(key)
        if own is None or own.phase is not JoinPhase.FOLLOWING:
            return Stale()
        if own.sequence >= frame.through and not frame.is_last:
            return None
        if not frame.after <= own.sequence <= frame.through:
            return Stale()
        plan = plan_side(state, frame.beyond(own.sequence), self._at())
        if isinstance(plan, Hold):
            return plan
        is_met = plan.joins.get(key) is None
        return self._side_prepared(state, plan, frame.group, is_met=is_met)

    async def join_again(self, hold: Hold, group: GroupName) -> None:
        """Have the group copied from the beginning: it cannot be applied as it comes."""

        def build(state: RegionState) -> Prepared | None:
            plan = plan_again(state, group, hold.reason, self._at(), parked=hold.parked)
            return self._side_prepared(state, plan, group) if plan.joins else None

        await self._settle(build)

    async def apply_refused(self, group: GroupName, epoch: Epoch) -> None:
        """The source has only a newer epoch than the group was to be copied in: take that one."""

        def build(state: RegionState) -> Prepared | None:
            plan = plan_refused(state, group, epoch, self._at())
            return self._side_prepared(state, plan, group) if plan.joins else None

        await self._settle(build)

    # --- transactions --------------------------------------------------------------------------

    @property
    def source(self) -> ClusterName:
        """Whose log is applied."""
        return self._source

    @property
    def term_guard(self) -> Guard | None:
        """What holds only while this replicator leads its region."""
        return self._term_guard

    def _guards(self) -> tuple[Guard, ...]:
        return (self._term_guard,) if self._term_guard is not None else ()

    def _own_checkpoint(self, state: RegionState) -> Checkpoint:
        own = state.checkpoints.get(self._source)
        if own is None or own.incarnation != self._incarnation:
            raise StreamBroken(f"the checkpoint of {self._source} is gone")
        return own

    def _prepared(self, state: RegionState, plan: ApplyPlan) -> Prepared:
        checkpoint = checkpoint_at(
            state.checkpoints.get(self._source),
            source=self._source,
            incarnation=self._incarnation,
            sequence=plan.through,
        )
        return prepare(
            state, plan, source=self._source, checkpoint=checkpoint, guards=self._guards()
        )

    def _part_prepared(self, state: RegionState, plan: ApplyPlan, is_last: bool) -> Prepared:
        if is_last:
            return self._prepared(state, plan)
        return prepare(state, plan, source=self._source, checkpoint=None, guards=self._guards())

    def _side_prepared(
        self, state: RegionState, plan: ApplyPlan, group: GroupName, *, is_met: bool = False
    ) -> Prepared:
        checkpoint = None
        if is_met:
            # From here the main stream carries the group, so that is where it must resume.
            checkpoint = checkpoint_at(
                self._own_checkpoint(state),
                source=self._source,
                incarnation=self._incarnation,
                sequence=plan.through,
            )
        return prepare(
            state,
            plan,
            source=self._source,
            checkpoint=checkpoint,
            guards=self._guards(),
            join_guard=(self._source, group),
        )

    async def _settle(self, build: Build) -> Prepared | Hold | Stale | Overtaken | None:
        """Commit what `build` derives, deriving it anew until it is certain."""
        async with self.turn:
            return await self._settled(build)

    async def _settled(self, build: Build) -> Prepared | Hold | Stale | Overtaken | None:
        for _ in range(ATTEMPTS_MAX):
            state = await self.region()
            prepared = build(state)
            if not isinstance(prepared, Prepared):
                return prepared
            try:
                outcome = await self._store.commit(prepared.guarded)
            except OutcomeUnknown as error:
                # It is read back: `build` finds what it did, or derives it again.
                _log.info("apply.outcome_unknown", source=self._source, why=str(error))
                self.forget()
                continue
            if isinstance(outcome, Committed):
                self._on_committed(state, prepared, outcome)
                return prepared
            if self._term_guard is not None and self._term_guard in outcome.broken:
                raise TermEnded("another replicator leads this region")
            if not {*prepared.looked}.isdisjoint(outcome.broken):
                return Overtaken()
            self.forget()
        raise RevisionConflict(f"{ATTEMPTS_MAX} attempts to apply {self._source} were overtaken")

    def _on_committed(self, state: RegionState, prepared: Prepared, outcome: Committed) -> None:
        committed(state, prepared, source=self._source, revision=outcome.revision)
        for group, count in prepared.plan.refused.items():
            _log.error("writes.refused", group=group, source=self._source, count=count)
        if prepared.plan.joins:
            self.joins_version += 1
