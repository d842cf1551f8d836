"""What is due in a failover, derived from its record alone. Pure."""

from __future__ import annotations

from coordinator.failover.asking import command_of
from coordinator.failover.events import (
    AwaitAnswer,
    AwaitConsent,
    Due,
    MoveAuthority,
    Perform,
    Timer,
)
from coordinator.failover.loss import objections
from coordinator.failover.plan import Limit, Plan, Step, plan_named
from coordinator.failover.record import Failover, Phase
from meshkit.commands import Command
from meshkit.ordinals import ABSENT


def decide(record: Failover) -> Due | None:
    """Return what is due, or None if nothing is: the failover ended, or is held."""
    if record.phase is Phase.HELD or record.phase.is_final:
        return None
    step = step_in_hand(record)
    if step.is_remote:
        assert record.awaiting is not None, "a remote step in hand awaits its answer"
        return AwaitAnswer(command=command_of(record, step), revision=record.awaiting.revision)
    if _is_pivot(record):
        return MoveAuthority()
    if step.name == "consent" and (why := missing_consent(record)):
        return AwaitConsent(objections=why)
    return Perform(step=step.name)


def missing_consent(record: Failover) -> tuple[str, ...]:
    """Return why an emergency has no consent to the loss as stated; nothing if it has."""
    emergency = record.emergency
    if emergency is None:
        return ()
    if emergency.loss is None:
        return ("the loss was not stated yet",)
    return objections(emergency.loss, emergency.accept)


def wants_consent(record: Failover) -> bool:
    """Return whether it waits for consent, or comes to that and nobody has said anything yet."""
    if isinstance(decide(record), AwaitConsent):
        return True
    asked = record.emergency or record.fallback
    is_open = not (record.phase.is_final or record.authority_moved or record.undoing)
    return is_open and asked is not None and asked.accept is None


def command_to_put(record: Failover) -> Command | None:
    """Return the command that has to be put in the transaction that stores `record`, if any."""
    due = decide(record)
    if isinstance(due, AwaitAnswer) and due.revision == ABSENT:
        return due.command
    return None


def step_in_hand(record: Failover) -> Step:
    """Return the step being carried out; while undoing, the undo."""
    step = plan_of(record).steps[record.cursor]
    if record.undoing:
        assert step.undo is not None, "only a step with an undo is undone"
        return step.undo
    return step


def may_skip(record: Failover, step: str) -> bool:
    """Return whether the step in hand is this one, and may be passed: nobody was asked yet."""
    in_hand, awaiting = step_in_hand(record), record.awaiting
    is_unasked = awaiting is not None and awaiting.revision == ABSENT
    return in_hand.may_skip and in_hand.name == step and is_unasked and not record.undoing


def plan_of(record: Failover) -> Plan:
    """Return the plan the record names."""
    return plan_named(record.plan)


def timer(record: Failover) -> Timer | None:
    """Return the limit of what is awaited, or None if nothing is awaited."""
    if not isinstance(decide(record), AwaitAnswer) or record.awaiting is None:
        return None
    step = step_in_hand(record)
    match step.limit:
        case Limit.PAUSE:
            names = {s.name for s in plan_of(record).steps if s.limit is Limit.PAUSE}
            since_ms = next((s.started_ms for s in record.history if s.step in names), None)
            return Timer(key="pause", limit_ms=record.policy.pause_budget_ms, since_ms=since_ms)
        case Limit.CATCH_UP:
            limit_ms = record.policy.catch_up_ms_max
        case Limit.STEP:
            limit_ms = step.timeout_ms
    return Timer(key=f"{step.name}@{record.awaiting.revision}", limit_ms=limit_ms)


def _is_pivot(record: Failover) -> bool:
    return not record.undoing and record.cursor == plan_of(record).pivot
