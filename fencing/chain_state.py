"""How the chain of two leases stands, for people and for health. Pure."""

from __future__ import annotations

import attrs

from meshkit.ordinals import LeaseId


@attrs.frozen(kw_only=True)
class ChainState:
    """What a health report says of the chain."""

    is_healthy: bool
    """The leases are alive by our own clock, the last round was complete and beats are put."""
    rounds: int
    round_ms: int | None
    """How long the last complete round took."""
    problem: str
    """What is wrong, or nothing."""
    coordination: LeaseId | None
    regional: LeaseId | None
