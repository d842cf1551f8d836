"""What is known of one group, put together for `judging`. Pure."""

from __future__ import annotations

import attrs

from coordinator.automatic.candidates import Around, candidates, coordination_problem
from coordinator.automatic.judging import Facts
from coordinator.automatic.record import AutomaticRecord
from coordinator.failover.record import Failover
from coordinator.governance.audit import Tip
from meshkit.names import FailoverId, GroupName
from meshkit.ordinals import Revision


@attrs.frozen(kw_only=True)
class Known:
    """What the coordination etcd has about one group, read at one revision."""

    group: GroupName
    record: AutomaticRecord
    record_revision: Revision
    running: FailoverId | None
    latest: Failover | None
    """The failover whose record was changed last."""
    holder: bool
    tip: Tip
    """Of the audit: it moves with every failover, rejoin and change of the group."""


@attrs.frozen(kw_only=True)
class Seen:
    """What was seen of the active cluster's proof of life."""

    is_missing: bool
    gone_ms: int = 0
    suspected_ms: int = 0
    why_anew: str = ""


def facts_of(known: Known, around: Around, seen: Seen) -> Facts:
    """Return everything that the decision about a group goes by."""
    mesh = around.mesh
    group, authority = mesh.groups[known.group].record, mesh.authorities[known.group].record
    source = mesh.clusters.get(authority.active)
    latest = known.latest
    has_ended = latest is not None and latest.ended_ms is not None
    return Facts(
        group=group,
        authority=authority,
        now_ms=around.now_ms,
        is_missing=seen.is_missing,
        gone_ms=seen.gone_ms,
        suspected_ms=seen.suspected_ms,
        why_anew=seen.why_anew,
        source=source.record if source else None,
        source_reports=authority.active in mesh.health,
        source_suspended=authority.active in mesh.suspensions,
        automation=mesh.automation,
        is_sealed=group.name in mesh.sealed,
        running=known.running,
        last=known.record,
        incarnation=mesh.incarnation.number,
        ended=latest.id if latest and has_ended else None,
        ended_ms=latest.ended_ms if latest and has_ended else None,
        coordination=coordination_problem(mesh, around.coordination),
        candidates=candidates(group, authority, around),
    )
