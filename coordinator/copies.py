"""Has copies compared for the coordinator itself: before a failover, and on a schedule.

Lives for one term. What it asks for is guarded by the term; what was asked for by a coordinator
that is gone is found by its successor, and waited for.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import TypeVar

import attrs
import structlog

from coordinator.comparison import (
    CHECK,
    Ask,
    Copy,
    Satisfied,
    Standing,
    Unfit,
    due,
    judge,
    own_id,
)
from coordinator.failover.events import StepDone, StepFailed
from coordinator.failover.record import Failover
from coordinator.term import Term, commit_under
from fencing.patience import Signal
from meshkit.clock import Clock
from meshkit.codec import Stored, decode, encode
from meshkit.errors import CorruptRecord, MeshError, TermEnded
from meshkit.keys import CoordinationKeys as Keys
from meshkit.mirror import PrefixMirror
from meshkit.model import Authority, Group
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Revision
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Guard, KeyValue, ModRevisionIs, Put, Txn, absent
from meshkit.verification import Verify, VerifyResult

_log = structlog.get_logger()

R = TypeVar("R", bound=Stored)

RETRY_MS = 500
LOOK_MS = 15_000
"""At least so often the schedule looks for copies that are due."""
LOOK_SPACING_MS = 1_000
"""And at most so often, also while one comparison after another is due."""

BY_SCHEDULE = "schedule"


@attrs.define(kw_only=True, eq=False)
class Copies:
    """What is known of all copies, and what asks for more."""

    store: Store
    clock: Clock
    term: Term
    _requests: PrefixMirror = attrs.field(init=False)
    _groups: PrefixMirror = attrs.field(init=False)
    _authorities: PrefixMirror = attrs.field(init=False)
    _records: dict[bytes, tuple[Revision, Stored | None]] = attrs.field(factory=dict, init=False)
    _changed: Signal = attrs.field(factory=Signal, init=False)
    _seen_ms: dict[tuple[GroupName, ClusterName, Epoch], int] = attrs.field(
        factory=dict, init=False
    )

    def __attrs_post_init__(self) -> None:
        self._requests = PrefixMirror(self.store, Keys.verifies, clock=self.clock)
        self._groups = PrefixMirror(self.store, Keys.groups, clock=self.clock)
        self._authorities = PrefixMirror(self.store, Keys.authorities, clock=self.clock)
        for mirror in (self._requests, self._groups, self._authorities):
            mirror.on_change(partial(self._on_change, mirror))

    async def run(self) -> None:
        """Follow what is asked and found, and keep to the schedule, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for mirror in (self._requests, self._groups, self._authorities):
                tasks.create_task(mirror.run())
            for mirror in (self._requests, self._groups, self._authorities):
                await mirror.ready.wait()
            while True:
                try:
                    for copy in due(self._copies(), now_ms=self.clock.wall_ms()):
                        await self._ask_by_schedule(copy)
                except TermEnded:
                    raise
                except MeshError as error:
                    _log.warning("schedule.delayed", why=str(error))
                look_ms = self.clock.now_ms() + LOOK_MS
                await self.clock.sleep_ms(LOOK_SPACING_MS)
                await self._changed.wait_until(self.clock, look_ms)

    # --- before a failover ---------------------------------------------------------------------

    async def before_failover(self, record: Failover) -> StepDone | StepFailed:
        """Carry out the step `verify`: know the target's copy to be equal, or say why not.

        Raises:
            TermEnded: another coordinator leads.
        """
        await self._requests.ready.wait()
        limit_ms = record.policy.verify_ms_max
        deadline_ms = self.clock.now_ms() + limit_ms
        while True:
            standing = self.standing(record.target, record.group)
            verdict = judge(record, standing, now_ms=self.clock.wall_ms())
            match verdict:
                case Satisfied(detail=detail):
                    return StepDone(step=CHECK, detail=detail)
                case Unfit(detail=detail):
                    return StepFailed(step=CHECK, detail=detail)
            if self.clock.now_ms() >= deadline_ms:
                return StepFailed(
                    step=CHECK,
                    detail=f"{record.target} did not compare its copy within {limit_ms} ms;"
                    f" see mesh replication status, or waive it by name: --waive {CHECK}",
                )
            if isinstance(verdict, Ask) and await self._ask_for_failover(record):
                continue
            again_ms = self.clock.now_ms() + LOOK_MS
            await self._changed.wait_until(self.clock, min(deadline_ms, again_ms))

    async def _ask_for_failover(self, record: Failover) -> bool:
        """Ask, and return whether what is known has moved already."""
        revision = self._requests.revision
        request = Verify(
            id=own_id(record),
            group=record.group,
            target=record.target,
            repair=False,
            requested_by=f"failover {record.id}",
            requested_ms=self.clock.wall_ms(),
        )
        try:
            await self._put(request)
        except TermEnded:
            raise
        except MeshError as error:
            _log.warning("verify.not_asked", group=record.group, why=str(error))
            await self.clock.sleep_ms(RETRY_MS)
        return self._requests.revision > revision

    # --- by schedule ---------------------------------------------------------------------------

    async def _ask_by_schedule(self, copy: Copy) -> None:
        now_ms = self.clock.wall_ms()
        name = f"{copy.group}\0{copy.target}\0{now_ms}"
        request = Verify(
            id=f"s-{hashlib.sha256(name.encode()).hexdigest()[:16]}",
            group=copy.group,
            target=copy.target,
            repair=False,
            requested_by=BY_SCHEDULE,
            requested_ms=now_ms,
        )
        # A failover that runs asks for itself, and must not lose its request to the schedule.
        guards = (absent(Keys.failover_active(copy.group)), absent(Keys.automation_pause))
        if await self._put(request, *guards):
            _log.info("verify.scheduled", group=copy.group, target=copy.target, id=request.id)

    def _copies(self) -> list[Copy]:
        """Return every copy that there should be; forget those that are gone."""
        found: list[Copy] = []
        now_ms = self.clock.wall_ms()
        for item in self._authorities.entries.values():
            authority = self._read(Authority, item)
            if authority is None:
                continue
            group = self._read(Group, self._groups.entries.get(Keys.group(authority.group)))
            for member in group.members if group else ():
                if member == authority.active:
                    continue
                seen_ms = self._seen_ms.get((authority.group, member, authority.epoch), now_ms)
                assert group is not None, "it has members"
                found.append(
                    Copy(
                        group=authority.group,
                        target=member,
                        source=authority.active,
                        epoch=authority.epoch,
                        every_ms=group.policy.verify_every_ms,
                        seen_ms=seen_ms,
                        standing=self.standing(member, authority.group),
                    )
                )
        self._seen_ms = {(c.group, c.target, c.epoch): c.seen_ms for c in found}
        return found

    # --- parts ---------------------------------------------------------------------------------

    def standing(self, target: ClusterName, group: GroupName) -> Standing:
        """Return what is known of one copy; what cannot be read counts as absent."""
        request = self._requests.entries.get(Keys.verify(target, group))
        result = self._requests.entries.get(Keys.verify_result(target, group))
        return Standing(
            request=self._read(Verify, request), result=self._read(VerifyResult, result)
        )

    def _read(self, cls: type[R], item: KeyValue | None) -> R | None:
        """Return the record of an item, decoded once for each time it was put."""
        if item is None:
            return None
        known = self._records.get(item.key)
        if known is None or known[0] != item.mod_revision:
            try:
                known = (item.mod_revision, decode(cls, item.value))
            except CorruptRecord as error:
                _log.warning("record.unreadable", key=item.key.decode(), why=str(error))
                known = (item.mod_revision, None)
            self._records[item.key] = known
        record = known[1]
        return record if isinstance(record, cls) else None

    def _on_change(self, mirror: PrefixMirror, keys: frozenset[bytes]) -> None:
        for key in keys - mirror.entries.keys():
            self._records.pop(key, None)
        self._changed.notify()

    async def _put(self, request: Verify, *guards: Guard) -> bool:
        """Put a request over the one that is known; False if something else moved."""
        key = Keys.verify(request.target, request.group)
        item = self._requests.entries.get(key)
        known = ModRevisionIs(key, item.mod_revision if item else ABSENT)
        txn = Txn(guards=(known, *guards), operations=(Put(key, encode(request)),))
        outcome = await commit_under(self.term, self.store, txn)
        return isinstance(outcome, Committed)
