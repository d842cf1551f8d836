"""What happened in a failover, in a few words, for those who follow. Pure."""

from __future__ import annotations

from coordinator.failover import loss, machine
from coordinator.failover.record import Failover


def described(record: Failover, event: machine.Event) -> str:
    """Return one transition of `record` in a few words."""
    step = machine.step_in_hand(record).name
    match event:
        case machine.StepDone(skipped=skipped):
            words = f"{step} {'skipped' if skipped else 'done'}"
        case machine.AuthorityMoved():
            words = "pivot done"
        case machine.Answered(answer=answer):
            words = f"{step} {answer.outcome.value}"
        case machine.TimedOut(detail=detail) | machine.StepFailed(detail=detail):
            words = f"{step} failed: {detail}"
        case machine.AbortRequested(actor=actor):
            words = f"abort requested by {actor}"
        case machine.ResumeRequested(actor=actor):
            words = f"resume requested by {actor}"
        case _:
            words = _of_emergency(step, event)
    return words


def _of_emergency(step: str, event: machine.Event) -> str:
    match event:
        case machine.FenceEnded(fence=fence):
            return f"{step} done: {fence.value}"
        case machine.LossStated(statement=statement):
            return f"{step} done: {loss.words(statement)}"
        case machine.ConsentGiven(actor=actor):
            return f"loss accepted by {actor}"
        case machine.Superseded(by=by):
            return f"superseded by {by}"
    raise AssertionError(f"{event} is told elsewhere")
