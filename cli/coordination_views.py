"""What `mesh coordination adopt` shows: what each region says, and what each group is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from cli.render import table


def plan_text(plan: Mapping[str, Any]) -> RenderableType:
    """Return the plan, what stands in its way, and what may come of it."""
    parts: list[RenderableType] = [
        table(
            ("REGION", "ANSWER", "DETAIL"),
            ((r["cluster"], r["answer"], r["detail"]) for r in plan["regions"]),
        )
    ]
    if plan["groups"]:
        parts.append(
            table(
                ("GROUP", "ACTIVE", "EPOCH", "HERE NOW", "WHY"),
                ((g["group"], g["active"], g["epoch"], _was(g), g["why"]) for g in plan["groups"]),
            )
        )
    parts += [Text(f"In the way: {problem}") for problem in plan["problems"]]
    parts += [Text(f"Warning: {warning}") for warning in plan["warnings"]]
    return Group(*parts)


def done_text(answer: Mapping[str, Any]) -> str:
    """Return what came of an adoption."""
    wait = f" after {answer['wait_ms'] // 1000} s" if answer["wait_ms"] else ""
    return (
        f"incarnation {answer['number']} of the coordination etcd has begun, with"
        f" {len(answer['groups'])} group(s); the regions go on by themselves{wait}"
        " (mesh clusters list)"
    )


def _was(group: Mapping[str, Any]) -> str:
    if group["was_active"] is None:
        return "-"
    return f"{group['was_active']}, epoch {group['was_epoch']}"
