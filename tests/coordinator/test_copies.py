"""The step `verify` of a planned failover, and comparisons by schedule, on a fake mesh."""

from __future__ import annotations

import attrs
import pytest

from coordinator.api.operations import Operations
from coordinator.api.problems import ChecksFailed
from coordinator.comparison import FIRST_MS_MAX
from coordinator.failover.record import Phase, StepStatus
from meshkit.codec import decode, encode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import GroupPolicy, VerifyMode
from meshkit.store.txn import Put, Txn
from meshkit.verification import Verify
from tests.coordinator.fake_region import ORDERS, B, FakeMesh, background, settle_until
from tests.coordinator.test_driver import (
    ALICE,
    asked,
    begin,
    leading,
    stored,
    until,
    until_step,
)

HOUR = 3_600_000


async def requested(mesh: FakeMesh) -> Verify | None:
    item = await mesh.store.get(Keys.verify(B, ORDERS))
    return decode(Verify, item.value) if item else None


async def step(mesh: FakeMesh, failover, name: str = "verify"):
    record = await stored(mesh, failover)
    return next(each for each in record.history if each.step == name)


async def test_a_planned_failover_compares_the_copy_first() -> None:
    """Once, under an id of its own; and the record says what came of it."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until(mesh, failover, Phase.SUCCEEDED)

        verified = await step(mesh, failover)
        request = await requested(mesh)

    assert verified.status is StepStatus.DONE
    assert verified.detail == f"equal: 7 keys compared (v-{failover})"
    assert request is not None
    assert request.requested_by == f"failover {failover}"


async def test_a_comparison_that_is_young_enough_is_not_made_again() -> None:
    """A schedule pays for what a failover then need not wait for."""
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        request = Verify(
            id="v-by-hand", group=ORDERS, target=B, repair=False, requested_by="alice",
            requested_ms=mesh.clock.wall_ms(),
        )  # fmt: skip
        await mesh.store.commit(Txn(operations=(Put(Keys.verify(B, ORDERS), encode(request)),)))
        await settle_until(lambda: mesh.store.get(Keys.verify_result(B, ORDERS)))
        failover = await begin(mesh)
        await until(mesh, failover, Phase.SUCCEEDED)

        assert (await step(mesh, failover)).detail == "equal 0 s ago (v-by-hand)"
        assert await requested(mesh) == request


async def test_a_copy_that_differs_is_not_promoted() -> None:
    """Refused before anything was done; the next attempt is refused by the check already."""
    mesh = FakeMesh()
    mesh.regions[B].differing = 3
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        record = await until(mesh, failover, Phase.REFUSED)

        assert record.problem is not None
        assert "3 keys of the copy at eu-west differ from us-east" in record.problem.happened
        assert mesh.regions[B].obeyed == []
        with pytest.raises(ChecksFailed) as refused:
            await begin(mesh, asked(request_id="r-2"))
        assert [check.name for check in refused.value.failed] == ["verify"]


async def test_a_difference_is_waived_only_by_its_name() -> None:
    """Then nothing is compared, and the record says that it was waived."""
    mesh = FakeMesh()
    mesh.regions[B].differing = 3
    async with mesh.running(), background(leading(mesh)):
        other = await begin(mesh, asked(waive=("lag",)))
        await until(mesh, other, Phase.REFUSED)
        failover = await begin(mesh, asked(request_id="r-2", waive=("verify",)))
        await until(mesh, failover, Phase.SUCCEEDED)

        verified = await step(mesh, failover)

    assert (verified.status, verified.detail) == (StepStatus.SKIPPED, "skipped: waived by name")


async def test_policy_may_ask_for_no_comparison() -> None:
    """`verify: off`: the step is recorded as skipped, with the reason."""
    mesh = FakeMesh(policy=GroupPolicy(verify=VerifyMode.OFF))
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until(mesh, failover, Phase.SUCCEEDED)

        assert (await step(mesh, failover)).status is StepStatus.SKIPPED
        assert await requested(mesh) is None


async def test_a_copy_that_cannot_be_compared_is_not_promoted() -> None:
    """Unknown is not equal."""
    mesh = FakeMesh()
    mesh.regions[B].uncomparable = "us-east does not answer"
    async with mesh.running(), background(leading(mesh)):
        record = await until(mesh, await begin(mesh), Phase.REFUSED)

    assert record.problem is not None
    assert "could not be compared: us-east does not answer" in record.problem.happened


async def test_a_region_that_does_not_compare_is_waited_for_only_so_long() -> None:
    """Bounded by the group's policy; writes go on all the while."""
    mesh = FakeMesh(policy=GroupPolicy(verify_ms_max=30_000))
    mesh.regions[B].compares = False
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await until_step(mesh, failover, "verify")
        await mesh.clock.advance_ms(29_000)
        assert (await stored(mesh, failover)).phase is Phase.ADVANCING
        await mesh.clock.advance_ms(2_000)
        record = await until(mesh, failover, Phase.REFUSED)

    assert record.problem is not None
    assert "did not compare its copy within 30000 ms" in record.problem.happened


async def test_an_abort_does_not_wait_for_the_comparison() -> None:
    """It may take minutes, and nothing has been done that had to be undone."""
    mesh = FakeMesh()
    mesh.regions[B].compares = False
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await settle_until(lambda: requested(mesh))
        await Operations(store=mesh.store, clock=mesh.clock).steering.abort(
            failover, "later", ALICE
        )

        await until(mesh, failover, Phase.ROLLED_BACK)
        assert mesh.clock.now_ms() == 1_000_000


async def test_a_successor_waits_for_what_its_predecessor_asked() -> None:
    """One comparison per failover, whoever coordinates."""
    mesh = FakeMesh()
    mesh.regions[B].compares = False
    async with mesh.running():
        async with background(leading(mesh)):
            failover = await begin(mesh)
            first = await settle_until(lambda: requested(mesh))
        async with background(leading(mesh)):
            await mesh.clock.advance_ms(8_000)
            await until_step(mesh, failover, "verify")
            await mesh.regions[B].put_result(first)
            await mesh.report()
            await until(mesh, failover, Phase.SUCCEEDED)

            item = await mesh.store.get(Keys.verify(B, ORDERS))

    assert item is not None
    assert item.version == 1


# --- by schedule --------------------------------------------------------------------------------


async def advance(mesh: FakeMesh, total_ms: int, *, by_ms: int = 60_000) -> None:
    for _ in range(total_ms // by_ms):
        await mesh.clock.advance_ms(by_ms)


async def test_copies_are_compared_by_themselves() -> None:
    """Soon after the group is there, then about as often as its policy says."""
    mesh = FakeMesh(policy=GroupPolicy(verify_every_ms=HOUR))
    async with mesh.running(), background(leading(mesh)):
        await advance(mesh, FIRST_MS_MAX + 60_000)
        first = await requested(mesh)
        await advance(mesh, 54 * 60_000 - FIRST_MS_MAX)
        assert await requested(mesh) == first
        await advance(mesh, FIRST_MS_MAX + 20 * 60_000)
        second = await requested(mesh)

    assert first is not None
    assert second is not None
    assert first.requested_by == second.requested_by == "schedule"
    assert 0.9 * HOUR <= second.requested_ms - first.requested_ms <= 1.1 * HOUR + 60_000


async def test_the_schedule_leaves_a_running_failover_alone() -> None:
    """Its request would be replaced, and the failover would wait for nothing."""
    mesh = FakeMesh(policy=GroupPolicy(verify_every_ms=60_000, verify_ms_max=HOUR))
    mesh.regions[B].compares = False
    async with mesh.running(), background(leading(mesh)):
        failover = await begin(mesh)
        await settle_until(lambda: requested(mesh))
        await advance(mesh, 40 * 60_000)
        request = await requested(mesh)

    assert request is not None
    assert request.id == f"v-{failover}"


async def test_no_comparison_is_scheduled_where_policy_wants_none() -> None:
    """`verify_every_ms: 0`."""
    mesh = FakeMesh(policy=attrs.evolve(GroupPolicy(), verify_every_ms=0))
    async with mesh.running(), background(leading(mesh)):
        await advance(mesh, 2 * FIRST_MS_MAX)

        assert await requested(mesh) is None
