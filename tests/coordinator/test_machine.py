"""The pure machine: old news, faults of answers, and what people are told."""

from __future__ import annotations

import attrs
import pytest

from coordinator.failover import machine
from coordinator.failover.passing import Known, begun_checked
from coordinator.failover.plan import PLANNED_1
from coordinator.failover.record import Failover, FailoverKind, Phase, StepStatus, with_revision
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, CommandStep
from meshkit.errors import NewerSchema, Refused
from meshkit.model import GroupPolicy, VerifyMode
from meshkit.names import FailoverId
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Revision, Sequence, Token
from tests.coordinator.fake_region import ORDERS, A, B

INC = Incarnation("x")


def fresh() -> Failover:
    record = Failover(
        id=FailoverId("f-1"),
        group=ORDERS,
        kind=FailoverKind.PROMOTE,
        plan="planned/1",
        source=A,
        target=B,
        epoch_before=Epoch(1),
        incarnation=1,
        authority_revision=Revision(5),
        source_token=Token(incarnation=1, revision=Revision(5)),
    )
    return machine.begin(record, now_ms=0)


def answer(record: Failover, **changes) -> machine.Answered:
    due = machine.decide(record)
    assert isinstance(due, machine.AwaitAnswer)
    made = Answer(
        group=ORDERS,
        cluster=due.command.cluster,
        step=due.command.step,
        failover=record.id,
        token=Token(incarnation=1, revision=due.revision),
        outcome=AnswerOutcome.DONE,
        cut=Sequence(7) if due.command.step is CommandStep.DRAIN else None,
        prefixes=("/at-the-cut/",) if due.command.step is CommandStep.DRAIN else (),
        watermark=Sequence(7) if due.command.step is CommandStep.CONVERGE else None,
        incarnation=INC,
    )
    return machine.Answered(answer=attrs.evolve(made, **changes))


def at(step: str) -> Failover:
    record, revision = fresh(), 10
    while machine.step_in_hand(record).name != step:
        match machine.decide(record):
            case machine.Perform(step=name):
                event: machine.Event = machine.StepDone(step=name)
            case machine.MoveAuthority():
                token = Token(incarnation=1, revision=Revision(revision))
                event = machine.AuthorityMoved(token=token)
            case _:
                event = answer(record)
        record = machine.advance(record, event, now_ms=0)
        revision += 1
        record = with_revision(record, Revision(revision))
    return record


@pytest.mark.parametrize("step", ["catch_up", "drain", "converge", "open", "reverse"])
def test_an_answer_with_another_token_is_old_news(step: str) -> None:
    """Also one of another incarnation of the coordination etcd, whatever its revision."""
    record = at(step)
    assert record.awaiting is not None
    right = record.awaiting.revision

    for token in (
        Token(incarnation=1, revision=Revision(right - 1)),
        Token(incarnation=1, revision=Revision(right + 1)),
        Token(incarnation=2, revision=right),
    ):
        assert machine.advance(record, answer(record, token=token), now_ms=0) is record
    assert machine.advance(record, answer(record), now_ms=0) is not record


def test_only_the_catching_up_may_be_skipped_and_only_before_it_is_asked_for() -> None:
    """What was asked is waited for: its answer may be under way."""
    asked = at("catch_up")
    assert asked.awaiting is not None
    unasked = attrs.evolve(asked, awaiting=attrs.evolve(asked.awaiting, revision=ABSENT))
    skip = machine.StepDone(step="catch_up", skipped=True)

    skipped = machine.advance(unasked, skip, now_ms=0)

    assert machine.step_in_hand(skipped).name == "drain"
    assert skipped.history[-2].status is StepStatus.SKIPPED
    assert machine.advance(asked, skip, now_ms=0) is asked
    done = machine.StepDone(step="catch_up")
    assert machine.advance(unasked, done, now_ms=0) is unasked
    for name in ("drain", "converge", "open", "reverse"):
        other = at(name)
        assert other.awaiting is not None
        other = attrs.evolve(other, awaiting=attrs.evolve(other.awaiting, revision=ABSENT))
        step = machine.StepDone(step=name, skipped=True)
        assert machine.advance(other, step, now_ms=0) is other


def test_what_is_known_when_it_begins_is_not_done_again() -> None:
    """As far as the first step that somebody else has to take."""
    new = attrs.evolve(fresh(), history=())

    def begun(record: Failover, **known: str) -> tuple[str, tuple[str, ...]]:
        first, words = begun_checked(record, Known(**known), now_ms=0)
        return machine.step_in_hand(first).name, words

    unverified = attrs.evolve(new, policy=GroupPolicy(verify=VerifyMode.OFF))
    passed = ("check done", "approve skipped")
    assert begun(new) == ("verify", passed)
    assert begun(new, close="near") == ("verify", passed)
    assert begun(new, equal="equal") == ("catch_up", (*passed, "verify done"))
    assert begun(unverified) == ("catch_up", (*passed, "verify skipped"))
    assert begun(unverified, close="near") == (
        "drain",
        (*passed, "verify skipped", "catch_up skipped"),
    )


@pytest.mark.parametrize("name", PLANNED_1.step_names)
def test_an_abort_is_possible_exactly_until_the_pivot(name: str) -> None:
    """And it undoes the drain as soon as a drain may have happened."""
    record = at(name)
    index = PLANNED_1.step_names.index(name)

    after = machine.advance(record, machine.AbortRequested(actor="alice"), now_ms=0)

    if index > PLANNED_1.pivot:
        assert after is record
        with pytest.raises(Refused):
            machine.check_abort(record)
    elif index >= PLANNED_1.step_names.index("drain"):
        assert after.phase is Phase.UNDOING
        assert machine.step_in_hand(after).name == "undrain"
    else:
        assert after.phase is Phase.ROLLED_BACK


def test_a_drain_without_a_cut_and_a_short_watermark_are_failures() -> None:
    """Both sides of the boundary are checked: the pivot stands on these two numbers."""
    drained = machine.advance(at("drain"), answer(at("drain"), cut=None), now_ms=0)
    short = answer(at("converge"), watermark=Sequence(6))
    converged = machine.advance(at("converge"), short, now_ms=0)

    assert drained.phase is converged.phase is Phase.UNDOING


def test_a_repeated_refusal_does_not_store_a_held_record_again_and_again() -> None:
    """The driver looks at the same answer each time something changes."""
    record = at("reverse")
    for revision in (90, 91):
        refusal = answer(record, outcome=AnswerOutcome.REFUSED, reason="no")
        record = with_revision(machine.advance(record, refusal, now_ms=0), Revision(revision))
    assert record.phase is Phase.HELD
    assert record.awaiting is not None
    refused = refusal.answer
    again = machine.Answered(
        answer=attrs.evolve(refused, token=Token(incarnation=1, revision=record.awaiting.revision))
    )

    assert machine.advance(record, again, now_ms=0) is record


def test_a_held_failover_says_whether_it_takes_an_operator() -> None:
    """Silence may still be broken; what was refused will not be answered again by itself."""
    silent = at("reverse")
    for revision in (90, 91):
        assert silent.awaiting is not None
        silence = machine.TimedOut(revision=silent.awaiting.revision, detail="silence")
        silent = with_revision(machine.advance(silent, silence, now_ms=0), Revision(revision))
    assert silent.awaiting is not None
    token = Token(incarnation=1, revision=silent.awaiting.revision)
    refusal = answer(
        at("reverse"), token=token, outcome=AnswerOutcome.REFUSED, reason="the link is down"
    )
    refused = machine.advance(silent, refusal, now_ms=0)

    assert silent.problem is not None
    assert silent.problem.next == (
        f"goes on by itself when {A} answers; or: mesh failovers resume f-1"
    )
    assert refused.problem is not None
    assert "the link is down" in refused.problem.happened
    assert refused.problem.next == (
        f"an operator must remove the cause at {A}, and then: mesh failovers resume f-1"
    )


def test_only_a_refusal_that_leads_to_another_attempt_is_taken_in_late() -> None:
    """Whatever ends the step does so at once: writes may be paused meanwhile."""
    record = at("open")
    refused = answer(record, outcome=AnswerOutcome.REFUSED, reason="no lease").answer
    last = attrs.evolve(record, attempt=3)

    retry = machine.retry_timer(record, refused)

    assert retry is not None
    assert retry.limit_ms == 500
    assert machine.retry_timer(record, answer(record).answer) is None
    assert machine.retry_timer(last, refused) is None
    for step in ("catch_up", "drain", "converge"):
        once = answer(at(step), outcome=AnswerOutcome.REFUSED, reason="no").answer
        assert machine.retry_timer(at(step), once) is None


def test_a_failing_check_refuses_and_nothing_was_done() -> None:
    """Exit code 3: not rolled back, for there was nothing to roll back."""
    failed = machine.StepFailed(step="check", detail="lag: 9 s")

    record = machine.advance(fresh(), failed, now_ms=0)

    assert (record.phase, record.phase.exit_code) == (Phase.REFUSED, 3)
    assert record.problem is not None
    assert "lag: 9 s" in record.problem.happened


def test_undrain_gives_back_the_epoch_and_token_the_source_had() -> None:
    """The same epoch goes on; so clients' permits are valid again, unchanged."""
    record = machine.advance(at("converge"), machine.AbortRequested(actor="a"), now_ms=0)

    command = machine.command_to_put(record)

    assert command is not None
    assert (command.step, command.cluster, command.epoch) == (CommandStep.UNDRAIN, A, 1)
    assert command.token == record.source_token


def test_open_and_reverse_carry_the_new_epoch_and_its_lineage() -> None:
    """The child's epoch stands on exactly the parent's cut, and covers exactly what it covered."""
    for step, cluster in (("open", B), ("reverse", A)):
        due = machine.decide(at(step))
        assert isinstance(due, machine.AwaitAnswer)
        command = due.command

        assert (command.cluster, command.epoch) == (cluster, 2)
        assert command.lineage is not None
        assert (command.lineage.parent, command.lineage.sequence) == (A, 7)
        assert command.lineage.prefixes == ("/at-the-cut/",)
        assert command.token == at(step).target_token


def test_a_record_survives_storing_and_reading() -> None:
    """Also its vector, its problem, its history."""
    record = machine.advance(at("converge"), machine.AbortRequested(actor="a"), now_ms=3)

    assert decode(Failover, encode(record)) == record


def test_a_plan_that_is_not_known_here_is_not_driven() -> None:
    """A newer coordinator began it: this one must be upgraded first."""
    with pytest.raises(NewerSchema, match=r"planned/9.*planned/1"):
        machine.decide(attrs.evolve(fresh(), plan="planned/9"))


def test_the_pause_has_one_budget_over_all_its_steps() -> None:
    """A successor begins it with what is left; other steps begin anew."""
    drain, converge = machine.timer(at("drain")), machine.timer(at("converge"))
    opening = machine.timer(at("open"))

    assert drain == converge == machine.Timer(key="pause", limit_ms=10_000, since_ms=0)
    assert opening is not None
    assert opening.since_ms is None
