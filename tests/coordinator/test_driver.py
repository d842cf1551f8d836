"""The shell around the machine: elected, killed, deposed, raced, cut off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import attrs
import pytest

from coordinator.api.bodies import FailoverRequest
from coordinator.api.operations import Operations
from coordinator.api.problems import ChecksFailed
from coordinator.failover import machine
from coordinator.failover.record import Failover, FailoverKind, Phase
from coordinator.failover.repository import FailoverRepository
from coordinator.leadership import Leadership, lead
from fencing.election import Election
from meshkit.codec import decode, encode
from meshkit.commands import Command, CommandStep
from meshkit.errors import Refused, TermEnded
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import GroupPolicy, Seal
from meshkit.names import FailoverId, GroupName
from meshkit.ordinals import Epoch, Token
from meshkit.peer import PeerIdentity
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.txn import Put, Txn, prefix_range
from tests.coordinator.fake_region import (
    ORDERS,
    A,
    B,
    FakeMesh,
    background,
    settle_until,
)

ALICE = PeerIdentity(role="operator", name="alice")
BOB = PeerIdentity(role="operator", name="bob")


def asked(target=B, **changes) -> FailoverRequest:
    request = FailoverRequest(
        target=target,
        kind=FailoverKind.PROMOTE,
        expect_epoch=None,
        reason="",
        change="",
        waive=(),
        dry_run=False,
        request_id="r-1",
    )
    return attrs.evolve(request, **changes)


async def begin(mesh: FakeMesh, request: FailoverRequest | None = None) -> FailoverId:
    operations = Operations(store=mesh.store, clock=mesh.clock)
    done = await operations.begin(ORDERS, request or asked(), ALICE)
    return FailoverId(done.body["failover"]["id"])


def leading(mesh: FakeMesh, store: MemoryStore | None = None):
    store = store or mesh.store.connect()
    election = Election(
        store=store, key=Keys.coordinator_leader, value=b"c1", ttl_s=5, clock=mesh.clock
    )
    return Leadership(store=store, election=election, clock=mesh.clock).run()


async def stored(mesh: FakeMesh, failover: FailoverId) -> Failover:
    loaded = await FailoverRepository(store=mesh.store, clock=mesh.clock).load(ORDERS, failover)
    assert loaded is not None
    return loaded.record


async def until(mesh: FakeMesh, failover: FailoverId, *phases: Phase) -> Failover:
    async def reached() -> Failover | None:
        record = await stored(mesh, failover)
        return record if record.phase in phases else None

    return await settle_until(reached)


async def until_step(mesh: FakeMesh, failover: FailoverId, step: str) -> Failover:
    async def reached() -> Failover | None:
        record = await stored(mesh, failover)
        return record if machine.step_in_hand(record).name == step else None

    return await settle_until(reached)


async def test_a_planned_failover_moves_authority_and_pauses_for_no_time() -> None:
    """Nothing in it waits for a clock: every step follows from the answer before."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)

        record = await until(mesh, failover, Phase.SUCCEEDED)

        authority = await mesh.authority()
        assert (authority.active, authority.epoch) == (B, 2)
        assert authority.lineage is not None
        assert authority.lineage.sequence == record.cut == 10
        assert authority.lineage.prefixes == record.cut_prefixes == ("/orders/",)
        assert mesh.writers() == [B]
        assert mesh.clock.now_ms() == 1_000_000
        assert await mesh.store.get(Keys.failover_active(ORDERS)) is None


async def test_the_epochs_token_is_the_revision_that_the_pivot_compared() -> None:
    """Permit, routing and authority carry it, whatever is retried afterwards."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        record = await until(mesh, failover, Phase.SUCCEEDED)

        history = await mesh.store.range(prefix_range(Keys.failover_records(ORDERS)))
        authority = await mesh.store.get(Keys.authority(ORDERS))

        assert record.target_token is not None
        assert authority is not None
        assert record.target_token.revision < authority.mod_revision
        before = await mesh.store.range(
            (Keys.failover(ORDERS, failover), b""), revision=record.target_token.revision
        )
        assert before.items[0].mod_revision == record.target_token.revision
        assert len(history.items) == 1


async def test_failback_goes_to_where_the_writes_came_from() -> None:
    """The operator need not remember which cluster it was."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        first = await begin(mesh)
        await until(mesh, first, Phase.SUCCEEDED)
        await mesh.report()

        back = await begin(mesh, asked(None, kind=FailoverKind.FAILBACK, request_id="r-2"))
        await until(mesh, back, Phase.SUCCEEDED)

        authority = await mesh.authority()
        assert (authority.active, authority.epoch) == (A, 3)
        assert mesh.writers() == [A]


async def test_the_next_failover_waits_until_the_target_reports_about_the_epoch() -> None:
    """A report comes twice a second: right after a failover it is still about the epoch before."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        first = await begin(mesh)
        await until(mesh, first, Phase.SUCCEEDED)
        back = asked(A, request_id="r-2")

        refused = asyncio.ensure_future(begin(mesh, back))
        await mesh.clock.advance_ms(1_900)
        assert not refused.done()
        await mesh.clock.advance_ms(200)
        with pytest.raises(ChecksFailed, match="epoch 1 of the group, which is in epoch 2"):
            await refused

        begun = asyncio.ensure_future(begin(mesh, back))
        await mesh.clock.advance_ms(500)
        await mesh.report()
        await mesh.clock.advance_ms(100)
        await until(mesh, await begun, Phase.SUCCEEDED)
        assert mesh.writers() == [A]


async def test_a_silent_target_uses_up_the_pause_budget_and_the_source_serves_again() -> None:
    """A planned failover never quietly turns lossy."""
    mesh = FakeMesh(policy=GroupPolicy(pause_budget_ms=3_000))
    mesh.regions[B].silent.add(CommandStep.CONVERGE)
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "converge")

        await mesh.clock.advance_ms(2_900)
        still = await stored(mesh, failover)
        await mesh.clock.advance_ms(200)
        record = await until(mesh, failover, Phase.ROLLED_BACK)

        assert still.phase is Phase.ADVANCING
        assert mesh.writers() == [A]
        assert record.problem is not None
        assert "pause budget of 3000 ms" in record.problem.happened
        assert (await mesh.authority()).epoch == 1


async def test_a_source_that_cannot_catch_up_is_never_paused() -> None:
    """Writes are paused only once the target is close."""
    mesh = FakeMesh(policy=GroupPolicy(catch_up_ms_max=5_000))
    mesh.regions[A].silent.add(CommandStep.CATCH_UP)
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "catch_up")
        await mesh.clock.advance_ms(5_100)

        await until(mesh, failover, Phase.ROLLED_BACK)

        assert mesh.writers() == [A]
        assert "drain" not in mesh.regions[A].obeyed


async def test_a_late_answer_to_undrain_ends_a_held_rollback() -> None:
    """Held only while the region's replicators stay down; no operator is needed."""
    mesh = FakeMesh(policy=GroupPolicy(pause_budget_ms=1_000))
    mesh.regions[B].silent.add(CommandStep.CONVERGE)
    mesh.regions[A].silent.add(CommandStep.UNDRAIN)
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "converge")
        await mesh.clock.advance_ms(1_100)
        for _ in range(3):
            await mesh.clock.advance_ms(10_100)
        held = await until(mesh, failover, Phase.HELD)
        mesh.regions[A].silent.clear()

        await repeat_commands(mesh, A)
        record = await until(mesh, failover, Phase.ROLLED_BACK)

        assert held.problem is not None
        assert "paused" in held.problem.state
        assert mesh.writers() == [A]
        assert record.phase.exit_code == 8


async def test_a_late_answer_to_open_ends_a_held_failover() -> None:
    """After the pivot the way is forward, as soon as the target is back."""
    mesh = FakeMesh()
    mesh.regions[B].silent.add(CommandStep.OPEN)
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "open")
        for _ in range(3):
            await mesh.clock.advance_ms(10_100)
        await until(mesh, failover, Phase.HELD)
        operations = Operations(store=mesh.store, clock=mesh.clock)
        with pytest.raises(Refused, match="only go forward"):
            await operations.steering.abort(failover, "", ALICE)
        mesh.regions[B].silent.clear()

        await repeat_commands(mesh, B)
        await until(mesh, failover, Phase.SUCCEEDED)

        assert mesh.writers() == [B]


async def test_resume_sends_the_command_again_under_a_higher_token() -> None:
    """For when the answer will never come: it is asked anew."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        failover = await held_at_open(mesh)
        held = await stored(mesh, failover)

        await Operations(store=mesh.store, clock=mesh.clock).steering.resume(failover, "", ALICE)
        await until(mesh, failover, Phase.SUCCEEDED)

        assert held.problem is not None
        assert "no lease" in held.problem.happened
        assert mesh.writers() == [B]


async def held_at_open(mesh: FakeMesh) -> FailoverId:
    mesh.regions[B].refuses[CommandStep.OPEN] = "no lease"
    failover = await begin(mesh)
    await until_step(mesh, failover, "open")
    for _ in range(2):
        await mesh.clock.advance_ms(500)
    await until(mesh, failover, Phase.HELD)
    mesh.regions[B].refuses.clear()
    return failover


@attrs.define
class LoseOne:
    """The reply to the third transaction (two only read) is lost; before anything is read, others go on."""

    meanwhile: Callable[[], Awaitable[object]]
    commits: int = 0
    is_over: bool = False

    async def before(self, operation: str) -> Fault:
        if self.commits == 3 and not self.is_over:
            self.is_over = True
            await self.meanwhile()
        self.commits += operation == "commit"
        lost = operation == "commit" and self.commits == 3
        return Fault.REPLY_LOST if lost else Fault.NONE


async def test_a_resume_whose_reply_was_lost_is_found_done_though_others_went_on() -> None:
    """It is not held any more: because of this very request, and the answer says so."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        failover = await held_at_open(mesh)
        flaky = LoseOne(lambda: until(mesh, failover, Phase.SUCCEEDED))
        operations = Operations(store=mesh.store.connect(faults=flaky), clock=mesh.clock)

        answer = await operations.steering.resume(failover, "", ALICE)

    assert flaky.is_over
    assert answer["changed"] is True


async def test_whoever_repeats_a_resume_is_not_refused() -> None:
    """The reply may have been lost on the way to them. Somebody else is told that it is not held."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        failover = await held_at_open(mesh)
        operations = Operations(store=mesh.store, clock=mesh.clock)

        first = await operations.steering.resume(failover, "", ALICE)
        again = await operations.steering.resume(failover, "", ALICE)
        await until(mesh, failover, Phase.SUCCEEDED)
        late = await operations.steering.resume(failover, "", ALICE)
        with pytest.raises(Refused, match="not held"):
            await operations.steering.resume(failover, "", BOB)

    assert (first["changed"], again["changed"], late["changed"]) == (True, False, False)


@pytest.mark.parametrize("step", [CommandStep.OPEN, CommandStep.UNDRAIN])
async def test_what_is_refused_for_a_moment_is_asked_again_after_a_pause(step: CommandStep) -> None:
    """Else a refusal of some milliseconds would use up every attempt, and hold the failover."""
    mesh = FakeMesh(policy=GroupPolicy(pause_budget_ms=1_000))
    if step is CommandStep.UNDRAIN:
        mesh.regions[B].silent.add(CommandStep.CONVERGE)
    for region in mesh.regions.values():
        region.refuses[step] = "not yet"
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "open" if step is CommandStep.OPEN else "converge")
        if step is CommandStep.UNDRAIN:
            await mesh.clock.advance_ms(1_000)
            await until_step(mesh, failover, "undrain")
        began_ms = mesh.clock.now_ms()
        attempts = [(await stored(mesh, failover)).attempt]
        for _ in range(9):
            await mesh.clock.advance_ms(100)
            attempts.append((await stored(mesh, failover)).attempt)
        for region in mesh.regions.values():
            region.refuses.clear()
        await mesh.clock.advance_ms(100)

        record = await until(mesh, failover, Phase.SUCCEEDED, Phase.ROLLED_BACK)

    assert attempts == [1] * 5 + [2] * 5
    assert mesh.clock.now_ms() == began_ms + 1_000
    assert mesh.writers() == [B if record.phase is Phase.SUCCEEDED else A]


async def test_a_better_answer_does_not_wait_for_the_pause_after_a_refusal() -> None:
    """The region found its lease meanwhile, and answers the same command anew."""
    mesh = FakeMesh()
    mesh.regions[B].refuses[CommandStep.OPEN] = "not yet"
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "open")
        mesh.regions[B].refuses.clear()

        await repeat_commands(mesh, B)
        record = await until(mesh, failover, Phase.SUCCEEDED)

    assert [step.step for step in record.history].count("open") == 1


async def test_an_abort_while_writes_are_paused_brings_them_back() -> None:
    """The operator changed their mind; the source serves as before."""
    mesh = FakeMesh()
    mesh.regions[B].silent.add(CommandStep.CONVERGE)
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "converge")

        answer = await Operations(store=mesh.store, clock=mesh.clock).steering.abort(
            failover, "", ALICE
        )
        await until(mesh, failover, Phase.ROLLED_BACK)
        again = await Operations(store=mesh.store, clock=mesh.clock).steering.abort(
            failover, "", ALICE
        )

        assert answer["changed"] is True
        assert again["changed"] is False
        assert mesh.writers() == [A]


async def test_many_groups_fail_over_at_once() -> None:
    """One group's silence does not stop another's failover."""
    mesh = FakeMesh()
    mesh.groups = [GroupName(f"g{n}") for n in range(8)]
    async with mesh.running(), background(leading(mesh)):
        operations = Operations(store=mesh.store, clock=mesh.clock)
        for name in mesh.groups:
            body = {"prefixes": [f"/{name}/"], "members": [A, B]}
            await operations.put_group(name, body, ALICE, dry_run=False)
        await settle_until(lambda: all(mesh.writers(name) == [A] for name in mesh.groups))
        await mesh.report()

        for name in mesh.groups:
            await operations.begin(name, asked(), ALICE)
        await settle_until(lambda: all(mesh.writers(name) == [B] for name in mesh.groups))

        assert [(await mesh.authority(name)).epoch for name in mesh.groups] == [2] * 8
        assert mesh.writers() == [A]


async def repeat_commands(mesh: FakeMesh, cluster) -> None:
    """As a region's new leading replicator does: it reads the commands that are there."""
    items = await mesh.store.range(prefix_range(Keys.commands_to(cluster)))
    for item in items.items:
        command = decode(Command, item.value)
        token = Token(incarnation=command.incarnation, revision=item.mod_revision)
        await mesh.regions[cluster].on_command(command, token)


# --- killed, deposed, cut off -------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


@attrs.define
class KillAt:
    """Kills the coordinator at its n-th write: before it is sent, or after it was applied."""

    n: int
    is_applied: bool
    seen: int = 0
    fired: bool = False

    async def before(self, operation: str) -> Fault:
        if operation != "commit":
            return Fault.NONE
        self.seen += 1
        if self.seen < self.n:
            return Fault.NONE
        self.fired = True
        return Fault.REPLY_LOST if self.is_applied else Fault.REQUEST_LOST


@pytest.mark.parametrize("is_applied", [True, False], ids=["applied", "not-applied"])
@pytest.mark.parametrize("n", range(2, 16))
async def test_a_successor_finishes_what_was_begun(n: int, is_applied: bool) -> None:
    """Wherever the first coordinator dies, authority moves once and nothing is lost."""
    mesh = FakeMesh()
    kill = KillAt(n, is_applied)
    async with mesh.running():
        failover = await begin(mesh)
        doomed = mesh.store.connect(faults=kill)
        async with background(leading(mesh, doomed)) as (first,):
            for _ in range(100):
                await asyncio.sleep(0)
                if kill.fired or first.done():
                    break
        # Killed: its lease is still there for a while, then a successor is elected.
        async with background(leading(mesh)):
            await mesh.clock.advance_ms(8_000)
            await mesh.report()
            record = await until(mesh, failover, Phase.SUCCEEDED, Phase.ROLLED_BACK)

    authority = await mesh.authority()
    expected = (B, 2) if record.phase is Phase.SUCCEEDED else (A, 1)
    assert (authority.active, authority.epoch) == expected
    assert mesh.writers() == [expected[0]]


@attrs.define
class LoseReplies:
    """Some writes' replies are lost; some of those were not applied either."""

    random: random.Random

    async def before(self, operation: str) -> Fault:
        if operation != "commit" or self.random.random() > 0.3:
            return Fault.NONE
        return self.random.choice([Fault.REPLY_LOST, Fault.REQUEST_LOST])


@pytest.mark.parametrize("seed", range(8))
async def test_lost_replies_are_settled_by_reading_back(seed: int) -> None:
    """An unknown outcome is never guessed at: no step happens twice, none is skipped."""
    mesh = FakeMesh()
    async with mesh.running():
        failover = await begin(mesh)
        flaky = mesh.store.connect(faults=LoseReplies(random.Random(seed)))
        async with background(leading(mesh, flaky)):
            for _ in range(40):
                await mesh.clock.advance_ms(500)
                if (await stored(mesh, failover)).phase.is_final:
                    break
            await mesh.report()
            record = await until(mesh, failover, Phase.SUCCEEDED, Phase.ROLLED_BACK)

    events = await mesh.store.range(prefix_range(Keys.failover_events(ORDERS, failover)))
    assert len(events.items) == record.transitions
    assert len(mesh.writers()) == 1


async def test_a_pivot_that_wakes_after_its_successor_rolled_back_fails() -> None:
    """S20: a coordinator stopped after deciding on the pivot changes nothing when it wakes."""
    mesh = FakeMesh()
    mesh.regions[B].silent.add(CommandStep.CONVERGE)
    async with mesh.running():
        first = Election(
            store=mesh.store, key=Keys.coordinator_leader, value=b"c1", ttl_s=5, clock=mesh.clock
        )
        term = await first.campaign()
        async with background(lead(mesh.store, term, clock=mesh.clock)):
            failover = await begin(mesh)
            await until_step(mesh, failover, "converge")
        stopped = FailoverRepository(store=mesh.store, clock=mesh.clock, term=term)
        before = await stopped.load(ORDERS, failover)
        assert before is not None
        mesh.regions[B].silent.clear()
        due = machine.decide(before.record)
        assert isinstance(due, machine.AwaitAnswer)
        converged = attrs.evolve(before.record, cursor=before.record.cursor + 1, awaiting=None)
        token = attrs.evolve(before.record.source_token, revision=before.revision)
        pivoted = machine.advance(
            converged, machine.AuthorityMoved(token=token), now_ms=mesh.clock.wall_ms()
        )
        await term.resign()

        mesh.regions[B].silent.add(CommandStep.CONVERGE)
        async with background(leading(mesh)):
            await Operations(store=mesh.store, clock=mesh.clock).steering.abort(failover, "", ALICE)
            await until(mesh, failover, Phase.ROLLED_BACK)
            with pytest.raises(TermEnded):
                await stopped.save(before, pivoted, what="pivot")
        untermed = FailoverRepository(store=mesh.store, clock=mesh.clock)
        with pytest.raises(Refused, match="moved under us"):
            await untermed.save(before, pivoted, what="pivot")

    assert (await mesh.authority()).epoch == 1
    assert mesh.writers() == [A]


async def test_a_successor_does_not_begin_the_pause_budget_anew() -> None:
    """A chain of dying coordinators cannot pause writes for ever."""
    mesh = FakeMesh(policy=GroupPolicy(pause_budget_ms=20_000))
    mesh.regions[B].silent.add(CommandStep.CONVERGE)
    async with mesh.running():
        async with background(leading(mesh)):
            failover = await begin(mesh)
            await until_step(mesh, failover, "converge")
            await mesh.clock.advance_ms(15_000)
        async with background(leading(mesh)):
            await mesh.clock.advance_ms(7_000)
            await until(mesh, failover, Phase.ROLLED_BACK)

    assert mesh.writers() == [A]


async def test_authority_that_moved_elsewhere_undoes_the_drain() -> None:
    """An emergency that superseded us leaves nothing half done."""
    mesh = FakeMesh()
    mesh.regions[B].silent.add(CommandStep.CONVERGE)
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "converge")
        seal = Seal(group=ORDERS, epoch=Epoch(1), failover=FailoverId("e-1"))
        await mesh.store.commit(Txn(operations=(Put(Keys.seal(ORDERS), encode(seal)),)))
        mesh.regions[B].silent.clear()

        await repeat_commands(mesh, B)
        record = await until(mesh, failover, Phase.ROLLED_BACK)

        assert record.problem is not None
        assert "pivot failed" in record.problem.happened
        assert (await mesh.authority()).epoch == 1
