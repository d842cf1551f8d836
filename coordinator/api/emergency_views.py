"""What the API shows of an emergency: its fence, its consent, and what it may lose. Pure."""

from __future__ import annotations

from typing import Any

from coordinator.failover import loss, machine
from coordinator.failover.loss import LossBound, LossStatement
from coordinator.failover.record import Failover
from meshkit.codec import to_plain

Json = dict[str, Any]


def emergency_view(record: Failover) -> Json | None:
    """Return what only an emergency has; `loss` is the statement that the audit has too."""
    emergency = record.emergency
    if emergency is None:
        return None
    waits = isinstance(machine.decide(record), machine.AwaitConsent)
    return {
        "fence": emergency.fence.value if emergency.fence else None,
        "no_fence_wait": emergency.no_fence_wait,
        "after_planned": emergency.after_planned,
        "supersedes": emergency.supersedes,
        "accepted": to_plain(emergency.accept),
        "accepted_by": emergency.accepted_by,
        "automatic": emergency.automatic,
        "awaits_consent": waits,
        "loss": loss_view(emergency.loss, emergency.accept) if emergency.loss else None,
    }


def loss_view(statement: LossStatement, bound: LossBound | None) -> Json:
    """Return a loss as stated, in numbers and in words, and what no consent covers yet."""
    return {
        **to_plain(statement),
        "seconds": statement.target.seconds,
        "text": loss.words(statement),
        "most_advanced": statement.most_advanced,
        "objections": list(loss.objections(statement, bound)),
    }
