"""How a planned failover begins: what its checks have shown is not done again."""

from __future__ import annotations

import attrs

from coordinator.api.operations import Operations
from coordinator.failover import machine
from coordinator.failover.record import Phase, StepStatus
from meshkit.clock import settle
from meshkit.commands import CommandStep
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import GroupPolicy, VerifyMode
from meshkit.store.txn import Delete, Put, Txn
from tests.coordinator.fake_region import ORDERS, A, B, FakeMesh, background, settle_until
from tests.coordinator.test_driver import ALICE, asked, begin, leading, stored, until

UNVERIFIED = GroupPolicy(verify=VerifyMode.OFF, pause_budget_ms=2_000)
"""Nothing stands between the checks and the pause, where the target is close."""


async def somebody_leads(mesh: FakeMesh) -> None:
    """Put a leader that does nothing, as one does that is about to die."""
    await mesh.store.commit(Txn(operations=(Put(Keys.coordinator_leader, b"c1"),)))


async def test_with_its_checks_made_and_the_target_close_it_begins_with_the_drain() -> None:
    """In one transaction, so that its command's token is the revision of its beginning."""
    mesh = FakeMesh(policy=UNVERIFIED)
    async with mesh.running():
        await somebody_leads(mesh)
        failover = await begin(mesh)
        record = await stored(mesh, failover)
        command = await mesh.store.get(Keys.command(A, ORDERS))

        assert machine.step_in_hand(record).name == "drain"
        assert [(s.step, s.status) for s in record.history] == [
            ("check", StepStatus.DONE),
            ("approve", StepStatus.SKIPPED),
            ("verify", StepStatus.SKIPPED),
            ("catch_up", StepStatus.SKIPPED),
            ("drain", StepStatus.RUNNING),
        ]
        assert record.history[3].detail == "skipped: 17 ms behind at most"
        assert command is not None
        assert record.awaiting is not None
        assert command.mod_revision == record.awaiting.revision

        async with background(leading_over(mesh)):
            await until(mesh, failover, Phase.SUCCEEDED)
        assert mesh.writers() == [B]
        assert "catch_up" not in mesh.regions[A].obeyed


def leading_over(mesh: FakeMesh):
    """Lead after whoever led, and is gone."""

    async def lead() -> None:
        await mesh.store.commit(Txn(operations=(Delete(Keys.coordinator_leader),)))
        await leading(mesh)

    return lead()


async def test_while_nobody_leads_it_begins_with_nothing_that_somebody_has_to_end() -> None:
    """Writes would be paused until the next coordinator is elected, and nobody would undo it."""
    mesh = FakeMesh(policy=UNVERIFIED)
    async with mesh.running():
        failover = await begin(mesh)
        record = await stored(mesh, failover)

        await settle()
        assert machine.step_in_hand(record).name == "check"
        assert mesh.writers() == [A]
        assert "drain" not in mesh.regions[A].obeyed


async def test_a_target_that_is_not_close_is_asked_to_be_first() -> None:
    """The command to catch up is what it begins with."""
    policy = attrs.evolve(UNVERIFIED, catch_up_lag_ms_max=16)
    mesh = FakeMesh(policy=policy)
    mesh.regions[A].silent.add(CommandStep.CATCH_UP)
    async with mesh.running():
        await somebody_leads(mesh)
        failover = await begin(mesh)

        record = await stored(mesh, failover)

    assert machine.step_in_hand(record).name == "catch_up"
    assert mesh.writers() == [A]


async def test_a_request_that_is_repeated_finds_its_failover_and_drains_once() -> None:
    """However often it is sent."""
    mesh = FakeMesh(policy=UNVERIFIED)
    async with mesh.running():
        await somebody_leads(mesh)
        first = await begin(mesh)
        put = await mesh.store.get(Keys.command(A, ORDERS))
        again = await begin(mesh)

        assert first == again
        assert await mesh.store.get(Keys.command(A, ORDERS)) == put


async def test_another_clock_of_whoever_began_it_costs_half_of_the_pause_budget_at_most() -> None:
    """Here it seems to have begun 1.9 s ago, of the two that it has."""
    mesh = FakeMesh(policy=UNVERIFIED)
    mesh.regions[B].silent.add(CommandStep.CONVERGE)
    async with mesh.running(), background(leading(mesh)):
        await settle_until(lambda: mesh.store.get(Keys.coordinator_leader))
        late = Operations(store=mesh.store, clock=Behind(mesh.clock, 1_900))
        done = await late.begin(ORDERS, asked(), ALICE)
        failover = done.body["failover"]["id"]
        await settle_until(lambda: mesh.writers() == [])

        await mesh.clock.advance_ms(900)
        assert mesh.writers() == []
        await mesh.clock.advance_ms(200)
        record = await until(mesh, failover, Phase.ROLLED_BACK)

    assert mesh.writers() == [A]
    assert record.problem is not None
    assert "pause budget of 2000 ms" in record.problem.happened


@attrs.define
class Behind:
    """A clock whose wall time is behind."""

    clock: object
    by_ms: int

    def wall_ms(self) -> int:
        return self.clock.wall_ms() - self.by_ms

    def __getattr__(self, name: str) -> object:
        return getattr(self.clock, name)
