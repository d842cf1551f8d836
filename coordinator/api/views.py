"""What the API shows, as plain JSON data. `docs/api.md` is the contract. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from coordinator.api.emergency_views import emergency_view
from coordinator.api.keeping_views import keeping_view
from coordinator.api.stream_views import copy_view
from coordinator.api.suspension_views import suspension_view
from coordinator.failover import machine
from coordinator.failover.emergency import was_planned_first
from coordinator.failover.record import Failover, FailoverEvent, pause_ms
from coordinator.governance.audit import AuditEntry, hash_of
from coordinator.governance.check import Check
from coordinator.governance.lag import behind_of, group_lag
from coordinator.governance.preflight import Preview, fresh_health, fresh_stream
from coordinator.mesh import Mesh
from meshkit.codec import decode, to_plain
from meshkit.model import Group, derived_state
from meshkit.names import ClusterName
from meshkit.ordinals import Revision
from meshkit.pauses import AutomationPause, ReplicationPause
from meshkit.status import ClusterHealth
from meshkit.store.txn import KeyValue

Json = dict[str, Any]


def cluster_view(name: ClusterName, mesh: Mesh, *, now_ms: int) -> Json:
    """Return a cluster: what operators decided, and how it stands."""
    descriptor = mesh.cluster(name)
    authorities = [seen.record for seen in mesh.authorities.values()]
    state = derived_state(descriptor, authorities=authorities, sealed=mesh.sealed)
    return {
        **to_plain(descriptor),
        "state": state.value,
        "active_groups": sorted(a.group for a in authorities if a.active == name),
        "health": _health_view(mesh.health.get(name), now_ms=now_ms),
        "suspended": suspension_view(name, mesh, now_ms=now_ms),
    }


def _health_view(health: ClusterHealth | None, *, now_ms: int) -> Json | None:
    if health is None:
        return None
    names = (
        "replicator", "etcd_version", "revision", "raft_index", "db_size_bytes", "alarms",
        "certificate_not_after_ms", "foreign_writes", "problems", "at_ms",
    )  # fmt: skip
    plain = to_plain(health)
    return {
        **{name: plain[name] for name in names},
        "age_ms": max(0, now_ms - health.at_ms),
        "fresh": fresh_health(health, now_ms=now_ms) is not None,
    }


def group_summary(group: Group, mesh: Mesh, running: Failover | None) -> Json:
    """Return a group in one line."""
    seen = mesh.authorities.get(group.name)
    problem = "" if seen else "waits for the leading coordinator to open its first epoch"
    if running is not None and running.problem is not None:
        problem = running.problem.happened
    brief = None
    if running is not None:
        brief = {"id": running.id, "phase": running.phase.value}
        brief["step"] = machine.step_in_hand(running).name
    return {
        "group": group.name,
        "active": seen.record.active if seen else None,
        "epoch": seen.record.epoch if seen else None,
        "members": list(group.members),
        "prefixes": list(group.prefixes),
        "failover": brief,
        "problem": problem,
    }


def group_view(
    group: Group,
    mesh: Mesh,
    *,
    running: Failover | None,
    last: Json | None,
    previews: Mapping[ClusterName, Preview],
    now_ms: int,
) -> Json:
    """Return a group on one screen."""
    authority = seen.record if (seen := mesh.authorities.get(group.name)) else None
    return {
        **group_summary(group, mesh, running),
        "token": str(authority.token) if authority else None,
        "sealed": group.name in mesh.sealed,
        "policy": to_plain(group.policy),
        "lineage": to_plain(authority.lineage) if authority and authority.lineage else None,
        "clusters": [
            _member_view(group, member, mesh, previews.get(member), now_ms=now_ms)
            for member in group.members
        ],
        "last_failover": last,
        "automation": automation_view(mesh.automation),
        "on_coordination_loss": keeping_view(group, mesh, now_ms=now_ms),
    }


def _member_view(
    group: Group, member: ClusterName, mesh: Mesh, preview: Preview | None, *, now_ms: int
) -> Json:
    seen = mesh.authorities.get(group.name)
    active = seen.record.active if seen else None
    health = fresh_health(mesh.health.get(member), now_ms=now_ms)
    known = health.groups.get(group.name) if health else None
    descriptor = mesh.clusters.get(member)
    is_active = member == active
    copy = None if is_active or not active else _copied(group, active, member, mesh, now_ms=now_ms)
    return {
        "cluster": member,
        "active": is_active,
        "intent": descriptor.record.intent.value if descriptor else None,
        "fence": known.mode if known else "unknown",
        "fence_epoch": known.epoch if known else None,
        "permit": known.permit if known else None,
        "quarantined": dict(known.quarantined) if known else None,
        "in_step": known.in_step if known else None,
        **(copy or dict.fromkeys(_COPIED)),
        "status_age_ms": max(0, now_ms - health.at_ms) if health else None,
        "problem": _member_problem(member, mesh, known.problem if known else None, health),
        "if_promoted": None if preview is None else _if_promoted(preview),
    }


_COPIED = ("lag_ms", "lag_error_ms", "records", "stream", "out_of_step", "copy")


def _copied(
    group: Group, source: ClusterName, target: ClusterName, mesh: Mesh, *, now_ms: int
) -> Json:
    """Return how far the copy of this group is behind, whatever else its stream carries."""
    stream = fresh_stream(mesh.streams.get((source, target)), now_ms=now_ms)
    health = fresh_health(mesh.health.get(target), now_ms=now_ms)
    lag, behind = group_lag(stream, health, group.name), behind_of(stream, group.name)
    copies = stream.copies if stream else ()
    return {
        "lag_ms": lag.lag_ms,
        "lag_error_ms": lag.error_bound_ms,
        "records": lag.records if behind else None,
        "stream": lag.state.value,
        "out_of_step": behind.why if behind else None,
        "copy": next((copy_view(copy) for copy in copies if copy.group == group.name), None),
    }


def _member_problem(
    member: ClusterName, mesh: Mesh, problem: str | None, health: ClusterHealth | None
) -> str:
    if health is None:
        known = mesh.health.get(member)
        return "its last report is too old" if known else "no replicator of it leads"
    return "it does not report about the group" if problem is None else problem


def _if_promoted(preview: Preview) -> Json:
    return {
        "pause_ms": preview.pause_ms_predicted,
        "loss": "none",
        "blockers": [check.name for check in preview.failed],
    }


# --- pauses -----------------------------------------------------------------------------------


def automation_view(pause: AutomationPause | None) -> Json:
    """Return whether automation is paused, and by whom."""
    known: Mapping[str, Any] = to_plain(pause) if pause else {}
    return {
        "paused": pause is not None,
        "by": known.get("by"),
        "reason": known.get("reason", ""),
        "since_ms": known.get("since_ms"),
    }


def pause_view(pause: ReplicationPause) -> Json:
    """Return what of replication stands still, and by whose will."""
    return {**to_plain(pause), "what": pause.what}


# --- failovers ----------------------------------------------------------------------------------


def failover_view(record: Failover, revision: Revision) -> Json:
    """Return a failover with every step of its plan."""
    plan = machine.plan_of(record)
    return {
        "id": record.id,
        "group": record.group,
        "kind": record.kind.value,
        "plan": record.plan,
        "source": record.source,
        "target": record.target,
        "epoch_before": record.epoch_before,
        "epoch_after": record.epoch_after,
        "authority_moved": record.authority_moved,
        "phase": record.phase.value,
        "step": machine.step_in_hand(record).name,
        "step_number": record.cursor + 1,
        "steps_total": len(plan.steps),
        "undoing": record.undoing,
        "attempt": record.attempt,
        "requested_by": record.requested_by,
        "reason": record.reason,
        "change_ticket": record.change_ticket,
        "request_id": record.request_id,
        "waivers": list(record.waivers),
        "cut": record.cut,
        "cut_incarnation": record.cut_incarnation,
        "cut_prefixes": list(record.cut_prefixes),
        "watermark": record.watermark,
        "opened": record.opened,
        "began_ms": record.began_ms,
        "ended_ms": record.ended_ms,
        "pause_ms": pause_ms(record),
        "revision": revision,
        "exit_code": record.phase.exit_code,
        "problem": attrs.asdict(record.problem) if record.problem else None,
        "emergency": emergency_view(record),
        "planned_first": was_planned_first(record),
        "steps": _steps_view(record, plan.step_names),
    }


def _steps_view(record: Failover, names: tuple[str, ...]) -> list[Json]:
    """Return each step of the plan as its newest attempt stands, then the undone ones."""
    newest = {step.step: step for step in record.history}
    undone = [name for name in newest if name not in names]
    views: list[Json] = []
    for name in (*names, *undone):
        step = newest.get(name)
        views.append(
            {
                "step": name,
                "status": step.status.value if step else "pending",
                "detail": step.detail if step else "",
                "started_ms": step.started_ms if step else None,
                "ended_ms": step.ended_ms if step else None,
            }
        )
    return views


def event_view(event: FailoverEvent, revision: Revision) -> Json:
    """Return one stored transition."""
    record = event.record
    return {
        "number": event.number,
        "at_ms": event.at_ms,
        "phase": record.phase.value,
        "step": machine.step_in_hand(record).name,
        "what": event.what,
        "failover": failover_view(record, revision),
    }


def end_view(record: Failover) -> Json:
    """Return how a failover ended."""
    return {"phase": record.phase.value, "exit_code": record.phase.exit_code}


def check_view(check: Check) -> Json:
    """Return one check."""
    return {
        "name": check.name,
        "ok": check.ok,
        "detail": check.detail,
        "waivable": check.waivable,
        "waived": check.waived,
        "level": check.level.value,
    }


def preview_view(preview: Preview) -> Json:
    """Return what would happen; the caller adds who and where."""
    return {
        "lag_ms": preview.lag_ms,
        "lag_error_ms": preview.lag_error_ms,
        "stream": preview.stream,
        "pause_ms_predicted": preview.pause_ms_predicted,
        "pause_budget_ms": preview.pause_budget_ms,
        "steps": list(preview.steps),
        "checks": [check_view(check) for check in preview.checks],
        "refused": bool(preview.failed),
    }


def audit_view(item: KeyValue) -> Json:
    """Return one audit entry with the hash by which its successor names it."""
    entry = decode(AuditEntry, item.value)
    return {**to_plain(entry), "hash": hash_of(item.value)}
