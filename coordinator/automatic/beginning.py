"""The automatic failover as it begins: its record, what is compared, what is written. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs

from coordinator.automatic.facts import Known
from coordinator.automatic.judging import bound_of
from coordinator.automatic.record import AutomaticRecord, Reason, Withheld
from coordinator.failover.plan import EMERGENCY_1
from coordinator.failover.record import Emergency, Failover, FailoverKind
from coordinator.failover.transition import Beside
from coordinator.governance.audit import Act
from coordinator.mesh import Mesh
from meshkit.codec import encode, to_plain
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Revision
from meshkit.store.txn import ModRevisionIs, Put, absent

AUTOMATION = "coordinator"
"""Who acts, where nobody did."""


def failover_id_of(group: GroupName, epoch: int, known_at: Revision) -> FailoverId:
    """Return the id of the one automatic failover that may follow what is known."""
    name = f"{group}\0automatic\0{epoch}\0{known_at}"
    return FailoverId(f"f-{hashlib.sha256(name.encode()).hexdigest()[:16]}")


def record_of(mesh: Mesh, known: Known, target: ClusterName, *, gone_ms: int) -> Failover:
    """Return the record of an automatic failover; its consent is the policy's bound."""
    group = mesh.groups[known.group].record
    seen = mesh.authorities[known.group]
    authority = seen.record
    return Failover(
        id=failover_id_of(known.group, authority.epoch, known.record_revision),
        group=known.group,
        kind=FailoverKind.EMERGENCY,
        plan=EMERGENCY_1.name,
        source=authority.active,
        target=target,
        epoch_before=authority.epoch,
        incarnation=mesh.incarnation.number,
        authority_revision=seen.revision,
        source_token=authority.token,
        policy=group.policy,
        requested_by=AUTOMATION,
        reason=f"automatic: {authority.active} has shown no proof of life for {gone_ms} ms",
        expect_epoch=authority.epoch,
        emergency=Emergency(
            accept=bound_of(group.policy),
            accepted_by="the group's policy",
            automatic=True,
            source_lineage=authority.lineage,
        ),
    )


def beside(mesh: Mesh, known: Known, record: Failover) -> Beside:
    """Return what the beginning compares beside the failover itself, and what it writes.

    The group's audit moves with each failover, rejoin and change of the group, so its tip stands
    for all of them.
    """
    group, source, target = record.group, record.source, record.target
    after = attrs.evolve(
        known.record,
        failover=record.id,
        source=source,
        target=target,
        began_ms=record.began_ms,
        acknowledged_by="",
        acknowledged_ms=None,
        acknowledged_reason="",
        withheld=None,
        incarnation=record.incarnation,
    )
    guards = (
        absent(Keys.automation_pause),
        absent(Keys.holder(group)),
        absent(Keys.health(source)),
        absent(Keys.suspension(source)),
        absent(Keys.suspension(target)),
        ModRevisionIs(Keys.automatic(group), known.record_revision),
        ModRevisionIs(Keys.group(group), mesh.groups[group].revision),
        ModRevisionIs(Keys.cluster(source), mesh.clusters[source].revision),
        ModRevisionIs(Keys.cluster(target), mesh.clusters[target].revision),
        ModRevisionIs(Keys.audit_tip(group), known.tip.revision),
    )
    return Beside(guards=guards, operations=(Put(Keys.automatic(group), encode(after)),))


def began(record: Failover, *, gone_ms: int) -> Act:
    """Return what the audit says of its beginning."""
    facts: dict[str, Any] = {
        "failover": record.id,
        "kind": record.kind.value,
        "source": record.source,
        "target": record.target,
        "epoch": record.epoch_before,
        "reason": record.reason,
        "gone_ms": gone_ms,
        "allowed": to_plain(bound_of(record.policy)),
    }
    return Act(actor=AUTOMATION, action="automatic.began", facts=facts)


def withholding(
    known: Known, mesh: Mesh, reasons: tuple[Reason, ...], *, now_ms: int
) -> tuple[AutomaticRecord, Act] | None:
    """Return what to store about a failover that is due but withheld; None if it is stored."""
    authority = mesh.authorities[known.group].record
    after = Withheld(
        epoch=authority.epoch, source=authority.active, reasons=reasons, since_ms=now_ms
    )
    before = known.record.withheld
    if before is not None and (before.epoch, before.about) == (after.epoch, after.about):
        return None
    facts = {
        "source": authority.active,
        "epoch": authority.epoch,
        "reasons": [reason.obstacle.value for reason in reasons],
        "details": [reason.detail for reason in reasons],
    }
    act = Act(actor=AUTOMATION, action="automatic.withheld", facts=facts)
    return attrs.evolve(known.record, withheld=after), act


def clearing(known: Known, why: str) -> tuple[AutomaticRecord, Act]:
    """Return what to store when nothing is due any more that was withheld."""
    act = Act(actor=AUTOMATION, action="automatic.cleared", facts={"why": why})
    return attrs.evolve(known.record, withheld=None), act
