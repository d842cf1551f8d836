"""An automatic failover stays within its policy to the end, and the policy within what can be."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from coordinator.api.metrics import Metrics
from coordinator.api.operations import Operations
from coordinator.automatic.policy import check_policy, least_seconds
from coordinator.failover import machine
from coordinator.failover.loss import FenceStatus, Loss, LossBound, LossStatement
from coordinator.failover.plan import EMERGENCY_1
from coordinator.failover.record import (
    Emergency,
    Failover,
    FailoverKind,
    Phase,
    with_revision,
)
from fencing.timing import PROFILES
from meshkit.commands import Answer, AnswerOutcome, CommandStep
from meshkit.errors import InvalidInput
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import CoordinationLoss, FailoverMode, GroupPolicy, Lineage
from meshkit.names import FailoverId
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence, Token
from tests.coordinator.automatic.bench import ALICE, TTL_MS, bench
from tests.coordinator.automatic.facts import AUTOMATIC, ORDERS, PAUSE, A, B

ALLOWED = LossBound(records=100, seconds=12)
ON = Lineage(
    parent=A,
    parent_incarnation=Incarnation("x"),
    parent_epoch=Epoch(1),
    sequence=Sequence(5),
    may_go_on=True,
)


def stating(*, automatic: bool = True) -> Failover:
    """Return an emergency that has fenced its source, frozen its target, and states the loss."""
    record = machine.begin(
        Failover(
            id=FailoverId("f-1"),
            group=ORDERS,
            kind=FailoverKind.EMERGENCY,
            plan=EMERGENCY_1.name,
            source=A,
            target=B,
            epoch_before=Epoch(1),
            incarnation=1,
            authority_revision=Revision(5),
            source_token=Token(incarnation=1, revision=Revision(5)),
            emergency=Emergency(accept=ALLOWED, automatic=automatic),
        ),
        now_ms=0,
    )
    revision = 10
    while machine.step_in_hand(record).name != "state_loss":
        record = with_revision(record, Revision(revision))
        record = machine.advance(record, _next(record, revision), now_ms=0)
        revision += 1
    return record


def _next(record: Failover, revision: int) -> machine.Event:
    due = machine.decide(record)
    if isinstance(due, machine.Perform):
        return machine.StepDone(step=due.step)
    assert isinstance(due, machine.AwaitAnswer)
    if due.command.step is CommandStep.SEAL:
        return machine.FenceEnded(fence=FenceStatus.LEASE_EXPIRED, permit_ended_ms=1_000)
    answer = Answer(
        group=ORDERS,
        cluster=due.command.cluster,
        step=due.command.step,
        failover=record.id,
        token=Token(incarnation=1, revision=due.revision),
        outcome=AnswerOutcome.DONE,
        stands_on=ON,
    )
    return machine.Answered(answer=answer)


def stated(record: Failover, *, seconds: int, records: int) -> Failover:
    loss = Loss(
        cluster=B,
        certain=ON.sequence,
        certain_of=A,
        certain_epoch=Epoch(1),
        window_ms=seconds * 1_000,
        records_known=records,
    )
    statement = LossStatement(source=A, fence=FenceStatus.LEASE_EXPIRED, target=loss)
    return machine.advance(record, machine.LossStated(statement=statement), now_ms=0)


def test_within_the_bound_it_goes_on_without_anybody() -> None:
    record = stated(stating(), seconds=12, records=100)

    record = machine.advance(record, machine.StepDone(step="consent"), now_ms=0)

    assert machine.decide(record) == machine.MoveAuthority()


@pytest.mark.parametrize(("seconds", "records"), [(13, 0), (0, 101), (13, 101)])
def test_beyond_the_bound_everything_is_undone_and_authority_does_not_move(
    seconds: int, records: int
) -> None:
    """The copy is thawed and the source released: it is as before, and a person decides."""
    record = stated(stating(), seconds=seconds, records=records)

    undone = []
    while not record.phase.is_final:
        assert record.phase is Phase.UNDOING
        undone.append(machine.step_in_hand(record).name)
        record = with_revision(record, Revision(100 + len(undone)))
        assert record.awaiting is not None
        timed_out = machine.TimedOut(revision=record.awaiting.revision, detail="it is gone")
        record = machine.advance(record, timed_out, now_ms=0)

    assert undone == ["thaw", "release"]
    assert record.phase is Phase.ROLLED_BACK
    assert not record.authority_moved
    assert record.problem is not None
    assert "more may be lost than the policy allows" in record.problem.happened
    assert f"mesh groups acknowledge {ORDERS}" in record.problem.next


def test_where_a_person_began_it_that_person_is_waited_for() -> None:
    record = stated(stating(automatic=False), seconds=13, records=0)

    assert isinstance(machine.decide(record), machine.AwaitConsent)


def test_a_person_may_allow_more_while_it_runs() -> None:
    """The newest word counts, also over the policy's."""
    consent = machine.ConsentGiven(bound=LossBound(unknown=True), actor="operator/alice")
    record = machine.advance(stating(), consent, now_ms=0)

    record = stated(record, seconds=13, records=101)

    assert record.phase is Phase.ADVANCING
    assert machine.step_in_hand(record).name == "consent"


# --- what a policy may say ----------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_bound_that_could_never_be_kept_is_refused_with_the_arithmetic(profile: str) -> None:
    """Architecture 5.1 rule 8: that writes have stopped is known only when the lease is over."""
    ttl_ms = PROFILES[profile].coordination_ttl_ms
    least = least_seconds(ttl_ms)
    assert least * 1_000 > ttl_ms
    kept = attrs.evolve(AUTOMATIC, automatic_loss_seconds_max=least)
    check_policy(kept, coordination_ttl_ms=ttl_ms)

    with pytest.raises(InvalidInput, match=f"{least - 1} s can never be kept") as refused:
        check_policy(
            attrs.evolve(kept, automatic_loss_seconds_max=least - 1), coordination_ttl_ms=ttl_ms
        )

    assert f"at least {least} s" in refused.value.hint


@pytest.mark.parametrize("field", ["automatic_loss_seconds_max", "automatic_loss_records_max"])
def test_nothing_is_automatic_without_a_bound_on_the_loss(field: str) -> None:
    policy = attrs.evolve(AUTOMATIC, **{field: None})

    with pytest.raises(InvalidInput, match="needs a bound"):
        check_policy(policy, coordination_ttl_ms=9_000)


def test_a_window_shorter_than_a_lease_is_refused() -> None:
    policy = attrs.evolve(AUTOMATIC, automatic_after_ms=8_999)

    with pytest.raises(InvalidInput, match="shorter than the lease"):
        check_policy(policy, coordination_ttl_ms=9_000)


def test_a_manual_policy_needs_none_of_it() -> None:
    check_policy(GroupPolicy(), coordination_ttl_ms=9_000)


def test_an_automatic_policy_does_not_go_with_writes_that_go_on_by_promise() -> None:
    """Nobody can know that such a cluster has stopped, so nothing would bound the loss."""
    policy = GroupPolicy(
        failover=FailoverMode.AUTOMATIC,
        on_coordination_loss=CoordinationLoss.KEEP,
        automatic_loss_records_max=100,
        automatic_loss_seconds_max=60,
    )

    with pytest.raises(InvalidInput, match="does not go with on_coordination_loss: keep"):
        check_policy(policy, coordination_ttl_ms=9_000)

    assert GroupPolicy().failover is FailoverMode.MANUAL


async def test_the_api_refuses_a_policy_that_cannot_be_kept_and_takes_it_when_it_can() -> None:
    """With the lease times that this coordinator is configured for; nothing is stored before."""
    async with bench(policy=GroupPolicy()) as made:
        operations = Operations(store=made.store, clock=made.clock, coordination_ttl_ms=TTL_MS)

        async def put(**policy: Any) -> dict[str, Any]:
            return await operations.put_group(ORDERS, {"policy": policy}, ALICE, dry_run=False)

        with pytest.raises(InvalidInput, match="needs a bound"):
            await put(failover="automatic")
        with pytest.raises(InvalidInput, match="can never be kept"):
            await put(
                failover="automatic", automatic_loss_seconds_max=9, automatic_loss_records_max=0
            )
        with pytest.raises(InvalidInput, match="expected one of manual, automatic"):
            await put(failover="sometimes")
        assert (await operations.group(ORDERS))["automatic"]["mode"] == "manual"

        done = await put(
            failover="automatic", automatic_loss_seconds_max=12, automatic_loss_records_max=0
        )

        assert done["changed"]
        assert done["group"]["automatic"]["standing"] == "ready"


async def test_every_coordinator_tells_how_groups_stand_as_metrics() -> None:
    """Whoever is to be woken is woken by these."""
    async with bench() as made:
        metrics = Metrics()

        async def told() -> list[str]:
            rows = await made.automating.all_standing()
            text = metrics.exposition(is_leading=True, streams=[], automatic=rows).decode()
            return [line for line in text.splitlines() if line.startswith("mesh_automatic")]

        assert await told() == [
            'mesh_automatic_ready{group="orders"} 1.0',
            'mesh_automatic_withheld{group="orders"} 0.0',
            'mesh_automatic_unacknowledged{group="orders"} 0.0',
        ]
        await made.put(Keys.automation_pause, PAUSE)
        assert 'mesh_automatic_obstacle{group="orders",obstacle="automation-paused"} 1.0' in (
            await told()
        )
