"""The failover as two functions over its record: what is due, and what to remember. Pure.

`decide` derives what is due from the record alone, so a successor derives the same. `advance`
returns the record to store after an event, or the very same record if the event is old news. A
command is part of the record's own transaction, hence its token is that transaction's revision.

Time comes in as `now_ms` and goes into the history only; nothing here decides by it. Limits of time
are measured by the driver, which reports them as `TimedOut`.
"""

from __future__ import annotations

import attrs

from coordinator.failover import emergency, history, loss
from coordinator.failover.asking import addressee, lineage_of
from coordinator.failover.due import (
    command_to_put,
    decide,
    may_skip,
    missing_consent,
    plan_of,
    step_in_hand,
    timer,
    wants_consent,
)
from coordinator.failover.events import (
    AbortRequested,
    Answered,
    AuthorityMoved,
    AwaitAnswer,
    AwaitConsent,
    ConsentGiven,
    Due,
    Event,
    FenceEnded,
    LossStated,
    MoveAuthority,
    Perform,
    ResumeRequested,
    StepDone,
    StepFailed,
    Superseded,
    TimedOut,
    Timer,
)
from coordinator.failover.permitted import check_abort, check_consent, check_resume
from coordinator.failover.plan import Plan, Step
from coordinator.failover.record import (
    FENCE,
    Awaiting,
    Failover,
    Phase,
    Problem,
    StepStatus,
)
from meshkit.commands import Answer, AnswerOutcome, CommandStep
from meshkit.names import ClusterName, FailoverId
from meshkit.ordinals import ABSENT, Revision, Token

__all__ = [
    "AbortRequested",
    "Answered",
    "AuthorityMoved",
    "AwaitAnswer",
    "AwaitConsent",
    "ConsentGiven",
    "Due",
    "Event",
    "FenceEnded",
    "LossStated",
    "MoveAuthority",
    "Perform",
    "ResumeRequested",
    "StepDone",
    "StepFailed",
    "Superseded",
    "TimedOut",
    "Timer",
    "advance",
    "begin",
    "check_abort",
    "check_consent",
    "check_resume",
    "command_to_put",
    "decide",
    "is_news",
    "lineage_of",
    "missing_consent",
    "plan_of",
    "retry_timer",
    "step_in_hand",
    "timer",
    "wants_consent",
]

# --- when to take an answer in ------------------------------------------------------------------


def is_news(record: Failover, answer: Answer) -> bool:
    """Return whether taking the answer in would change anything."""
    if not _answers_what_is_awaited(record, answer):
        return False
    may_be_ignored = record.phase is Phase.HELD or step_in_hand(record).name == FENCE
    return not may_be_ignored or _on_answer(record, answer, now_ms=0) is not record


def retry_timer(record: Failover, answer: Answer) -> Timer | None:
    """Return how long to wait before an answer is taken in, or None if it need not wait.

    A refusal waits that leads to another attempt. Until then a better answer may come instead.
    """
    if not _answers_what_is_awaited(record, answer) or record.phase is Phase.HELD:
        return None
    step = step_in_hand(record)
    if not _fault(step, record, answer) or record.attempt >= step.attempts_max:
        return None
    return Timer(key=f"{step.name}@{answer.token} again", limit_ms=step.retry_ms)


# --- what to remember ---------------------------------------------------------------------------


def advance(record: Failover, event: Event, *, now_ms: int) -> Failover:
    """Return what to remember after `event`; the same record if it is old news."""
    if record.phase.is_final:
        return record
    match event:
        case AbortRequested():
            after = _abort(record, event, now_ms=now_ms)
        case ResumeRequested():
            after = _resume(record, now_ms=now_ms)
        case Answered(answer=answer):
            after = _on_answer(record, answer, now_ms=now_ms)
        case TimedOut():
            after = _on_timeout(record, event, now_ms=now_ms)
        case AuthorityMoved(token=token):
            after = _on_pivot(record, token, now_ms=now_ms)
        case StepDone() | StepFailed():
            after = _on_own_step(record, event, now_ms=now_ms)
        case FenceEnded() | LossStated() | ConsentGiven():
            after = _on_emergency(record, event, now_ms=now_ms)
        case Superseded(by=by):
            after = _superseded(record, by, now_ms=now_ms)
    return after


# --- transitions --------------------------------------------------------------------------------


def _answers_what_is_awaited(record: Failover, answer: Answer) -> bool:
    awaited = _awaited(record)
    if awaited is None:
        return False
    return answer.token == Token(incarnation=record.incarnation, revision=awaited)


def _awaited(record: Failover) -> Revision | None:
    if record.awaiting is None or record.awaiting.revision == ABSENT:
        return None
    return record.awaiting.revision


def _on_answer(record: Failover, answer: Answer, *, now_ms: int) -> Failover:
    if not _answers_what_is_awaited(record, answer):
        return record
    resumed = record
    if record.phase is Phase.HELD:
        direction = Phase.UNDOING if record.undoing else Phase.ADVANCING
        resumed = attrs.evolve(record, phase=direction, problem=None)
    step = step_in_hand(resumed)
    fault = _fault(step, record, answer)
    if not fault:
        return _onward(_remember(resumed, answer), now_ms=now_ms)
    if step.goes_on:
        return _onward(resumed, status=StepStatus.FAILED, detail=fault, now_ms=now_ms)
    if step.name == FENCE:
        return record  # It will not say that it is sealed; its proof of life may still run out.
    if record.phase is not Phase.HELD:
        return _again(record, fault, now_ms=now_ms, is_answered=True)
    held = _hold(record, f"{step.name} failed: {fault}", is_answered=True)
    return record if held == record else held


def _fault(step: Step, record: Failover, answer: Answer) -> str:
    """Return why the answer does not carry the failover onward, or nothing."""
    if answer.outcome is AnswerOutcome.REFUSED:
        return f"{answer.cluster} refused: {answer.reason}"
    if step.name == CommandStep.DRAIN.value and None in (answer.cut, answer.incarnation):
        return f"{answer.cluster} drained but named no cut"
    behind = answer.watermark is not None and (answer.watermark < (record.cut or 0))
    if step.name == CommandStep.CONVERGE.value and behind:
        return f"{answer.cluster} converged only up to {answer.watermark}, the cut is {record.cut}"
    return emergency.fault(answer)


def _remember(record: Failover, answer: Answer) -> Failover:
    after = attrs.evolve(record, vector=record.vector.merge(answer.vector))
    match answer.step:
        case CommandStep.DRAIN:
            return attrs.evolve(
                after,
                cut=answer.cut,
                cut_incarnation=answer.incarnation,
                cut_prefixes=answer.prefixes,
            )
        case CommandStep.CONVERGE:
            return attrs.evolve(after, watermark=answer.watermark)
        case CommandStep.OPEN:
            return attrs.evolve(after, opened=answer.opened)
        case _:
            return emergency.answered(after, answer)


def _on_timeout(record: Failover, event: TimedOut, *, now_ms: int) -> Failover:
    if not isinstance(decide(record), AwaitAnswer) or event.revision != _awaited(record):
        return record
    if step_in_hand(record).goes_on:
        return _onward(record, status=StepStatus.FAILED, detail=event.detail, now_ms=now_ms)
    return _again(record, event.detail, now_ms=now_ms)


def _on_emergency(
    record: Failover, event: FenceEnded | LossStated | ConsentGiven, *, now_ms: int
) -> Failover:
    match event:
        case FenceEnded():
            is_due = step_in_hand(record).name == FENCE and decide(record) is not None
            if not is_due:
                return record
            return _onward(emergency.fenced(record, event), detail=event.detail, now_ms=now_ms)
        case LossStated(statement=statement):
            if decide(record) != Perform(step="state_loss"):
                return record
            after = emergency.stated(record, event)
            if beyond := emergency.beyond_policy(after):
                return _again(after, beyond, now_ms=now_ms)
            return _onward(after, detail=loss.words(statement), now_ms=now_ms)
        case ConsentGiven():
            return record if record.authority_moved else emergency.consented(record, event)


def _superseded(record: Failover, by: FailoverId, *, now_ms: int) -> Failover:
    """End it: the emergency goes on from whatever state it leaves."""
    why = f"superseded by emergency {by}"
    ended = history.ended(record, StepStatus.FAILED, detail=why, now_ms=now_ms)
    problem = Problem(happened=why, next=f"follow that one: mesh failovers watch {by}")
    return _end(attrs.evolve(ended, problem=problem), Phase.SUPERSEDED, now_ms=now_ms)


def _on_pivot(record: Failover, token: Token, *, now_ms: int) -> Failover:
    if decide(record) != MoveAuthority():
        return record
    missing = missing_consent(record)
    if missing:
        return _again(record, "; ".join(missing), now_ms=now_ms)
    return _onward(attrs.evolve(record, target_token=token), now_ms=now_ms)


def _on_own_step(record: Failover, event: StepDone | StepFailed, *, now_ms: int) -> Failover:
    expected = decide(record)
    if isinstance(event, StepFailed):
        is_due = expected in (Perform(step=event.step), MoveAuthority())
        return _again(record, event.detail, now_ms=now_ms) if is_due else record
    is_skip = event.skipped and may_skip(record, event.step)
    if expected != Perform(step=event.step) and not is_skip:
        return record
    status = StepStatus.SKIPPED if event.skipped else StepStatus.DONE
    return _onward(record, status=status, detail=event.detail, now_ms=now_ms)


def _onward(
    record: Failover, *, now_ms: int, status: StepStatus = StepStatus.DONE, detail: str = ""
) -> Failover:
    ended = history.ended(record, status, detail=detail, now_ms=now_ms)
    if record.undoing:
        return _undo_from(
            history.marked_undone(ended, plan_of(record).steps[record.cursor].name),
            record.cursor - 1,
            now_ms=now_ms,
        )
    if record.cursor + 1 == len(plan_of(record).steps):
        return _end(ended, Phase.SUCCEEDED, now_ms=now_ms)
    return _enter(attrs.evolve(ended, cursor=record.cursor + 1, attempt=1), now_ms=now_ms)


def _enter(record: Failover, *, now_ms: int) -> Failover:
    """Begin the step in hand; if it is remote, its command is to be put with this record."""
    step = step_in_hand(record)
    awaiting = None
    if step.is_remote:
        awaiting = Awaiting(cluster=addressee(record, step), step=step.name)
    return attrs.evolve(history.begun(record, step.name, now_ms=now_ms), awaiting=awaiting)


def _again(record: Failover, detail: str, *, now_ms: int, is_answered: bool = False) -> Failover:
    """Try the step in hand once more, or give it up."""
    step = step_in_hand(record)
    ended = history.ended(record, StepStatus.FAILED, detail=detail, now_ms=now_ms)
    if record.attempt < step.attempts_max:
        return _enter(attrs.evolve(ended, attempt=record.attempt + 1), now_ms=now_ms)
    if record.undoing or record.authority_moved:
        return _hold(ended, f"{step.name} failed: {detail}", is_answered=is_answered)
    if emergency.falls_back(record):
        why = f"{step.name} failed: {detail}"
        return _enter(emergency.fallen_back(ended, why), now_ms=now_ms)
    problem = Problem(
        happened=f"{step.name} failed: {detail}",
        state=_as_before(record),
        next=emergency.what_next(record),
    )
    ended = attrs.evolve(ended, problem=problem)
    if record.cursor < _first_remote(plan_of(record)) and not emergency.must_release(record):
        return _end(ended, Phase.REFUSED, now_ms=now_ms)
    return _undo_from(ended, _undo_start(record), now_ms=now_ms)


def _may_abort(record: Failover) -> bool:
    return not record.authority_moved


def _abort(record: Failover, event: AbortRequested, *, now_ms: int) -> Failover:
    if record.undoing or not _may_abort(record):
        return record
    why = f"aborted by {event.actor}" + (f": {event.reason}" if event.reason else "")
    ended = history.ended(record, StepStatus.FAILED, detail=why, now_ms=now_ms)
    problem = Problem(
        happened=why,
        state=_as_before(record),
        next="nothing is to be done; begin a new failover when ready",
    )
    return _undo_from(attrs.evolve(ended, problem=problem), _undo_start(record), now_ms=now_ms)


def _undo_start(record: Failover) -> int:
    """Begin with the step in hand: it may have happened without our hearing of it.

    An emergency that took another failover's place also gives back what that one had taken.
    """
    if record.emergency is None or not emergency.must_release(record):
        return record.cursor
    return max(record.cursor, plan_of(record).step_names.index(FENCE))


def _undo_from(record: Failover, cursor: int, *, now_ms: int) -> Failover:
    steps = plan_of(record).steps
    for index in range(cursor, -1, -1):
        if steps[index].undo is not None:
            undoing = attrs.evolve(
                record, phase=Phase.UNDOING, undoing=True, cursor=index, attempt=1
            )
            return _enter(undoing, now_ms=now_ms)
    return _end(record, Phase.ROLLED_BACK, now_ms=now_ms)


def _hold(record: Failover, happened: str, *, is_answered: bool) -> Failover:
    """Wait for a late answer or an operator. `awaiting` stays, and so does the command.

    Whoever has answered already will not do so again by itself, so there an operator is needed.
    """
    step = step_in_hand(record)
    who = addressee(record, step) if step.is_remote else ClusterName("the coordinator")
    if record.undoing:
        state = f"writes to group {record.group} are paused; authority is still at {record.source}"
    else:
        state = f"authority of group {record.group} is at {record.target}; {step.name} is not done"
    resume = f"mesh failovers resume {record.id}"
    if is_answered:
        what_next = f"an operator must remove the cause at {who}, and then: {resume}"
    else:
        what_next = f"goes on by itself when {who} answers; or: {resume}"
    problem = Problem(happened=happened, state=state, next=what_next)
    return attrs.evolve(record, phase=Phase.HELD, problem=problem)


def _resume(record: Failover, *, now_ms: int) -> Failover:
    if record.phase is not Phase.HELD:
        return record
    phase = Phase.UNDOING if record.undoing else Phase.ADVANCING
    return _enter(attrs.evolve(record, phase=phase, attempt=1, problem=None), now_ms=now_ms)


def _end(record: Failover, phase: Phase, *, now_ms: int) -> Failover:
    return attrs.evolve(record, phase=phase, awaiting=None, ended_ms=now_ms)


# --- parts --------------------------------------------------------------------------------------


def _as_before(record: Failover) -> str:
    return f"{record.source} serves group {record.group} as before (epoch {record.epoch_before})"


def _first_remote(plan: Plan) -> int:
    return next(index for index, step in enumerate(plan.steps) if step.is_remote)


def begin(record: Failover, *, now_ms: int) -> Failover:
    """Return a new failover's record with its first step in hand."""
    return _enter(attrs.evolve(record, began_ms=now_ms), now_ms=now_ms)
