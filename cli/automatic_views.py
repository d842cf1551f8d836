"""What automatic failovers look like with their group (docs/api.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.render import shown_ms, shown_time

_STANDINGS = {
    "manual": "no: a person begins an emergency",
    "ready": "ready: to {target} once {active} is gone for {after}",
    "blocked": "BLOCKED: if {active} died now, nothing would begin by itself",
    "observing": "{active} shows no proof of life; begins once that was seen for {after}",
    "moving": "a failover runs: no other one begins",
    "withheld": "WITHHELD since {since}: {active} is gone, and nothing begins by itself",
}


def automatic_fields(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return how an automatic failover of a group stands, and why."""
    automatic = group.get("automatic")
    if not automatic:
        return {}
    text = _STANDINGS.get(automatic["standing"], automatic["standing"]).format(
        target=automatic["target"],
        active=group.get("active"),
        after=shown_ms(automatic["after_ms"]),
        since=shown_time(automatic["withheld_since_ms"]),
    )
    lines = {"Automatic failover": text}
    if automatic["mode"] == "manual":
        return lines
    reasons = [_reason(reason) for reason in automatic["reasons"]]
    if reasons:
        lines["Stands in the way"] = "\n".join(reasons)
    lines["May lose by itself"] = (
        f"{automatic['loss_records_max']} records, {automatic['loss_seconds_max']} s"
    )
    if automatic["last"]:
        lines["Last automatic one"] = _last(automatic["last"])
    return lines


def keeping_fields(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what becomes of writes without the coordination etcd, where they may go on."""
    text = (group.get("on_coordination_loss") or {}).get("text")
    return {"If cut off": text} if text else {}


def _reason(reason: Mapping[str, Any]) -> str:
    until = f" (until {shown_time(reason['until_ms'])})" if reason["until_ms"] else ""
    return f"{reason['obstacle']}: {reason['detail']}{until}"


def _last(last: Mapping[str, Any]) -> str:
    known = f"{last['failover']} {last['source']} -> {last['target']}"
    if last["acknowledged_ms"] is None:
        return f"{known}, not acknowledged"
    return f"{known}, acknowledged by {last['acknowledged_by']}"
