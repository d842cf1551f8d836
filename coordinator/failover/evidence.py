"""Gathers what is known of a source and of every copy, for `failover.loss` to judge."""

from __future__ import annotations

from coordinator.failover.loss import Evidence, FenceStatus, LossStatement, assess
from coordinator.failover.record import Emergency
from coordinator.governance.preflight import fresh_health
from coordinator.mesh import Mesh
from meshkit.model import Authority, Lineage
from meshkit.names import ClusterName
from meshkit.ordinals import Sequence
from meshkit.status import LogHead


def statement(
    mesh: Mesh,
    authority: Authority,
    emergency: Emergency,
    *,
    target: ClusterName,
    head: LogHead | None,
    targets_head: LogHead | None,
    cut: Sequence | None,
    now_ms: int,
) -> LossStatement:
    """Return what promoting `target` may lose, and what promoting each other member would.

    Until the target is frozen its own last report says where it stands. `targets_head` is the head
    that speaks of the target's copy; one that was made while that is frozen does not.
    """
    fence = emergency.fence or FenceStatus.UNKNOWN
    losses = {
        member: assess(
            Evidence(
                cluster=member,
                group=authority.group,
                stands_on=(
                    (emergency.stands_on if member == target else None)
                    or reported(mesh, authority, member, head, now_ms=now_ms)
                ),
                head=targets_head if member == target else head,
                cut=cut,
                contained_at_ms=emergency.contained_at_ms if member == target else None,
                permit_ended_ms=emergency.permit_ended_ms,
                source_lineage=emergency.source_lineage,
                source_began_ms=emergency.source_began_ms,
                never_opened=emergency.never_opened,
            ),
            fence=fence,
            epoch=authority.epoch,
        )
        for member in mesh.group(authority.group).members
        if member != authority.active
    }
    return LossStatement(
        source=authority.active,
        fence=fence,
        target=losses.pop(target),
        others=tuple(
            loss
            for member, loss in losses.items()
            if fresh_health(mesh.health.get(member), now_ms=now_ms) is not None
        ),
        stated_at_ms=now_ms,
    )


def reported(
    mesh: Mesh,
    authority: Authority,
    member: ClusterName,
    head: LogHead | None,
    *,
    now_ms: int,
) -> Lineage | None:
    """Return where a member stands by its own last report, or by its source's; None if unknown."""
    health = fresh_health(mesh.health.get(member), now_ms=now_ms)
    known = health.groups.get(authority.group) if health else None
    parent, epoch = authority.active, authority.epoch
    lineage = authority.lineage
    if known is not None and lineage is not None and known.epoch == lineage.parent_epoch:
        if lineage.parent == member:
            return lineage
        parent, epoch = lineage.parent, lineage.parent_epoch
    elif known is not None and known.epoch != epoch:
        return None
    if known is not None and not known.in_step and known.mode != "held":
        return None
    position = health.positions.get(parent) if health else None
    if position is not None:
        return Lineage(
            parent=parent,
            parent_incarnation=position.incarnation,
            parent_epoch=epoch,
            sequence=position.sequence,
            may_go_on=True,
        )
    seen = head.targets.get(member) if head and parent == authority.active else None
    last = seen.of(authority.group) if seen else None
    if head is None or last is None or last.applied is None:
        return None
    return Lineage(
        parent=parent,
        parent_incarnation=head.incarnation,
        parent_epoch=epoch,
        sequence=last.applied,
        may_go_on=True,
    )
