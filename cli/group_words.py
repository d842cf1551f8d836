"""Short words about a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.render import shown_time


def last_failover(failover: Mapping[str, Any] | None) -> str:
    """Return how a group's newest failover ended, in a line."""
    if not failover:
        return "none"
    return (
        f"{failover['id']} {failover['source']} -> {failover['target']} {failover['phase']}"
        f" {shown_time(failover.get('ended_ms'))}"
    )
