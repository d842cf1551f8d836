"""What a failover would do, before it is begun: what it would meet, its steps, its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from cli.render import fields, shown, shown_lag, shown_ms, table, word


def preview_view(preview: Mapping[str, Any]) -> RenderableType:
    """Return what a failover would do, before it is begun."""
    head = fields(
        {
            "Group": preview["group"],
            "From -> to": f"{preview['source']} -> {preview['target']}",
            "Epoch": f"{preview['epoch']} -> {preview['epoch_after']}",
            **planned_fields(preview),
        }
    )
    return Group(head, checks_table(preview["checks"]))


def planned_fields(preview: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a planned failover would meet and do."""
    return {
        "Lag": f"{shown_lag(preview.get('lag_ms'), preview.get('lag_error_ms'))}"
        f" ({shown(preview.get('stream'))})",
        "Writes pause": f"about {shown_ms(preview.get('pause_ms_predicted'))}"
        f" (budget {shown_ms(preview.get('pause_budget_ms'))})",
        "Steps": ", ".join(preview.get("steps", ())),
    }


def checks_table(checks: Sequence[Mapping[str, Any]]) -> Table:
    """Return the checks with what each found."""
    return table(
        ("CHECK", "RESULT", "DETAIL"),
        (
            (
                check["name"],
                word("waived" if check.get("waived") else check.get("level", "ok")),
                check.get("detail"),
            )
            for check in checks
        ),
    )
