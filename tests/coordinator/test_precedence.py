"""Whose turn it is where many groups move."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.api.operations import Operations
from coordinator.failover import machine
from coordinator.failover.precedence import PATIENCE_MS, Precedence
from coordinator.failover.record import ActiveFailover, Failover, pause_ms
from coordinator.failover.repository import FailoverRepository
from meshkit.clock import ManualClock, settle
from meshkit.codec import decode
from meshkit.commands import CommandStep
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import FailoverId, GroupName
from tests.coordinator.fake_region import A, B, FakeMesh, background, settle_until
from tests.coordinator.test_driver import ALICE, asked, leading, repeat_commands

PAUSED, OTHER = GroupName("g0"), GroupName("g1")


async def both(mesh: FakeMesh) -> Operations:
    """Describe two groups that have time to be paused."""
    mesh.groups = [PAUSED, OTHER]
    operations = Operations(store=mesh.store, clock=mesh.clock)
    for name in mesh.groups:
        policy = {"pause_budget_ms": 60_000}
        body = {"prefixes": [f"/{name}/"], "members": [A, B], "policy": policy}
        await operations.put_group(name, body, ALICE, dry_run=False)
    await settle_until(lambda: all(mesh.writers(name) == [A] for name in mesh.groups))
    await mesh.report()
    return operations


async def newest(mesh: FakeMesh, group: GroupName) -> Failover:
    active = await mesh.store.get(Keys.failover_active(group))
    assert active is not None
    return await stored(mesh, group, decode(ActiveFailover, active.value).id)


async def stored(mesh: FakeMesh, group: GroupName, failover: FailoverId) -> Failover:
    repository = FailoverRepository(store=mesh.store, clock=mesh.clock)
    loaded = await repository.load(group, failover)
    assert loaded is not None
    return loaded.record


async def one_paused_and_one_open(mesh: FakeMesh) -> None:
    """Get one group stuck in its pause, then move another as far as it comes."""
    operations = await both(mesh)
    mesh.regions[B].deaf.add(PAUSED)
    await operations.begin(PAUSED, asked(), ALICE)
    await settle_until(lambda: mesh.writers(PAUSED) == [])
    await operations.begin(OTHER, asked(), ALICE)
    await settle_until(lambda: mesh.writers(OTHER) == [B])
    await settle()


async def is_over(mesh: FakeMesh, group: GroupName) -> bool:
    return await mesh.store.get(Keys.failover_active(group)) is None


async def test_a_group_that_is_open_lets_those_go_first_that_are_paused() -> None:
    """Reversing pauses nobody; the time it takes is theirs whose writes stand still."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        await one_paused_and_one_open(mesh)
        assert mesh.writers(PAUSED) == []
        assert mesh.regions[A].fence(OTHER).mode == "drained"

        mesh.regions[B].deaf.clear()
        await repeat_commands(mesh, B)

        await settle_until(lambda: is_over(mesh, OTHER))
        assert mesh.writers(PAUSED) == [B]
        assert mesh.clock.now_ms() == 1_000_000


async def test_it_does_not_wait_for_ever_and_its_pause_ends_with_its_opening() -> None:
    """A group that hangs in its pause leaves the others without a standby for no longer."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        await one_paused_and_one_open(mesh)
        waiting = await newest(mesh, OTHER)

        await mesh.clock.advance_ms(PATIENCE_MS - 10)
        assert mesh.regions[A].fence(OTHER).mode == "drained"
        await mesh.clock.advance_ms(10)
        await settle_until(lambda: is_over(mesh, OTHER))

        assert machine.step_in_hand(waiting).name == "open"
        assert mesh.writers(PAUSED) == []
        assert pause_ms(await stored(mesh, OTHER, waiting.id)) == 0


async def test_who_is_held_up_by_a_problem_holds_up_nobody() -> None:
    """Else a region that does not answer would cost all others their standby for 5 s each."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        operations = await both(mesh)
        mesh.regions[B].refuses[CommandStep.OPEN] = "no lease"
        await operations.begin(PAUSED, asked(), ALICE)
        await settle_until(lambda: mesh.writers(PAUSED) == [])
        for _ in range(3):
            await mesh.clock.advance_ms(500)
        held = await newest(mesh, PAUSED)
        mesh.regions[B].refuses.clear()
        began_ms = mesh.clock.now_ms()

        await operations.begin(OTHER, asked(), ALICE)
        await settle_until(lambda: is_over(mesh, OTHER))

        assert held.problem is not None
        assert mesh.clock.now_ms() == began_ms


@pytest.fixture
async def precedence() -> Precedence:
    return Precedence(clock=ManualClock())


async def test_a_driver_that_ends_or_is_cancelled_holds_up_nobody(precedence: Precedence) -> None:
    """Whatever it was about to do."""
    precedence._urgent.update({FailoverId("one"), FailoverId("two")})
    waiting = asyncio.ensure_future(precedence.let_pass(FailoverId("two")))
    await settle()
    assert not waiting.done()

    precedence.leave(FailoverId("one"))

    await waiting


async def test_two_that_wait_do_not_wait_for_each_other(precedence: Precedence) -> None:
    """Who lets others go first is in no hurry."""
    precedence._urgent.update({FailoverId("one"), FailoverId("two")})

    await asyncio.gather(*(precedence.let_pass(FailoverId(name)) for name in ("one", "two")))
