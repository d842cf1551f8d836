"""The parts of beginning a failover that only compute. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs

from coordinator import comparison
from coordinator.api import views
from coordinator.api.bodies import FailoverRequest
from coordinator.failover import machine
from coordinator.failover.passing import Known, begun_checked
from coordinator.failover.plan import PLANNED_1
from coordinator.failover.record import Failover, FailoverKind
from coordinator.failover.transition import Beside
from coordinator.governance.audit import Act
from coordinator.governance.preflight import Preview, Situation, how_close
from coordinator.mesh import Mesh, Seen
from meshkit.errors import Conflict, InvalidInput, Refused
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.store.txn import Exists

Json = dict[str, Any]


def failover_id_of(group: GroupName, request_id: str) -> FailoverId:
    """Return the id that a request always leads to, so that repeating it is harmless."""
    name = f"{group}\0{request_id}"
    return FailoverId(f"f-{hashlib.sha256(name.encode()).hexdigest()[:16]}")


def target(group: GroupName, request: FailoverRequest, authority: Authority | None) -> ClusterName:
    """Return the cluster to promote: the one named, or for a failback the one before.

    Raises:
        InvalidInput: none is named.
        Refused: there was none before.
    """
    if request.target is not None:
        return request.target
    if request.kind is not FailoverKind.FAILBACK:
        raise InvalidInput("target: which cluster is to become active?")
    lineage = authority.lineage if authority else None
    if authority is None or lineage is None or lineage.parent == authority.active:
        raise Refused(
            f"group {group} was never active anywhere else: there is nothing to fail back to",
            hint="name a cluster: mesh clusters promote CLUSTER",
        )
    return lineage.parent


def check_epoch(group: GroupName, request: FailoverRequest, authority: Authority) -> None:
    """Demand that the caller was shown the epoch that is.

    Raises:
        Conflict: it is another one by now.
    """
    if request.expect_epoch not in {None, authority.epoch}:
        raise Conflict(
            f"group {group} is in epoch {authority.epoch} (active: {authority.active}),"
            f" not in epoch {request.expect_epoch} as you expected",
            hint=f"look again: mesh groups show {group}",
        )


def nothing_to_do(group: GroupName, authority: Authority) -> Json:
    """Say that the target is active already."""
    message = f"{authority.active} is already active for {group} (epoch {authority.epoch})"
    return {
        "changed": False,
        "failover": None,
        "message": message,
        "epoch": authority.epoch,
        "active": authority.active,
    }


def previewed(
    group: GroupName, request: FailoverRequest, situation: Situation, judged: Preview
) -> Json:
    """Say what would happen."""
    epoch = situation.authority.epoch
    shown = {
        "group": group,
        "kind": request.kind.value,
        "source": situation.source.name,
        "target": situation.target.name,
        "epoch": epoch,
        "epoch_after": epoch + 1,
        **views.preview_view(judged),
    }
    return {"changed": False, "dry_run": True, "preview": shown}


def record(
    failover: FailoverId,
    request: FailoverRequest,
    situation: Situation,
    *,
    authority: Seen[Authority],
    mesh: Mesh,
    requested_by: str,
) -> Failover:
    """Return the record of a new failover."""
    return Failover(
        id=failover,
        group=situation.group.name,
        kind=request.kind,
        plan=PLANNED_1.name,
        source=situation.source.name,
        target=situation.target.name,
        epoch_before=authority.record.epoch,
        incarnation=mesh.incarnation.number,
        authority_revision=authority.revision,
        source_token=authority.record.token,
        policy=situation.group.policy,
        requested_by=requested_by,
        reason=request.reason,
        change_ticket=request.change,
        request_id=request.request_id,
        expect_epoch=request.expect_epoch,
        waivers=request.waive,
    )


@attrs.frozen(kw_only=True)
class Begun:
    """A record to be stored first, what is said of it, and on what else that depends."""

    record: Failover
    what: str = "began"
    beside: Beside | None = None


def begun(record: Failover, checked: Situation | None, *, now_ms: int) -> Begun:
    """Return how a failover begins.

    What was `checked` this moment is not checked again, and what comes after it may begin at once:
    perhaps the pause. That only while a coordinator leads, since nobody else would end it.
    """
    if checked is None:
        return Begun(record=machine.begin(record, now_ms=now_ms))
    verdict = comparison.judge(record, checked.copy, now_ms=checked.now_ms)
    equal = verdict.detail if isinstance(verdict, comparison.Satisfied) else ""
    known = Known(equal=equal, close=how_close(checked))
    first, passed = begun_checked(record, known, now_ms=now_ms)
    led = Beside(guards=(Exists(Keys.coordinator_leader),), operations=())
    return Begun(record=first, what=", ".join(("began", *passed)), beside=led)


def began(begun: Failover, *, actor: str) -> Act:
    """Return what the audit says of its beginning."""
    facts = {
        "failover": begun.id,
        "kind": begun.kind.value,
        "source": begun.source,
        "target": begun.target,
        "epoch": begun.epoch_before,
        "reason": begun.reason,
        "change": begun.change_ticket,
        "waived": list(begun.waivers),
    }
    return Act(actor=actor, action="failover.began", facts=facts)
