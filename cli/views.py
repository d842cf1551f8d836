"""What the API's documents look like as tables: one function for each (docs/api.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from cli.automatic_views import automatic_fields, keeping_fields
from cli.group_words import last_failover
from cli.rejoin_views import quarantined_fields
from cli.render import (
    fields,
    shown,
    shown_bytes,
    shown_lag,
    shown_ms,
    shown_time,
    table,
    took_ms,
    word,
)
from cli.stream_views import copied


def clusters_table(clusters: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh clusters list`."""
    return table(
        ("CLUSTER", "REGION", "STATE", "ACTIVE FOR", ">PRIORITY", "REPLICATOR", "ETCD", "PROBLEM"),
        (
            (
                c["name"],
                c.get("region"),
                word(c.get("state")),
                c.get("active_groups"),
                c.get("priority"),
                (c.get("health") or {}).get("replicator") or word("unknown"),
                (c.get("health") or {}).get("etcd_version"),
                _cluster_problem(c),
            )
            for c in clusters
        ),
    )


def _cluster_problem(cluster: Mapping[str, Any]) -> str:
    suspended = cluster.get("suspended")
    if suspended:
        return f"suspended: {suspended['reason']}. {suspended['next']}"
    health = cluster.get("health")
    if not health:
        return "no replicator reports from here"
    if not health.get("fresh", True):
        return f"last heard of {shown_ms(health.get('age_ms'))} ago"
    return "; ".join([*health.get("problems", ()), *health.get("alarms", ())])


def cluster_view(cluster: Mapping[str, Any]) -> RenderableType:
    """Return `mesh clusters show`."""
    health = cluster.get("health") or {}
    return fields(
        {
            "Cluster": cluster["name"],
            "Region": cluster.get("region"),
            "State": word(cluster.get("state")),
            "Intent": cluster.get("intent"),
            "Active for": cluster.get("active_groups"),
            "Priority": cluster.get("priority"),
            "Failover policy": cluster.get("failover_policy"),
            "etcd endpoints": cluster.get("etcd_endpoints"),
            "Replication endpoints": cluster.get("replication_endpoints"),
            "Owners": cluster.get("owners"),
            "Change ticket": cluster.get("change_ticket"),
            "Leading replicator": health.get("replicator"),
            "etcd version": health.get("etcd_version"),
            "etcd revision": health.get("revision"),
            "Database": shown_bytes(health.get("db_size_bytes")),
            "Foreign writes": health.get("foreign_writes"),
            "Certificates until": shown_time(health.get("certificate_not_after_ms")),
            "Heard of": f"{shown_ms(health.get('age_ms'))} ago" if health else None,
            "Problem": _cluster_problem(cluster),
        }
    )


def groups_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh groups list`."""
    return table(
        ("GROUP", "ACTIVE", ">EPOCH", "PREFIXES", "MEMBERS", "FAILOVER", "PROBLEM"),
        (
            (
                g["group"],
                g.get("active"),
                g.get("epoch"),
                g.get("prefixes"),
                g.get("members"),
                _running(g.get("failover")),
                g.get("problem"),
            )
            for g in groups
        ),
    )


def _running(failover: Mapping[str, Any] | None) -> str:
    if not failover:
        return ""
    return f"{failover['id']} {failover['phase']} at {failover['step']}"


def topology(group: Mapping[str, Any]) -> Table:
    """Return who holds a group: one line for each member."""
    return table(
        ("CLUSTER", "ROLE", "FENCE", ">EPOCH", "PERMIT", "IN STEP", "STREAM", ">LAG", "PROBLEM"),
        (
            (
                c["cluster"],
                word("active" if c.get("active") else "passive"),
                word(c.get("fence")),
                c.get("fence_epoch"),
                c.get("permit"),
                _in_step(c),
                word(c["stream"]) if c.get("stream") else None,
                None if c.get("active") else shown_lag(c.get("lag_ms"), c.get("lag_error_ms")),
                c.get("problem"),
            )
            for c in group["clusters"]
        ),
    )


def _in_step(member: Mapping[str, Any]) -> Any:
    why = copied(member["copy"]) if member.get("copy") else member.get("out_of_step")
    return f"no: {why}" if why else member.get("in_step")


def group_view(group: Mapping[str, Any]) -> RenderableType:
    """Return `mesh groups show`: who writes, the fences, and what a promotion now would mean."""
    head = fields(
        {
            "Group": group["group"],
            "Writes go to": f"{shown(group.get('active'))} (epoch {shown(group.get('epoch'))},"
            f" token {shown(group.get('token'))})",
            "Prefixes": group.get("prefixes"),
            "Sealed": group.get("sealed"),
            "Failover": _running(group.get("failover")) or "none running",
            "Last failover": last_failover(group.get("last_failover")),
            **quarantined_fields(group),
            **automatic_fields(group),
            **keeping_fields(group),
            "Problem": group.get("problem"),
        }
    )
    promoted = table(
        ("IF PROMOTED NOW", ">PAUSE", "LOSS", "BLOCKERS"),
        (
            (
                c["cluster"],
                shown_ms((c.get("if_promoted") or {}).get("pause_ms")),
                (c.get("if_promoted") or {}).get("loss"),
                (c.get("if_promoted") or {}).get("blockers") or "none",
            )
            for c in group["clusters"]
            if not c.get("active")
        ),
    )
    return Group(head, "", topology(group), "", promoted)


def verify_table(verifications: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh replication verify`: what was compared, and what differs."""
    results = [(v, v.get("result") or {}) for v in verifications]
    return table(
        (
            *("TARGET", "SOURCE", "OUTCOME", ">SOURCE REV", ">TARGET REV", ">KEYS", ">DIFFERING"),
            *(">ONLY SOURCE", ">ONLY TARGET", ">DIFFERENT", ">TOOK", "KEYS LISTED AT", "WHY"),
        ),
        (
            (
                v["target"],
                result.get("source"),
                word(result.get("outcome") or v["status"]),
                result.get("source_sequence"),
                result.get("target_revision"),
                result.get("counts", {}).get("source_keys"),
                result.get("differing"),
                result.get("counts", {}).get("only_source"),
                result.get("counts", {}).get("only_target"),
                result.get("counts", {}).get("different"),
                shown_ms(result["ended_ms"] - result["began_ms"]) if result else None,
                f"{result['where']} in {v['target']}" if result.get("where") else None,
                result.get("reason"),
            )
            for v, result in results
        ),
    )


def replay_table(replays: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh replication replay`: what came again, and that it changed nothing."""
    results = [(each, each.get("result") or {}) for each in replays]
    return table(
        ("TARGET", "SOURCE", "OUTCOME", ">FROM", ">THROUGH", ">RECORDS", ">DUPLICATES", "WHY"),
        (
            (
                each["target"],
                result.get("source"),
                word(result.get("outcome") or each["status"]),
                result.get("start"),
                result.get("through") or None,
                result.get("records"),
                result.get("duplicates"),
                result.get("reason"),
            )
            for each, result in results
        ),
    )


def audit_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh audit list`."""
    return table(
        (">N", "AT", "WHO", "DID", "FACTS"),
        (
            (
                entry["n"],
                shown_time(entry["at_ms"]),
                entry["actor"],
                entry["action"],
                ", ".join(f"{name}={shown(value)}" for name, value in entry["facts"].items()),
            )
            for entry in entries
        ),
    )


def failovers_table(failovers: Sequence[Mapping[str, Any]], *, now_ms: int) -> Table:
    """Return `mesh failovers list`."""
    return table(
        ("ID", "GROUP", "KIND", "FROM", "TO", ">EPOCH", "PHASE", "STEP", ">PAUSE", "BEGAN", "BY"),
        (
            (
                f["id"],
                f["group"],
                f["kind"],
                f["source"],
                f["target"],
                f.get("epoch_after"),
                word(f["phase"]),
                f"{f['step_number']}/{f['steps_total']} {f['step']}",
                shown_ms(f.get("pause_ms")),
                shown_time(f.get("began_ms"), now_ms=now_ms),
                f.get("requested_by"),
            )
            for f in failovers
        ),
    )


def failover_view(failover: Mapping[str, Any]) -> RenderableType:
    """Return `mesh failovers show`."""
    problem = failover.get("problem") or {}
    head = fields(
        {
            "Failover": failover["id"],
            "Group": failover["group"],
            "Kind": f"{failover['kind']} ({failover['plan']})",
            "From -> to": f"{failover['source']} -> {failover['target']}",
            "Epoch": f"{failover['epoch_before']} -> {failover['epoch_after']}",
            "Phase": word(failover["phase"]),
            "Authority moved": failover["authority_moved"],
            "Cut": failover.get("cut"),
            "Writes paused": shown_ms(failover.get("pause_ms")),
            "Began": shown_time(failover.get("began_ms")),
            "Ended": shown_time(failover.get("ended_ms")),
            "Requested by": failover.get("requested_by"),
            "Reason": failover.get("reason"),
            "Change": failover.get("change_ticket"),
            "Waived": failover.get("waivers"),
            **_emergency_fields(failover),
            **({"Happened": problem.get("happened")} if problem else {}),
            **({"State now": problem.get("state")} if problem else {}),
            **({"Next": problem.get("next")} if problem else {}),
        }
    )
    return Group(head, "", steps_table(failover["steps"]))


def _emergency_fields(failover: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an emergency may lose, in the words in which the audit has it."""
    emergency = failover.get("emergency")
    if not emergency:
        return {"Planned first": "yes"} if failover.get("planned_first") else {}
    loss = emergency["loss"]
    accepted = emergency["accepted"] or {}
    bound = ", ".join(f"{name} {value}" for name, value in accepted.items() if value)
    shown_fields = {
        "Fence": emergency["fence"],
        "May lose": loss["text"] if loss else None,
        "Accepted": f"{bound} by {emergency['accepted_by'] or 'the request'}" if bound else None,
        "After planned": emergency["after_planned"] or None,
        "In place of": emergency["supersedes"],
    }
    if emergency["awaits_consent"]:
        shown_fields["Waits for"] = f"consent: {'; '.join(loss['objections'])}"
    return {name: value for name, value in shown_fields.items() if value}


def steps_table(steps: Sequence[Mapping[str, Any]]) -> Table:
    """Return the steps of a failover with the time each took."""
    return table(
        (">#", "STEP", "STATUS", ">TOOK", "DETAIL"),
        (
            (
                number,
                step["step"],
                word(step["status"]),
                shown_ms(took_ms(step)),
                step.get("detail"),
            )
            for number, step in enumerate(steps, start=1)
        ),
    )
