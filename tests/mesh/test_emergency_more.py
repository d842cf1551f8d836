"""Emergencies that are cut off rather than dead, aborted, superseded, or ask for consent."""

import asyncio

import attrs
import pytest

from chaos.checkers import check_handover, check_one_writer
from chaos.history import History, Write
from coordinator.api.views import failover_view
from coordinator.failover.loss import FenceStatus, LossBound
from coordinator.failover.plan import EMERGENCY_1, PLANNED_1, TAKE_IN_MS_MAX
from coordinator.failover.record import FailoverKind, Phase
from coordinator.governance.audit import AuditEntry
from meshkit.codec import decode, encode, to_plain
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import RegionalKeys
from meshkit.model import Group, Holder, VerifyMode
from meshkit.names import ClusterName, FailoverId
from meshkit.ordinals import Revision
from meshkit.regional import Fence, FenceMode
from meshkit.store.txn import Put, Txn, prefix_range
from tests.mesh.emergencies import (
    ANYTHING,
    GROUP,
    OPERATOR,
    acknowledged,
    begin,
    emergency,
    kill_region,
    until,
    until_step,
    until_written,
    writing,
)
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.regions import until_following, until_permit
from tests.mesh.test_whole_mesh import until_equal, until_in_step

pytestmark = pytest.mark.slow


async def fence_at(mesh: MemoryMesh, cluster: str) -> Fence:
    item = await mesh.stores[cluster].get(RegionalKeys.fence(GROUP))
    assert item is not None
    return decode(Fence, item.value)


async def test_a_region_that_answers_loses_nothing_and_follows_by_itself() -> None:
    """Confirmed: sealed. Then everybody stands on an ordinary cut, and nobody has to rejoin."""
    mesh = MemoryMesh()
    history = History()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 60)

            record = await until(mesh, await begin(mesh, emergency("b", accept_loss=None)))

            await until_written(history, 20, at="b")
        states = await until_equal(mesh)

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.fence is FenceStatus.CONFIRMED
    assert record.emergency.loss is not None
    assert record.emergency.loss.target.is_none
    assert [w for w in history.acknowledged() if w.key not in states[ClusterName("b")]] == []
    assert check_one_writer(history).is_valid


async def test_without_consent_it_waits_and_an_abort_gives_everything_back() -> None:
    """S8: frozen while another group of the stream goes on, then thawed; nothing is skipped."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await mesh.apply("users", "/users/")
        await until_in_step(mesh)
        history = History()
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 30)
            await mesh.processes["a-0"].kill()
            mesh.network.hang_up("a-0")
            asked = emergency("b", accept_loss=LossBound(seconds=0), no_fence_wait=True)
            failover = await begin(mesh, asked)
            waits = await until_step(mesh, failover, "consent")
            frozen = await fence_at(mesh, "b")
            before = await mesh.content("b")
            mesh.start_replicator("a", 0)

            await mesh.operations().steering.abort(failover, "it is back", OPERATOR)
            record = await until(mesh, failover)

            count = len(acknowledged(history, at="a"))
            await until_written(history, count + 30, at="a")
        states = await until_equal(mesh)

    assert waits.emergency is not None
    assert frozen.mode is FenceMode.HELD
    assert record.phase is Phase.ROLLED_BACK
    assert len(states[ClusterName("b")]) > len(before)
    assert [w for w in history.acknowledged() if w.key not in states[ClusterName("b")]] == []


async def test_consent_is_bound_to_what_was_stated_and_everybody_is_told_the_same() -> None:
    """The record, the API and the audit hold one and the same statement."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        await kill_region(mesh, "a")
        failover = await begin(mesh, emergency("b", accept_loss=None, no_fence_wait=True))
        await until_step(mesh, failover, "consent")

        too_little = LossBound(records=10, seconds=10)
        await mesh.operations().steering.consent(failover, too_little, OPERATOR)
        still = (await mesh.operations().failover(failover)).record
        answer = await mesh.operations().steering.consent(failover, ANYTHING, OPERATOR)
        record = await until(mesh, failover)

        audit = await mesh.coordination.range(prefix_range(Keys.audit(GROUP, 0)[:-10]))
        entries = [decode(AuditEntry, item.value) for item in audit.items]

    assert still.phase is Phase.ADVANCING
    assert answer["changed"]
    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.fence is FenceStatus.UNKNOWN
    stated = to_plain(record.emergency.loss)
    told = [entry.facts for entry in entries if "loss" in entry.facts]
    assert told
    assert all(facts["loss"] == stated for facts in told)
    shown = answer["failover"]["emergency"]["loss"]
    assert {name: shown[name] for name in stated} == stated
    actions = [entry.action for entry in entries]
    assert actions.count("failover.loss_accepted") == 2


async def test_s22_a_region_that_heals_while_a_person_reads_stays_fenced() -> None:
    """S22: the holder cannot be made anew under the seal, however long the consent takes."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        await mesh.processes["a-0"].kill()
        mesh.network.hang_up("a-0")
        failover = await begin(mesh, emergency("b", accept_loss=LossBound(records=0)))
        await until_step(mesh, failover, "consent")

        mesh.start_replicator("a", 0)
        async with asyncio.timeout(10):
            while (await fence_at(mesh, "a")).mode is FenceMode.OPEN:
                await asyncio.sleep(0.01)
        holder = await mesh.coordination.get(Keys.holder(GROUP))
        permit = await mesh.stores["a"].get(RegionalKeys.permit(GROUP))
        await mesh.operations().steering.consent(failover, ANYTHING, OPERATOR)
        record = await until(mesh, failover)

    assert holder is None
    assert permit is None
    assert record.phase is Phase.SUCCEEDED, record.problem


async def test_a_region_that_comes_back_leaves_its_successors_proof_of_life_alone() -> None:
    """It finds the order to seal itself, long overdue. The next emergency still has to wait."""
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        mesh.sights["a-0"].partition()
        first = await until(mesh, await begin(mesh, emergency("b", accept_loss=ANYTHING)))
        await until_permit(mesh, "b", first.epoch_after)

        mesh.sights["a-0"].heal()
        await until_following(mesh, "a", first.epoch_after)
        holder = await mesh.coordination.get(Keys.holder(GROUP))

    assert first.phase is Phase.SUCCEEDED, first.problem
    assert holder is not None
    assert decode(Holder, holder.value).cluster == "b"


async def test_s18_an_emergency_takes_the_place_of_a_failover_that_is_stuck() -> None:
    """S18: the source of a planned failover dies drained, so that nothing can be undone."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        mesh.network.hang_up("a-0")
        mesh.network.break_all()
        planned = emergency("b", "p-1", accept_loss=None)
        planned = attrs.evolve(
            planned, kind=FailoverKind.PROMOTE, waive=("lag", "pause_budget", "verify")
        )
        first = await begin(mesh, planned)
        await until_step(mesh, first, "converge")
        await kill_region(mesh, "a")

        second = await begin(mesh, emergency("b", "e-2", accept_loss=ANYTHING))
        record = await until(mesh, second)
        before = (await mesh.operations().failover(first)).record

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.supersedes == first
    assert before.phase is Phase.SUPERSEDED


async def test_a_planned_failover_that_fails_goes_on_as_an_emergency_and_says_so() -> None:
    """Graceful first; only with the consent given, and labelled."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        await kill_region(mesh, "a")
        asked = emergency("b", planned_first=True, accept_loss=ANYTHING)

        record = await until(mesh, await begin(mesh, asked))

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.kind is FailoverKind.EMERGENCY
    assert record.emergency is not None
    assert record.emergency.after_planned


@pytest.mark.parametrize("no_fence_wait", [False, True])
async def test_s26_the_seal_in_the_stream_of_a_region_that_is_cut_off_proves_that_nothing_is_lost(
    no_fence_wait: bool,
) -> None:
    """The target tells the region of its seal over the link, and takes in its log up to the cut.

    Its writers go on until its permit runs out or the seal is told; all they were told is at the
    target. They see their own region and nothing else, so that they and those outside may well
    overlap where nobody waits for the fence.
    """
    mesh = MemoryMesh(clusters=("a", "b"))
    history = History()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        async with (
            mesh.gate() as gate,
            mesh.gate(inside="a") as own,
            writing(gate, history, writers=2),
            writing(own, history, writers=2, name="in-a-"),
        ):
            await until_written(history, 60)
            mesh.sights["a-0"].partition()
            cut_off = len(inside(history))

            asked = emergency("b", accept_loss=None, no_fence_wait=no_fence_wait)
            record = await until(mesh, await begin(mesh, asked))

            await until_written(history, 10, at="b")
        content = await mesh.content("b")

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.loss is not None
    assert record.emergency.loss.target.is_none
    assert record.cut is not None
    assert record.emergency.fence is FenceStatus.CONFIRMED
    taking_in = next(step for step in record.history if step.step == "take_in")
    assert taking_in.ended_ms is not None
    assert taking_in.ended_ms - taking_in.started_ms < TAKE_IN_MS_MAX
    assert no_fence_wait or len(inside(history)) > cut_off
    assert [w for w in history.acknowledged() if w.key not in content] == []
    assert check_one_writer(history).is_valid
    handover = check_handover(history, before=record.epoch_before, after=record.epoch_after)
    assert handover.is_valid, handover.detail


def inside(history: History) -> list[Write]:
    return [w for w in acknowledged(history, at="a") if w.writer.startswith("in-a-")]


# --- planned first ------------------------------------------------------------------------------


async def with_pause_budget(mesh: MemoryMesh, budget_ms: int) -> None:
    item = await mesh.coordination.get(Keys.group(GROUP))
    assert item is not None
    group = decode(Group, item.value)
    policy = attrs.evolve(group.policy, pause_budget_ms=budget_ms, verify=VerifyMode.OFF)
    put = Put(Keys.group(GROUP), encode(attrs.evolve(group, policy=policy)))
    await mesh.coordination.commit(Txn(operations=(put,)))


async def until_emergency(mesh: MemoryMesh, failover: FailoverId) -> None:
    async with asyncio.timeout(20):
        while True:
            record = (await mesh.operations().failover(failover)).record
            if record.plan == EMERGENCY_1.name:
                return
            assert not record.phase.is_final, record.problem
            await asyncio.sleep(0.01)


async def test_planned_first_that_succeeds_is_a_planned_failover_and_nothing_else() -> None:
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        asked = emergency("b", planned_first=True, accept_loss=None)
        dry = await mesh.operations().begin(GROUP, attrs.evolve(asked, dry_run=True), OPERATOR)

        failover = await begin(mesh, asked)
        record = await until(mesh, failover)
        view = failover_view(record, Revision(1))
        repeated = await mesh.operations().begin(GROUP, asked, OPERATOR)

    planned = dry.body["preview"]["planned"]
    assert planned["steps"] == list(PLANNED_1.step_names)
    assert {check["name"] for check in planned["checks"]} >= {"lag", "pause_budget"}
    assert dry.body["preview"]["steps"] == list(EMERGENCY_1.step_names)
    assert dry.body["preview"]["loss"]["text"]
    assert record.phase is Phase.SUCCEEDED, record.problem
    assert (record.kind, record.plan) == (FailoverKind.PROMOTE, PLANNED_1.name)
    assert (view["emergency"], view["planned_first"]) == (None, True)
    assert repeated.body["failover"]["id"] == failover


async def test_a_pause_budget_that_runs_out_after_the_drain_goes_on_as_an_emergency() -> None:
    """Writers of a drained source must not wait for a target that does not converge."""
    mesh = MemoryMesh(clusters=("a", "b"))
    history = History()
    async with running(mesh):
        await mesh.apply()
        await with_pause_budget(mesh, 600)
        await until_in_step(mesh)
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 30)
            mesh.sights["b-0"].partition()
            failover = await begin(mesh, emergency("b", planned_first=True, accept_loss=ANYTHING))
            await until_emergency(mesh, failover)
            mesh.sights["b-0"].heal()

            record = await until(mesh, failover)

            await until_written(history, 10, at="b")
        content = await mesh.content("b")

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert (record.kind, record.plan) == (FailoverKind.EMERGENCY, EMERGENCY_1.name)
    assert record.emergency is not None
    assert "pause budget of 600 ms" in record.emergency.after_planned
    assert "drain" in {step.step for step in record.history}
    assert record.emergency.loss is not None
    assert record.emergency.loss.target.is_none, "the source was drained: its end is known"
    assert [w for w in history.acknowledged() if w.key not in content] == []
    assert check_one_writer(history).is_valid


async def test_planned_first_without_consent_waits_and_can_be_given_up() -> None:
    """Falling back is no consent: the loss is stated, and somebody has to accept it."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        await kill_region(mesh, "a")
        failover = await begin(mesh, emergency("b", planned_first=True, accept_loss=None))
        waiting = await until_step(mesh, failover, "consent")
        shown = failover_view(waiting, Revision(1))
        await mesh.operations().steering.abort(failover, "not tonight", OPERATOR)
        record = await until(mesh, failover)
        active = (await mesh.operations().group(GROUP))["active"]

    assert shown["emergency"]["awaits_consent"] is True
    assert shown["emergency"]["after_planned"]
    assert shown["emergency"]["loss"]["objections"]
    assert record.phase is Phase.ROLLED_BACK
    assert active == ClusterName("a")


async def test_consent_given_while_the_planned_part_runs_holds_for_the_emergency() -> None:
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        mesh.sights["a-0"].partition()
        asked = emergency("b", planned_first=True, accept_loss=None)
        failover = await begin(mesh, asked)
        again = attrs.evolve(asked, accept_loss=ANYTHING)
        await mesh.operations().begin(GROUP, again, OPERATOR)
        planned = (await mesh.operations().failover(failover)).record
        await kill_region(mesh, "a")

        record = await until(mesh, failover)

    assert planned.fallback is not None
    assert planned.fallback.accept == ANYTHING
    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.accepted_by == str(OPERATOR)
