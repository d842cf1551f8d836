"""What an emergency has to find out: whether its source is fenced, and what may be lost."""

from __future__ import annotations

from functools import partial

import attrs
import structlog

from coordinator.assess import Assessor
from coordinator.failover.evidence import statement
from coordinator.failover.loss import FenceStatus
from coordinator.failover.machine import FenceEnded, LossStated, TimedOut
from coordinator.failover.record import Failover
from coordinator.failover.repository import FailoverRepository
from coordinator.governance.preflight import PROMISES
from coordinator.governance.rescue_checks import rescue_preview
from coordinator.lookout import Lookout, permit_ended_ms
from coordinator.mesh import read_at_once, read_mesh
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.commands import Command, CommandStep
from meshkit.errors import Compacted, Conflict, CorruptRecord
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, GroupName
from meshkit.promises import Pact
from meshkit.status import ClusterHealth, LogHead
from meshkit.store.port import Store
from meshkit.store.txn import Get

_log = structlog.get_logger()


def _is_asked(record: Failover, pact: Pact) -> bool:
    return record.target in pact.members or PROMISES in record.waivers


@attrs.define(kw_only=True, eq=False)
class Rescue:
    """Finds things out for the emergencies of one coordinator's term; changes nothing."""

    store: Store
    failovers: FailoverRepository
    lookout: Lookout
    clock: Clock

    async def check(self, record: Failover) -> str:
        """Return why an emergency must not go on at its first step, or nothing."""
        assessor = Assessor(store=self.store, failovers=self.failovers, clock=self.clock)
        situation = await assessor.situation(record.group, record.target, besides=record.id)
        if situation.authority.epoch != record.epoch_before:
            return f"group {record.group} is in epoch {situation.authority.epoch} by now"
        failed = rescue_preview(situation, waivers=record.waivers).failed
        return "; ".join(f"{check.name}: {check.detail}" for check in failed)

    async def fence_ended(self, record: Failover) -> FenceEnded | TimedOut | None:
        """Return how surely the source is fenced though it did not answer; None to wait on.

        Read after the seal was put: a holder that is missing then cannot come back, and no permit
        outlives it (`fencing/chain.py`), unless the group has a pact: nor can that be made then.
        """
        assert record.emergency is not None, "only an emergency fences by a seal"
        gets = (Get(Keys.holder(record.group)), Get(Keys.pact(record.group)))
        _, (holder, found) = await read_at_once(self.store, gets)
        pact = decode(Pact, found[0].value) if found else None
        if pact is not None and not _is_asked(record, pact):
            assert record.awaiting is not None, "the fence is awaited"
            detail = f"{pact.cluster} may go on without the promise of {record.target}"
            return TimedOut(revision=record.awaiting.revision, detail=detail)
        if pact is not None and not holder:
            return FenceEnded(
                fence=FenceStatus.UNKNOWN,
                detail=(
                    f"the proof of life of {record.source} has run out, which proves nothing here:"
                    f" {pact.cluster} goes on while every other member promises not to open"
                ),
            )
        if not holder:
            ended_ms = permit_ended_ms(
                self.lookout.sight(record.source, record.group),
                ended_ms=self.clock.now_ms(),
                now_ms=self.clock.now_ms(),
                wall_ms=self.clock.wall_ms(),
            )
            return FenceEnded(
                fence=FenceStatus.LEASE_EXPIRED,
                permit_ended_ms=ended_ms,
                detail=f"the proof of life of {record.source} has run out",
            )
        if record.emergency.no_fence_wait:
            return FenceEnded(
                fence=FenceStatus.UNKNOWN,
                detail=f"not waited for, as asked: {record.source} may still accept writes",
            )
        return None

    async def state(self, record: Failover) -> LossStated:
        """State what may be lost, now that the target is frozen."""
        assert record.emergency is not None, "only an emergency loses"
        mesh = await read_mesh(self.store)
        seen = mesh.authorities.get(record.group)
        if seen is None or seen.record.epoch != record.epoch_before:
            raise Conflict(f"the authority of group {record.group} has moved")
        return LossStated(
            statement=statement(
                mesh,
                seen.record,
                record.emergency,
                target=record.target,
                head=self.lookout.sight(record.source, record.group).head,
                targets_head=await self.head_before_freeze(
                    record.source, record.target, record.group
                ),
                cut=record.cut,
                now_ms=self.clock.wall_ms(),
            )
        )

    async def head_before_freeze(
        self, source: ClusterName, target: ClusterName, group: GroupName
    ) -> LogHead | None:
        """Return the source's head as it was when the target was asked to freeze, if that counts.

        A stream goes on without a frozen group: what the source says later of the target's lag is
        not true of the group. Nor is it where the copy was frozen or out of step before.
        """
        command = await self.store.get(Keys.command(target, group))
        if command is None or decode(Command, command.value).step is not CommandStep.FREEZE:
            return None
        read = partial(self.store.range, revision=command.mod_revision)
        try:
            heads = await read((Keys.head(source), b""))
            reports = await read((Keys.health(target), b""))
            if not heads.items or not reports.items:
                return None
            known = decode(ClusterHealth, reports.items[0].value).groups.get(group)
            is_told = known is not None and known.in_step
            return decode(LogHead, heads.items[0].value) if is_told else None
        except (Compacted, CorruptRecord) as error:
            _log.warning("head.unreadable", source=source, why=str(error))
            return None
