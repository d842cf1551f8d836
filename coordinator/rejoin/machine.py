"""A rejoin as two functions over its record: what is due, and what to remember. Pure.

Fence, find what diverged, set it aside, have a person agree if not all of it is known, and only
then let the copy write over it. Nothing here can stop a failover: a rejoin asks only clusters that
no failover is asking, and ends when authority moves.
"""

from __future__ import annotations

import attrs

from coordinator.failover.record import Problem, StepRecord, StepStatus
from coordinator.rejoin.record import (
    APPROVE,
    FIND,
    RECONCILE,
    STAND_BY,
    STEPS,
    Rejoin,
    RejoinPhase,
    ended_step,
)
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep, Standing
from meshkit.errors import Refused
from meshkit.model import Lineage
from meshkit.names import FailoverId
from meshkit.ordinals import ABSENT, Revision, Token

FIND_ROUNDS_MAX = 5
"""How often what diverged is looked for again because more was written meanwhile."""


# --- what happens -------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Answered:
    """The cluster answered a command."""

    answer: Answer
    lineage: Lineage | None = None
    """To `fence`: what the first epoch past the cluster's own stands on; None: nobody knows."""


@attrs.frozen(kw_only=True)
class TimedOut:
    """The answer to the command of revision `awaiting` did not come in time."""

    awaiting: Revision


@attrs.frozen(kw_only=True)
class Overtaken:
    """A failover asked the cluster for something else; what was asked has to be asked again."""

    awaiting: Revision


@attrs.frozen(kw_only=True)
class Approved:
    """A person agrees that what is missing from quarantine is given up."""

    actor: str
    reason: str = ""


@attrs.frozen(kw_only=True)
class Resumed:
    """A person wants what holds to be tried again."""

    actor: str
    reason: str = ""


@attrs.frozen(kw_only=True)
class Moved:
    """Authority is not what the rejoin was begun on."""

    why: str


Event = Answered | TimedOut | Overtaken | Approved | Resumed | Moved


# --- what is due --------------------------------------------------------------------------------


def command_due(record: Rejoin) -> Command | None:
    """Return the command whose answer is awaited; None if nothing is asked."""
    step = record.step
    if record.phase.is_final or step.command is None:
        return None
    return Command(
        group=record.group,
        cluster=record.cluster,
        step=step.command,
        incarnation=record.incarnation,
        epoch=record.epoch,
        failover=FailoverId(record.id),
        source=record.active,
        target=record.cluster,
        lineage=record.lineage,
        is_diverged=record.has_diverged,
    )


def command_to_put(record: Rejoin) -> Command | None:
    """Return the command that has to be put in the transaction that stores the record, if any."""
    return command_due(record) if record.awaiting == ABSENT else None


def is_overdue(record: Rejoin, *, now_ms: int) -> bool:
    """Return whether the step in hand takes longer than it should."""
    is_asking = record.phase is RejoinPhase.ADVANCING and record.awaiting is not None
    return is_asking and now_ms - record.since_ms > record.step.timeout_ms


def token_of(record: Rejoin) -> Token | None:
    """Return the token of the command whose answer is awaited."""
    if record.awaiting in (None, ABSENT):
        return None
    assert record.awaiting is not None, "just looked at"
    return Token(incarnation=record.incarnation, revision=record.awaiting)


# --- what to remember ---------------------------------------------------------------------------


def begin(record: Rejoin, *, now_ms: int) -> Rejoin:
    """Return a new rejoin's record with its first step in hand."""
    return _enter(attrs.evolve(record, began_ms=now_ms), 0, now_ms=now_ms)


def advance(record: Rejoin, event: Event, *, now_ms: int) -> Rejoin:
    """Return what to remember after `event`; the same record if it is old news."""
    if record.phase.is_final:
        return record
    match event:
        case Moved(why=why):
            ended = ended_step(record, StepStatus.FAILED, detail=why, now_ms=now_ms)
            after = _end(ended, RejoinPhase.ABANDONED, now_ms=now_ms)
        case Answered(answer=answer):
            after = _on_answer(record, answer, event.lineage, now_ms=now_ms)
        case TimedOut(awaiting=awaiting):
            after = _on_silence(record, awaiting)
        case Overtaken():
            after = _on_overtaken(record, event, now_ms=now_ms)
        case Approved():
            after = _on_approval(record, event, now_ms=now_ms)
        case Resumed():
            after = _on_resume(record, now_ms=now_ms)
    return after


def check_approve(record: Rejoin) -> None:
    """Allow an approval.

    Raises:
        Refused: nothing waits for one.
    """
    if record.phase is not RejoinPhase.HELD or record.cursor != APPROVE:
        raise Refused(
            f"rejoin {record.id} does not wait for an approval: it is {record.phase.value}",
            hint=f"see how it stands: mesh rejoins show {record.id}",
        )


def check_resume(record: Rejoin) -> None:
    """Allow a resume.

    Raises:
        Refused: it is not held, or it takes an approval.
    """
    if record.phase is not RejoinPhase.HELD:
        raise Refused(
            f"rejoin {record.id} is not held but {record.phase.value}",
            hint=f"see how it stands: mesh rejoins show {record.id}",
        )
    if record.cursor == APPROVE:
        raise Refused(
            f"rejoin {record.id} waits for an approval, not for another attempt",
            hint=f"mesh rejoins approve {record.id} --reason TEXT",
        )


def _on_answer(record: Rejoin, answer: Answer, lineage: Lineage | None, *, now_ms: int) -> Rejoin:
    if answer.token != token_of(record) or answer.cluster != record.cluster:
        return record
    going = attrs.evolve(record, phase=RejoinPhase.ADVANCING, problem=None)
    if answer.outcome is AnswerOutcome.REFUSED:
        return _on_refusal(record, answer.reason, now_ms=now_ms)
    if answer.standing is Standing.FOLLOWS:
        return _stands_by(going, now_ms=now_ms)
    match answer.step:
        case CommandStep.FENCE:
            going = attrs.evolve(going, cut=answer.cut, lineage=lineage)
        case CommandStep.FIND | CommandStep.QUARANTINE:
            going = attrs.evolve(going, diverged=answer.diverged, completeness=answer.completeness)
    return _onward(going, now_ms=now_ms)


def _stands_by(record: Rejoin, *, now_ms: int) -> Rejoin:
    """Only wait for the epoch: the cluster follows, what made somebody ask is no longer so."""
    found = attrs.evolve(record, diverged={}, completeness="")
    ended = ended_step(found, StepStatus.DONE, detail="it follows already", now_ms=now_ms)
    return _enter(ended, STAND_BY, now_ms=now_ms)


def _onward(record: Rejoin, *, now_ms: int) -> Rejoin:
    ended = ended_step(record, StepStatus.DONE, detail=_detail(record), now_ms=now_ms)
    following = record.cursor + 1
    if record.cursor == FIND and not record.has_diverged:
        following = RECONCILE
    if following == len(STEPS):
        return _end(ended, RejoinPhase.SUCCEEDED, now_ms=now_ms)
    entered = _enter(ended, following, now_ms=now_ms)
    if following != APPROVE:
        return entered
    if record.needs_approval:
        return _hold_for_approval(entered)
    return _onward(entered, now_ms=now_ms)


def _detail(record: Rejoin) -> str:
    if record.cursor == APPROVE and not record.approved_by:
        return "skipped: all of it is in quarantine"
    if record.cursor == APPROVE:
        return f"by {record.approved_by}"
    if record.cursor in (FIND, FIND + 1):
        return f"{record.diverged.get('total', 0)} changes, {record.completeness}"
    return ""


def _on_refusal(record: Rejoin, reason: str, *, now_ms: int) -> Rejoin:
    why = f"{record.cluster} refused: {reason}"
    ended = ended_step(record, StepStatus.FAILED, detail=why, now_ms=now_ms)
    rounds = sum(step.step == STEPS[FIND].name for step in record.history)
    if record.cursor == RECONCILE and not record.has_diverged and rounds < FIND_ROUNDS_MAX:
        # More was written there meanwhile: look again.
        return _enter(ended, FIND, now_ms=now_ms)
    if record.attempt < record.step.attempts_max:
        return _enter(ended, record.cursor, attempt=record.attempt + 1, now_ms=now_ms)
    problem = Problem(
        happened=f"{record.step.name} failed: {why}",
        state=_state(record),
        next=f"remove the cause at {record.cluster}, and then: mesh rejoins resume {record.id}",
    )
    return attrs.evolve(ended, phase=RejoinPhase.HELD, problem=problem)


def _on_silence(record: Rejoin, awaiting: Revision) -> Rejoin:
    """Tell people; what was asked stays asked, and a late answer goes on with it."""
    if record.phase is not RejoinPhase.ADVANCING or awaiting != record.awaiting:
        return record
    problem = Problem(
        happened=f"{record.cluster} did not answer {record.step.name} within"
        f" {record.step.timeout_ms} ms",
        state=_state(record),
        next=f"goes on by itself when it answers; or: mesh rejoins resume {record.id}",
    )
    return attrs.evolve(record, phase=RejoinPhase.HELD, problem=problem)


def _hold_for_approval(record: Rejoin) -> Rejoin:
    total = record.diverged.get("total", 0)
    problem = Problem(
        happened=f"not every change that {record.cluster} has and its successor has not is known:"
        f" {total} are in quarantine, {record.completeness}",
        state=_state(record),
        next=f"look at them: mesh quarantine list {record.group} --cluster {record.cluster};"
        f" then: mesh rejoins approve {record.id} --reason TEXT",
    )
    return attrs.evolve(record, phase=RejoinPhase.HELD, problem=problem)


def _on_approval(record: Rejoin, event: Approved, *, now_ms: int) -> Rejoin:
    if record.phase is not RejoinPhase.HELD or record.cursor != APPROVE:
        return record
    approved = attrs.evolve(
        record, phase=RejoinPhase.ADVANCING, problem=None, approved_by=event.actor
    )
    return _onward(approved, now_ms=now_ms)


def _on_resume(record: Rejoin, *, now_ms: int) -> Rejoin:
    if record.phase is not RejoinPhase.HELD or record.cursor == APPROVE:
        return record
    return _enter(record, record.cursor, now_ms=now_ms)


def _on_overtaken(record: Rejoin, event: Overtaken, *, now_ms: int) -> Rejoin:
    if event.awaiting != record.awaiting:
        return record
    ended = ended_step(record, StepStatus.FAILED, detail="a failover came first", now_ms=now_ms)
    return _enter(ended, record.cursor, attempt=record.attempt, now_ms=now_ms)


def _enter(record: Rejoin, cursor: int, *, now_ms: int, attempt: int = 1) -> Rejoin:
    step = STEPS[cursor]
    begun = StepRecord(step=step.name, status=StepStatus.RUNNING, started_ms=now_ms)
    return attrs.evolve(
        record,
        phase=RejoinPhase.ADVANCING,
        problem=None,
        cursor=cursor,
        attempt=attempt,
        awaiting=None if step.command is None else ABSENT,
        since_ms=now_ms,
        history=(*record.history, begun),
    )


def _end(record: Rejoin, phase: RejoinPhase, *, now_ms: int) -> Rejoin:
    return attrs.evolve(record, phase=phase, awaiting=None, ended_ms=now_ms, problem=None)


def _state(record: Rejoin) -> str:
    written = "has been" if record.cursor > RECONCILE else "nothing has been"
    return f"{record.active} serves {record.group}; {written} written over at {record.cluster}"
