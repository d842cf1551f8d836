"""What rejoins look like as tables (docs/api.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from cli.render import fields, shown_ms, shown_time, table, word


def rejoins_table(rejoins: Sequence[Mapping[str, Any]], *, now_ms: int) -> Table:
    """Return `mesh rejoins list`."""
    return table(
        ("ID", "GROUP", "CLUSTER", "FOLLOWS", "PHASE", "STEP", "QUARANTINED", ">AGE", "PROBLEM"),
        (
            (
                r["id"],
                r["group"],
                r["cluster"],
                f"{r['active']} (epoch {r['epoch']})",
                word(r["phase"]),
                f"{r['step']} ({r['step_number']}/{r['steps_total']})",
                _diverged(r),
                shown_ms(max(0, now_ms - r["began_ms"])),
                (r["problem"] or {}).get("happened"),
            )
            for r in rejoins
        ),
    )


def rejoin_view(rejoin: Mapping[str, Any]) -> RenderableType:
    """Return `mesh rejoins show`."""
    problem = rejoin["problem"] or {}
    lineage = rejoin["lineage"] or {}
    stands_on = f"{lineage.get('parent')}@{lineage.get('sequence')}" if lineage else "not known"
    head = fields(
        {
            "Rejoin": rejoin["id"],
            "Group": rejoin["group"],
            "Cluster": rejoin["cluster"],
            "Follows": f"{rejoin['active']} in epoch {rejoin['epoch']}",
            "Phase": word(rejoin["phase"]),
            "Asked for by": rejoin["requested_by"],
            "Successor stands on": stands_on,
            "Its own log ended at": rejoin["cut"],
            "Diverged": _diverged(rejoin),
            "Approved by": rejoin["approved_by"] or None,
            "Began": shown_time(rejoin["began_ms"]),
            "Ended": shown_time(rejoin["ended_ms"]),
            "Problem": problem.get("happened"),
            "State": problem.get("state"),
            "Next": problem.get("next"),
        }
    )
    steps = table(
        ("STEP", "STATUS", "DETAIL"),
        ((s["step"], word(s["status"]), s["detail"]) for s in rejoin["steps"]),
    )
    return Group(head, "", steps)


def _diverged(rejoin: Mapping[str, Any]) -> str:
    counts = dict(rejoin["diverged"])
    total = counts.pop("total", None)
    if total is None:
        return ""
    classes = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    known = rejoin["completeness"]
    return f"{total} changes ({classes}), {known}" if total else f"nothing, {known}"


def quarantined_fields(group: Mapping[str, Any]) -> dict[str, str]:
    """Return what waits in quarantine for a group, cluster by cluster; unknown is said.

    Nothing if the API is too old to know.
    """
    lines = []
    if not any("quarantined" in member for member in group["clusters"]):
        return {}
    for member in group["clusters"]:
        counts = member.get("quarantined")
        if counts is None:
            lines.append(f"{member['cluster']}: unknown")
        elif counts:
            classes = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            lines.append(f"{member['cluster']}: {classes}")
    return {"Quarantine": "; ".join(lines) or "empty"}
