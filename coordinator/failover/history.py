"""The history in a failover's record: which step began and ended when, and how. Pure."""

from __future__ import annotations

import attrs

from coordinator.failover.record import Failover, StepRecord, StepStatus


def begun(record: Failover, step: str, *, now_ms: int) -> Failover:
    """Enter that a step began."""
    entry = StepRecord(step=step, status=StepStatus.RUNNING, started_ms=now_ms)
    return attrs.evolve(record, history=(*record.history, entry))


def ended(record: Failover, status: StepStatus, *, detail: str, now_ms: int) -> Failover:
    """Close the newest entry of the history: the step in hand."""
    if not record.history:
        return record
    *earlier, last = record.history
    closed = attrs.evolve(last, status=status, ended_ms=now_ms, detail=detail)
    return attrs.evolve(record, history=(*earlier, closed))


def marked_undone(record: Failover, step: str) -> Failover:
    """Enter that a step was undone."""
    history = tuple(
        attrs.evolve(s, status=StepStatus.UNDONE) if s.step == step else s for s in record.history
    )
    return attrs.evolve(record, history=history)
