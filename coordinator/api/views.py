"""What the API shows, as plain JSON data. `docs/api.md` is the contract. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from coordinator.api.emergency_views import emergency_view
from coordinator.api.suspension_views import suspension_view
from coordinator.failover import machine
from coordinator.failover.emergency import was_planned_first
from coordinator.failover.record import Failover, FailoverEvent, pause_ms
from coordinator.governance.audit import AuditEntry, hash_of
from coordinator.governance.check import Check
from coordinator.governance.preflight import Preview, fresh_health, fresh_stream
from coordinator.mesh import Mesh
from meshkit.codec import decode, to_plain
from meshkit.model import Group, derived_state
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision
from meshkit.pauses import AutomationPause, ReplicationPause
from meshkit.status import ClusterHealth, CopyProgress, StreamState, StreamStatus
from meshkit.store.txn import KeyValue
from meshkit.verification import VerifyResult

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
        step = machine.step_in_hand(running).name
        brief = {"id": running.id, "phase": running.phase.value, "step": step}
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
    seen = mesh.authorities.get(group.name)
    authority = seen.record if seen else None
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
    }


def _member_view(
    group: Group, member: ClusterName, mesh: Mesh, preview: Preview | None, *, now_ms: int
) -> Json:
    seen = mesh.authorities.get(group.name)
    active = seen.record.active if seen else None
    health = fresh_health(mesh.health.get(member), now_ms=now_ms)
    known = health.groups.get(group.name) if health else None
    descriptor = mesh.clusters.get(member)
    stream = stream_view(active, member, mesh, now_ms=now_ms) if active else None
    is_active = member == active
    return {
        "cluster": member,
        "active": is_active,
        "intent": descriptor.record.intent.value if descriptor else None,
        "fence": known.mode if known else "unknown",
        "fence_epoch": known.epoch if known else None,
        "permit": known.permit if known else None,
        "quarantined": dict(known.quarantined) if known else None,
        "in_step": known.in_step if known else None,
        "lag_ms": None if is_active or not stream else stream["lag_ms"],
        "lag_error_ms": None if is_active or not stream else stream["lag_error_ms"],
        "stream": None if is_active or not stream else stream["state"],
        "copy": None if is_active or not stream else _copy_of(group, stream),
        "status_age_ms": max(0, now_ms - health.at_ms) if health else None,
        "problem": _member_problem(member, mesh, known.problem if known else None, health),
        "if_promoted": None if preview is None else _if_promoted(preview),
    }


def _copy_of(group: Group, stream: Json) -> Json | None:
    return next((copy for copy in stream["copies"] if copy["group"] == group.name), None)


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


def stream_view(
    source: ClusterName,
    target: ClusterName,
    mesh: Mesh,
    *,
    now_ms: int,
    groups: Sequence[GroupName] = (),
) -> Json:
    """Return one stream; what is absent or stale is unknown, and says so."""
    status = mesh.streams.get((source, target))
    fresh = fresh_stream(status, now_ms=now_ms)
    problem = "" if fresh else f"{source} does not report it"
    if status is not None and fresh is None:
        problem = f"the last report of {source} is too old"
    known = _known_stream(fresh) if fresh else dict.fromkeys(_STREAM_NUMBERS)
    return {
        "source": source,
        "target": target,
        "groups": sorted(groups),
        "epochs": {
            group: mesh.authorities[group].record.epoch
            for group in sorted(groups)
            if group in mesh.authorities
        },
        **known,
        "state": fresh.lag.state.value if fresh else StreamState.UNKNOWN.value,
        "groups_out_of_step": list(fresh.groups_out_of_step) if fresh else [],
        "copies": [copy_view(copy) for copy in fresh.copies] if fresh else [],
        "status_age_ms": max(0, now_ms - status.at_ms) if status else None,
        "fresh": fresh is not None,
        "problem": problem or (fresh.problem if fresh else ""),
        "last_verify": [
            result_view(mesh.verified[target, group])
            for group in sorted(groups)
            if (target, group) in mesh.verified
        ],
    }


def copy_view(copy: CopyProgress) -> Json:
    """Return how far the copy of one group is."""
    return {**to_plain(copy), "bytes_total": copy.bytes_total}


_STREAM_NUMBERS = (
    "lag_ms", "lag_error_ms", "records", "bytes", "head", "applied", "records_per_second",
    "headroom_ms", "is_spooled",
)  # fmt: skip


def _known_stream(status: StreamStatus) -> Json:
    return {
        "lag_ms": status.lag.lag_ms,
        "lag_error_ms": status.lag.error_bound_ms,
        "records": status.lag.records,
        "bytes": status.lag.bytes,
        "head": status.head,
        "applied": status.applied,
        "records_per_second": status.records_per_second,
        "headroom_ms": status.headroom_ms,
        "is_spooled": status.is_spooled,
    }


def streams_view(mesh: Mesh, *, group: GroupName | None, now_ms: int) -> list[Json]:
    """Return every stream in which the target should follow, with the groups it follows."""
    wanted: dict[tuple[ClusterName, ClusterName], list[GroupName]] = {}
    for name, seen in mesh.authorities.items():
        described = mesh.groups.get(name)
        if described is None or (group is not None and name != group):
            continue
        for member in described.record.members:
            if member != seen.record.active:
                wanted.setdefault((seen.record.active, member), []).append(name)
    return [
        stream_view(source, target, mesh, now_ms=now_ms, groups=groups)
        for (source, target), groups in sorted(wanted.items())
    ]


def result_view(result: VerifyResult) -> Json:
    """Return what came of comparing one copy."""
    return {**to_plain(result), "differing": result.counts.differing}


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
