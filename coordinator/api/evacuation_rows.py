"""What an evacuation shows of each group, and of what all of them may lose together. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coordinator.api.emergency_views import loss_view
from coordinator.failover import machine
from coordinator.failover.record import Failover
from meshkit.codec import to_plain
from meshkit.names import ClusterName, FailoverId, GroupName

Json = dict[str, Any]


def begun_row(
    group: GroupName,
    *,
    outcome: str,
    target: ClusterName | None = None,
    failover: str | None = None,
    reason: str = "",
    loss: Json | None = None,
    running: str | None = None,
) -> Json:
    """Return what became of beginning one group's failover, or would become of it."""
    return {
        "group": group,
        "target": target,
        "failover": failover,
        "outcome": outcome,
        "reason": reason,
        "loss": loss,
        "running": running,
    }


def with_running(row: Json, record: Failover) -> Json:
    """Return a row with the failover that runs for its group; what that states is the loss."""
    running = {
        "failover": record.id,
        "kind": record.kind.value,
        "request_id": record.request_id,
        "waits_for_consent": waits_for_consent(record),
    }
    return {**row, "running": running, "loss": _loss(record) or row["loss"]}


def progress_row(
    group: GroupName,
    failover: FailoverId,
    *,
    has_moved: bool,
    is_under_way: bool,
    record: Failover | None,
) -> Json:
    """Return how far one group is; without its record only whether it has moved."""
    return {
        "group": group,
        "failover": failover,
        "moved": has_moved,
        "under_way": is_under_way,
        "waits_for_consent": record is not None and waits_for_consent(record),
        "target": record.target if record else None,
        "phase": record.phase.value if record else None,
        "step": machine.step_in_hand(record).name if record else None,
        "loss": _loss(record) if record else None,
        "problem": to_plain(record.problem) if record and record.problem else None,
    }


def waits_for_consent(record: Failover) -> bool:
    """Return whether a failover waits for somebody to accept its loss."""
    return isinstance(machine.decide(record), machine.AwaitConsent)


def in_sum(losses: Iterable[Json]) -> Json | None:
    """Return what several groups may lose together; None if no loss is stated.

    Times overlap, so the greatest counts; records are counted together. One group of which nobody
    knows makes the whole unknown: `unbounded` says of how many.
    """
    stated = list(losses)
    if not stated:
        return None
    seconds = [loss["seconds"] for loss in stated]
    records = [loss["target"]["records_known"] for loss in stated]
    unbounded = sum(is_unbounded(loss) for loss in stated)
    return {
        "groups": len(stated),
        "unbounded": unbounded,
        "seconds": None if None in seconds else max(seconds),
        "records_known": None if None in records else sum(records),
    }


def is_unbounded(loss: Json) -> bool:
    """Return whether a loss as stated can be accepted only as unknown."""
    if loss["target"]["is_none"]:
        return False
    return loss["fence"] == "unknown" or None in (loss["seconds"], loss["target"]["records_known"])


def _loss(record: Failover) -> Json | None:
    emergency = record.emergency
    if emergency is None or emergency.loss is None:
        return None
    return loss_view(emergency.loss, emergency.accept)
