"""The leading coordinator begins what a policy allows, and nothing else: on a store in memory."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.automatic import keeper as keeper_module
from coordinator.automatic.keeper import STORE_AGAIN_MS
from coordinator.automatic.record import AutomaticRecord
from coordinator.failover.loss import LossBound
from coordinator.failover.record import ActiveFailover, Failover, FailoverKind
from coordinator.failover.repository import FailoverRepository, Loaded
from coordinator.governance.audit import AuditTip
from meshkit.codec import Stored
from meshkit.errors import Conflict, Refused, TermEnded
from meshkit.incarnations import SuspectStore, Suspension
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import (
    ClusterDescriptor,
    ClusterIntent,
    CoordinationIncarnation,
    FailoverPolicy,
    Group,
    GroupPolicy,
    Holder,
    Seal,
)
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Incarnation
from tests.coordinator.automatic.bench import ALICE, ORDERS, bench
from tests.coordinator.automatic.facts import AFTER_MS, AUTOMATIC, PAUSE, A, B, C

AFTER_S = AFTER_MS // 1000
PATIENT = attrs.evolve(AUTOMATIC, automatic_loss_seconds_max=100_000)
"""For what comes so late that nobody saw any more when the source stopped."""
COOL_DOWN_S = AUTOMATIC.automatic_cool_down_ms // 1000


async def test_a_region_that_is_gone_for_the_whole_window_is_failed_over_from() -> None:
    """Once, to the first that can, with the policy's bound as its consent; and it is audited."""
    async with bench() as made, made.leading():
        await made.pass_s(3)
        await made.die(A)
        await made.pass_s(AFTER_S)
        assert await made.failovers() == []

        await made.pass_s(3)

        (record,) = await made.failovers()
        assert (record.kind, record.source, record.target) == (FailoverKind.EMERGENCY, A, B)
        assert record.requested_by == "coordinator"
        assert record.emergency is not None
        assert record.emergency.automatic
        assert record.emergency.accept == LossBound(records=100, seconds=12)
        assert not record.emergency.no_fence_wait
        assert await made.audited() == ["automatic.began"]
        stored = await made.record()
        assert (stored.failover, stored.needs_acknowledgement(1)) == (record.id, True)


async def test_a_region_that_comes_back_in_time_is_left_alone() -> None:
    async with bench() as made, made.leading():
        for _ in range(4):
            await made.die(A)
            await made.pass_s(AFTER_S - 1)
            await made.live(A)
            await made.pass_s(2)

        assert await made.failovers() == []
        assert await made.audited() == []


async def test_without_the_policy_nothing_is_begun() -> None:
    async with bench(policy=GroupPolicy()) as made, made.leading():
        await made.die(A)
        await made.pass_s(3 * AFTER_S)

        assert await made.failovers() == []
        assert (await made.standing())["standing"] == "manual"


async def test_a_second_one_waits_for_a_person_however_long_that_takes() -> None:
    """Also past the cool-down, and for a coordinator that has just begun to lead."""
    async with bench(policy=PATIENT) as made:
        async with made.leading():
            await made.die(A)
            await made.pass_s(AFTER_S + 3)
            await made.end()
            await made.pass_s(COOL_DOWN_S + AFTER_S + 60)
            assert len(await made.failovers()) == 1
            assert await made.withheld() == ["not-acknowledged"]
        async with made.leading():
            await made.pass_s(2 * AFTER_S)
            assert len(await made.failovers()) == 1

            assert await made.acknowledge()
            await made.pass_s(3)

            assert len(await made.failovers()) == 2


async def test_a_successor_does_not_begin_the_cool_down_anew() -> None:
    """It is counted from the record of the failover, whoever drove that."""
    async with bench(policy=PATIENT) as made:
        async with made.leading():
            await made.die(A)
            await made.pass_s(AFTER_S + 3)
            await made.end()
            assert await made.acknowledge()
            await made.pass_s(COOL_DOWN_S - 60)
            assert await made.withheld() == ["cool-down"]
        async with made.leading():
            await made.pass_s(50)
            assert len(await made.failovers()) == 1

            await made.pass_s(20)

            assert len(await made.failovers()) == 2


async def test_one_who_has_just_been_elected_looks_for_a_whole_window_first() -> None:
    """Whoever could not see cannot judge."""
    async with bench() as made:
        await made.die(A)
        await made.pass_s(10 * AFTER_S)
        async with made.leading():
            await made.pass_s(AFTER_S - 1)
            assert await made.failovers() == []

            await made.pass_s(4)

            assert await made.withheld() == ["loss"] * 2, "nobody saw when the source's log ended"


async def test_a_coordinator_that_was_cut_off_looks_for_a_whole_window_first() -> None:
    """The coordination etcd's loss is never a reason to promote anybody, nor is its recovery."""
    async with bench() as made:
        store = made.store.connect()
        async with made.leading(store):
            await made.pass_s(2)
            await made.die(A)
            await made.pass_s(AFTER_S - 3)
            store.partition()
            await made.pass_s(30)
            assert await made.failovers() == []
            store.heal()
            await made.pass_s(AFTER_S - 2)
            assert await made.failovers() == []
            assert await made.withheld() == ["observing-anew"]

            await made.pass_s(4)

            assert len(await made.failovers()) == 1


async def test_a_process_that_was_stopped_looks_for_a_whole_window_first() -> None:
    async with bench() as made, made.leading():
        await made.pass_s(2)
        await made.die(A)
        await made.pass_s(AFTER_S - 3)
        made.clock.jump_ms(20_000)
        await made.pass_s(AFTER_S - 2)
        assert await made.failovers() == []

        await made.pass_s(4)

        assert len(await made.failovers()) == 1


async def test_nothing_is_begun_while_automation_is_paused_and_at_once_when_it_goes_on() -> None:
    async with bench() as made, made.leading():
        await made.put(Keys.automation_pause, PAUSE)
        await made.die(A)
        await made.pass_s(AFTER_S + 3)
        assert await made.failovers() == []
        assert await made.withheld() == ["automation-paused"]

        await made.delete(Keys.automation_pause)
        await made.pass_s(2)

        assert len(await made.failovers()) == 1


async def test_nothing_is_begun_while_most_regions_are_missing() -> None:
    """It is rather the coordination etcd that is cut off; and afterwards the whole window counts."""
    async with bench() as made, made.leading():
        await made.pass_s(2)
        await made.die(A, B)
        await made.pass_s(3 * AFTER_S)
        assert await made.failovers() == []
        assert "observing-anew" in await made.withheld()
        await made.live(B)
        await made.pass_s(AFTER_S - 1)
        assert await made.failovers() == []


async def test_a_region_that_reports_is_not_gone() -> None:
    async with bench() as made, made.leading():
        await made.pass_s(2)
        for _ in range(3 * AFTER_S):
            await made.report()
            await made.delete(Keys.holder(ORDERS))
            await made.clock.advance_ms(1_000)

        assert await made.failovers() == []
        assert await made.withheld() == ["source-reports"]


async def test_a_suspended_mesh_is_left_to_people() -> None:
    """A coordination etcd that went back shows leases that are none."""
    async with bench() as made, made.leading():
        suspension = Suspension(
            cluster=C,
            store=SuspectStore.COORDINATION,
            incarnation=Incarnation("1"),
            reason="it went back",
            replicator="c",
            at_ms=0,
        )
        await made.put(Keys.suspension(C), suspension)
        await made.die(A)
        await made.pass_s(2 * AFTER_S)

        assert await made.failovers() == []
        assert await made.withheld() == ["coordination-unwell"]


async def test_the_next_in_order_is_taken_where_the_first_is_out_of_step() -> None:
    async with bench(out_of_step={B}) as made, made.leading():
        await made.pass_s(2)
        await made.die(A)
        await made.pass_s(AFTER_S + 3)

        assert [record.target for record in await made.failovers()] == [C]


@pytest.mark.parametrize(
    ("policies", "target"),
    [
        ({B: FailoverPolicy.NEVER}, C),
        ({C: FailoverPolicy.PREFERRED}, C),
        ({B: FailoverPolicy.PREFERRED, C: FailoverPolicy.PREFERRED}, B),
    ],
)
async def test_the_clusters_own_failover_policy_comes_before_the_order_of_members(
    policies: dict[ClusterName, FailoverPolicy], target: ClusterName
) -> None:
    async with bench() as made, made.leading():
        for name, policy in policies.items():
            await made.put(Keys.cluster(name), ClusterDescriptor(name=name, failover_policy=policy))
        await made.pass_s(2)
        await made.die(A)
        await made.pass_s(AFTER_S + 3)

        assert [record.target for record in await made.failovers()] == [target]


async def test_nothing_is_begun_that_would_lose_more_than_the_policy_allows() -> None:
    async with bench(behind=101) as made, made.leading():
        await made.pass_s(2)
        await made.die(A)
        await made.pass_s(AFTER_S + 3)

        assert await made.failovers() == []
        assert await made.withheld() == ["loss", "loss"]
        found = (await made.record()).withheld
        assert found is not None
        assert "101 known records" in found.reasons[0].detail


async def test_what_withholds_it_is_audited_when_it_changes_and_only_then() -> None:
    async with bench() as made, made.leading():
        await made.pass_s(2)
        await made.put(Keys.automation_pause, PAUSE)
        await made.die(A)
        await made.pass_s(AFTER_S + 60)
        assert await made.audited() == ["automatic.withheld"]
        made.out_of_step |= {B, C}
        await made.pass_s(2 * STORE_AGAIN_MS // 1000)
        assert await made.audited() == ["automatic.withheld"] * 2
        assert await made.withheld() == ["automation-paused", "target", "target"]

        await made.live(A)
        await made.pass_s(5)

        assert await made.audited() == ["automatic.withheld"] * 2 + ["automatic.cleared"]
        assert await made.withheld() == []


async def test_many_groups_are_judged_in_turns_and_none_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the first in order are withheld for ever; and looks go on between the turns."""
    monkeypatch.setattr(keeper_module, "AT_ONCE_MAX", 2)
    names = tuple(GroupName(f"g{number}") for number in range(7))
    async with bench(groups=(ORDERS, *names)) as made, made.leading() as keeper:
        await made.pass_s(2)
        for name in names[:3]:
            unacknowledged = AutomaticRecord(group=name, failover=FailoverId("f-0"))
            await made.put(Keys.automatic(name), unacknowledged)
        await made.die(A)
        await made.pass_s(AFTER_S - 1)
        assert await keeper.look(), "nothing is due, so nothing is left"

        await made.pass_s(4)

        begun = {name: len(await made.failovers(name)) for name in (ORDERS, *names)}
        assert begun == {name: int(name not in names[:3]) for name in (ORDERS, *names)}


async def test_a_deposed_coordinator_begins_nothing() -> None:
    """Its term is compared in the transaction."""
    async with bench() as made, made.leading() as keeper:
        await made.pass_s(2)
        await made.die(A)
        await made.pass_s(AFTER_S - 2)
        await made.delete(Keys.coordinator_leader)

        async def look_on() -> None:
            for _ in range(10):
                await made.report()
                made.clock.jump_ms(1_000)
                await keeper.look()

        with pytest.raises(TermEnded):
            await look_on()

        assert await made.failovers() == []


AT_THE_LAST_MOMENT: dict[str, tuple[bytes, Stored]] = {
    "automation is paused": (Keys.automation_pause, PAUSE),
    "the proof of life is back": (
        Keys.holder(ORDERS),
        Holder(group=ORDERS, epoch=Epoch(1), cluster=A),
    ),
    "the policy is another": (
        Keys.group(ORDERS),
        Group(name=ORDERS, prefixes=("/orders/",), members=(A, B, C)),
    ),
    "the target is in maintenance": (
        Keys.cluster(B),
        ClusterDescriptor(name=B, intent=ClusterIntent.MAINTENANCE),
    ),
    "somebody began another": (
        Keys.failover_active(ORDERS),
        ActiveFailover(id=FailoverId("f-other")),
    ),
    "the group is sealed": (
        Keys.seal(ORDERS),
        Seal(group=ORDERS, epoch=Epoch(1), failover=FailoverId("f-other")),
    ),
    "the audit says more": (Keys.audit_tip(ORDERS), AuditTip(n=9, hash="x")),
    "it began already": (
        Keys.automatic(ORDERS),
        AutomaticRecord(group=ORDERS, failover=FailoverId("f-other")),
    ),
}


@pytest.mark.parametrize("what", AT_THE_LAST_MOMENT)
async def test_what_changes_at_the_last_moment_counts(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the decision went by is compared in the transaction that begins the failover."""
    begin, reached = FailoverRepository.begin, []
    async with bench() as made, made.leading():
        await made.pass_s(2)
        await made.die(A)
        await made.pass_s(AFTER_S - 1)

        async def overtaken(self: FailoverRepository, record: Failover, **kwargs: Any) -> Loaded:
            reached.append(what)
            await made.put(*AT_THE_LAST_MOMENT[what])
            return await begin(self, record, **kwargs)

        monkeypatch.setattr(FailoverRepository, "begin", overtaken)
        while not reached:
            await made.pass_s(1)

        assert await made.failovers() == []


# --- acknowledging ------------------------------------------------------------------------------


async def test_an_acknowledgement_is_audited_and_repeating_it_changes_nothing() -> None:
    async with bench() as made, made.leading():
        assert not await made.acknowledge()
        await made.die(A)
        await made.pass_s(AFTER_S + 3)
        await made.end()
        (record,) = await made.failovers()

        assert await made.acknowledge(record.id)
        assert not await made.acknowledge(record.id)

        assert await made.audited() == ["automatic.began", "automatic.acknowledged"]
        stored = await made.record()
        assert stored.acknowledged_by == str(ALICE)


async def test_after_an_adoption_of_the_coordination_etcd_each_group_is_looked_at_once() -> None:
    """It went back: what was begun and acknowledged since is forgotten."""
    async with bench() as made, made.leading():
        await made.put(Keys.incarnation, CoordinationIncarnation(number=2))
        assert (await made.standing())["standing"] == "blocked"
        await made.pass_s(2)
        await made.die(A)
        await made.pass_s(AFTER_S + 3)
        assert await made.failovers() == []
        assert await made.withheld() == ["not-acknowledged"]

        assert await made.acknowledge()
        await made.pass_s(3)

        assert len(await made.failovers()) == 1


async def test_a_failover_that_still_runs_is_not_acknowledged() -> None:
    async with bench() as made, made.leading():
        await made.die(A)
        await made.pass_s(AFTER_S + 3)

        with pytest.raises(Refused, match="still running"):
            await made.acknowledge()


async def test_an_acknowledgement_of_another_one_is_refused() -> None:
    """A request that comes late must not allow what nobody has looked at."""
    async with bench() as made, made.leading():
        await made.die(A)
        await made.pass_s(AFTER_S + 3)
        await made.end()

        with pytest.raises(Conflict, match="not f-other"):
            await made.acknowledge("f-other")


async def test_the_group_says_how_it_stands_all_along() -> None:
    """So that nobody has to ask the log why it did not fail over."""
    async with bench() as made, made.leading():
        shown = await made.standing()
        assert (shown["standing"], shown["target"], shown["reasons"]) == ("ready", B, [])
        await made.put(Keys.automation_pause, PAUSE)
        assert (await made.standing())["standing"] == "blocked"

        await made.die(A)
        await made.pass_s(2)
        shown = await made.standing()
        assert (shown["standing"], shown["proof_of_life"]) == ("observing", False)

        await made.pass_s(AFTER_S)
        shown = await made.standing()
        assert shown["standing"] == "withheld"
        assert [reason["obstacle"] for reason in shown["reasons"]] == ["automation-paused"]
        assert shown["withheld_since_ms"] is not None


@attrs.frozen
class Round:
    """What happens until somebody looks again; and what that one does."""

    dies: bool
    is_paused: bool
    ends: bool
    acknowledges: bool


@settings(max_examples=15, deadline=None)
@given(st.lists(st.builds(Round, *[st.booleans()] * 4), min_size=2, max_size=6))
async def test_never_twice_without_an_acknowledgement(rounds: list[Round]) -> None:
    """Whatever dies, comes back, is paused or ends, and whoever leads: one for each look at one."""
    policy = attrs.evolve(PATIENT, automatic_cool_down_ms=5_000)
    async with bench(policy=policy) as made:
        looked_at = 0
        for each in rounds:
            before = len(await made.failovers())
            is_due = each.dies and not each.is_paused and before == looked_at
            await (made.die if each.dies else made.live)(A)
            if each.is_paused:
                await made.put(Keys.automation_pause, PAUSE)
            async with made.leading():
                await made.pass_s(AFTER_S + 4)
            await made.delete(Keys.automation_pause)

            begun = await made.failovers()
            assert len(begun) - before == is_due
            assert sum(not record.phase.is_final for record in begun) <= 1
            if each.ends:
                await made.end()
            if each.acknowledges and (not begun or (await made.failovers())[-1].phase.is_final):
                looked_at += await made.acknowledge()
            assert len(begun) <= looked_at + 1
