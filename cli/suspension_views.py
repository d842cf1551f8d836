"""What `mesh clusters adopt` shows: why a region is suspended, and what came of adopting it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from cli.render import fields, shown_ms


def suspended_view(cluster: str, suspended: Mapping[str, Any]) -> RenderableType:
    """Return why a region is suspended, and what there is to do."""
    return fields(
        {
            "Suspended": cluster,
            "Because": suspended["reason"],
            "Since": f"{shown_ms(suspended['age_ms'])} ago",
            "Noticed by": suspended["replicator"],
            "Incarnation": suspended["incarnation"],
            "Active for": suspended["active_groups"],
            "What to do": suspended["next"],
        }
    )


def adopted_text(cluster: str, answer: Mapping[str, Any]) -> RenderableType | str:
    """Return what came of `mesh clusters adopt`."""
    suspended = answer["suspended"]
    if suspended is not None and not suspended["adopted"]:
        return suspended_view(cluster, suspended)
    became = f"incarnation {answer['incarnation']} of {cluster}'s etcd"
    if suspended is None:
        return f"{became} has begun"
    return f"{became} is adopted; it begins when a replicator of {cluster} leads"
