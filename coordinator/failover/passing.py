"""Passing the steps of a failover that ask nobody: because policy says so, or it is known. Pure."""

from __future__ import annotations

import attrs

from coordinator import comparison
from coordinator.failover import machine
from coordinator.failover.described import described
from coordinator.failover.due import may_skip
from coordinator.failover.record import Failover

NOTHING_TO_DO = {"approve": "policy asks for no approval", "settle": "", "consent": ""}
"""Steps of the coordinator's own that are passed in the transition that reaches them."""


@attrs.frozen(kw_only=True)
class Known:
    """What whoever begins a planned failover has found out the moment before."""

    equal: str = ""
    """How it is known that the target's copy is equal, if it is."""
    close: str = ""
    """How close the target is, if so close that writes may be paused."""


def passed(record: Failover, step: str) -> machine.StepDone | None:
    """Return the passing of a step that needs nothing but storing, or None if it needs more."""
    if step == comparison.CHECK:
        reason = comparison.is_passed(record)
        if not reason:
            return None
    elif step in NOTHING_TO_DO:
        reason = NOTHING_TO_DO[step]
    else:
        return None
    return machine.StepDone(
        step=step, detail=f"skipped: {reason}" if reason else "", skipped=bool(reason)
    )


def begun_checked(
    record: Failover, known: Known, *, now_ms: int
) -> tuple[Failover, tuple[str, ...]]:
    """Return a new planned failover whose `check` was made this moment, as far on as it comes.

    That is where a region has to be asked, or copies are to be compared. What it has to be asked is
    put in the transaction that stores the beginning. Returns also what was passed, in words.
    """
    after = machine.begin(record, now_ms=now_ms)
    event: machine.Event | None = machine.StepDone(step="check")
    words: list[str] = []
    while event is not None:
        words.append(described(after, event))
        after = machine.advance(after, event, now_ms=now_ms)
        event = _next(after, known)
    return after, tuple(words)


def _next(record: Failover, known: Known) -> machine.StepDone | None:
    step = machine.step_in_hand(record).name
    if step == comparison.CHECK and known.equal:
        return machine.StepDone(step=step, detail=known.equal)
    if known.close and may_skip(record, step):
        return machine.StepDone(step=step, detail=f"skipped: {known.close}", skipped=True)
    is_own = isinstance(machine.decide(record), machine.Perform)
    return passed(record, step) if is_own else None
