"""Beginning an emergency: alone, in place of a failover that is stuck, or after a planned one."""

from __future__ import annotations

from typing import Any

import attrs

from coordinator.api import beginning, views
from coordinator.api.bodies import FailoverRequest
from coordinator.api.emergency_views import loss_view
from coordinator.failover import machine
from coordinator.failover.evidence import statement
from coordinator.failover.loss import FenceStatus, LossStatement
from coordinator.failover.plan import EMERGENCY_1, PLANNED_1
from coordinator.failover.record import Emergency, Failover, FailoverKind
from coordinator.failover.repository import FailoverRunning, Loaded, Superseding
from coordinator.governance.preflight import Preview, Situation, preview
from coordinator.governance.rescue_checks import rescue_preview
from coordinator.lookout import Sight, permit_ended_ms
from coordinator.mesh import Mesh
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.status import LogHead
from meshkit.store.port import Store

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class Rescuing:
    """What the API does about emergencies beyond what it does about every failover."""

    store: Store
    clock: Clock

    async def foreseen(
        self, mesh: Mesh, situation: Situation, request: FailoverRequest
    ) -> LossStatement:
        """Return what an emergency would lose if the source stopped now; stored nowhere."""
        group, source = situation.group.name, situation.source.name
        head_item = await self.store.get(Keys.head(source))
        holder = await self.store.get(Keys.holder(group))
        head = decode(LogHead, head_item.value) if head_item else None
        fence = FenceStatus.LEASE_EXPIRED
        if group in mesh.pacts or (request.no_fence_wait and holder is not None):
            fence = FenceStatus.UNKNOWN
        now_ms = self.clock.now_ms()
        ended_ms = permit_ended_ms(
            Sight(head=head), ended_ms=now_ms, now_ms=now_ms, wall_ms=self.clock.wall_ms()
        )
        emergency = attrs.evolve(asked(request, situation), fence=fence, permit_ended_ms=ended_ms)
        return statement(
            mesh,
            situation.authority,
            emergency,
            target=situation.target.name,
            head=head,
            targets_head=head,
            cut=None,
            now_ms=self.clock.wall_ms(),
        )

    def superseding(self, running: Loaded | None, new: Failover) -> Superseding | None:
        """Return the end of the failover that runs, in whose place the emergency goes on.

        Raises:
            FailoverRunning: it is an emergency to the same cluster that is not stuck.
        """
        if running is None:
            return None
        record = running.record
        is_same = record.plan == EMERGENCY_1.name and record.target == new.target
        if is_same and not record.authority_moved:
            raise FailoverRunning(record.group, record.id)
        event = machine.Superseded(by=new.id)
        ended = machine.advance(record, event, now_ms=self.clock.wall_ms())
        return Superseding(before=running, ended=ended)


def asked(
    request: FailoverRequest,
    situation: Situation,
    *,
    running: Failover | None = None,
    seal_revision: Revision = ABSENT,
) -> Emergency:
    """Return what an emergency starts from."""
    authority = situation.authority
    began_ms = None
    if running is not None and running.authority_moved:
        began_ms = next((s.ended_ms for s in running.history if s.step == "pivot"), None)
    return Emergency(
        no_fence_wait=request.no_fence_wait,
        accept=request.accept_loss,
        source_lineage=authority.lineage,
        source_began_ms=began_ms,
        supersedes=running.id if running else None,
        seal_revision=seal_revision,
    )


def with_emergency(
    record: Failover,
    request: FailoverRequest,
    situation: Situation,
    *,
    running: Failover | None,
    seal_revision: Revision = ABSENT,
) -> Failover:
    """Return the record of a failover that is an emergency from its beginning.

    `seal_revision` is of the seal that stands, read after `running`: if that goes on meanwhile and
    releases it, the new failover does not begin.
    """
    emergency = asked(request, situation, running=running, seal_revision=seal_revision)
    moved = attrs.evolve(record, plan=EMERGENCY_1.name, kind=FailoverKind.EMERGENCY)
    if running is not None and _is_cut(running, record):
        # The source was drained and never told to go on: its cut stays where it is.
        moved = attrs.evolve(
            moved,
            cut=running.cut,
            cut_incarnation=running.cut_incarnation,
            cut_prefixes=running.cut_prefixes,
        )
    return attrs.evolve(moved, emergency=emergency)


def _is_cut(running: Failover, record: Failover) -> bool:
    is_same_epoch = (running.source, running.epoch_before) == (record.source, record.epoch_before)
    return is_same_epoch and not running.undoing and running.cut is not None


def planned_first(
    record: Failover, request: FailoverRequest, situation: Situation, judged: Preview
) -> Failover:
    """Return the record of a planned failover that may go on as an emergency; or of that at once.

    At once if a planned one cannot even begin.
    """
    if judged.failed:
        why = "; ".join(f"{check.name}: {check.detail}" for check in judged.failed)
        emergency = with_emergency(record, request, situation, running=None)
        told = f"a planned failover cannot begin: {why}"
        assert emergency.emergency is not None, "just made"
        return attrs.evolve(
            emergency, emergency=attrs.evolve(emergency.emergency, after_planned=told)
        )
    return attrs.evolve(
        record,
        plan=PLANNED_1.name,
        kind=FailoverKind.PROMOTE,
        fallback=asked(request, situation),
    )


def previewed(
    group: GroupName, request: FailoverRequest, situation: Situation, foreseen: LossStatement
) -> Json:
    """Say what an emergency would do, and what it may lose; and what would be tried before it."""
    judged = rescue_preview(situation, waivers=request.waive)
    body = beginning.previewed(group, request, situation, judged)
    shown = body["preview"]
    shown["loss"] = loss_view(foreseen, request.accept_loss)
    shown["no_fence_wait"] = request.no_fence_wait
    shown["supersedes"] = situation.running
    shown["planned"] = None
    if request.planned_first and situation.running is None:
        planned = preview(situation, waivers=request.waive)
        shown["planned"] = views.preview_view(planned)
        shown["refused"] = bool(planned.failed) and bool(judged.failed)
    return body
