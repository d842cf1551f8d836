"""When an automatic failover is due, and each thing that stands in its way: a table."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.automatic.judging import Candidate, Standing, bound_of, judge
from coordinator.automatic.record import Obstacle
from coordinator.failover.loss import LossBound
from meshkit.model import ClusterIntent, GroupPolicy
from meshkit.names import FailoverId
from tests.coordinator.automatic.facts import (
    AFTER_MS,
    AUTOMATIC,
    NOW_MS,
    PAUSE,
    A,
    B,
    C,
    begun,
    facts,
)

COOL_DOWN_MS = AUTOMATIC.automatic_cool_down_ms

IN_THE_WAY: dict[str, tuple[dict[str, Any], Obstacle]] = {
    "automation is paused": ({"automation": PAUSE}, Obstacle.PAUSED),
    "sealed by nobody known": ({"is_sealed": True}, Obstacle.SEALED),
    "a failover runs": ({"running": FailoverId("f-9")}, Obstacle.RUNNING),
    "not acknowledged": ({"last": begun(acknowledged=False)}, Obstacle.ACKNOWLEDGEMENT),
    "acknowledged before the coordination etcd was restored": (
        {"last": begun(acknowledged=True, incarnation=1), "incarnation": 2},
        Obstacle.ACKNOWLEDGEMENT,
    ),
    "one has just ended": (
        {"ended": FailoverId("f-9"), "ended_ms": NOW_MS - COOL_DOWN_MS + 1},
        Obstacle.COOL_DOWN,
    ),
    "one ended by a clock that is ahead": (
        {"ended": FailoverId("f-9"), "ended_ms": NOW_MS + 50_000},
        Obstacle.COOL_DOWN,
    ),
    "the coordination etcd is unwell": ({"coordination": "no leader"}, Obstacle.COORDINATION),
    "the cluster reports": ({"source_reports": True}, Obstacle.SOURCE_REPORTS),
    "an etcd went back": ({"source_suspended": True}, Obstacle.SOURCE_SUSPENDED),
    "in maintenance": ({"intent": ClusterIntent.MAINTENANCE}, Obstacle.SOURCE_IN_MAINTENANCE),
    "no other member": ({"candidates": ()}, Obstacle.TARGET),
    "every target is out of step": (
        {"candidates": (Candidate(cluster=B, obstacles=("target_in_step: no",)),)},
        Obstacle.TARGET,
    ),
    "too much would be lost": (
        {"candidates": (Candidate(cluster=B, objections=("up to 30 s",)),)},
        Obstacle.LOSS,
    ),
}


def test_a_cluster_that_is_gone_for_long_enough_is_failed_over_from() -> None:
    """To the first in the order of preference."""
    verdict = judge(facts())

    assert (verdict.standing, verdict.target, verdict.reasons) == (Standing.DUE, B, ())


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_each_obstacle_alone_withholds_it_and_is_named(name: str) -> None:
    changes, obstacle = IN_THE_WAY[name]

    verdict = judge(facts(**changes))

    is_running = obstacle is Obstacle.RUNNING
    assert verdict.standing is (Standing.MOVING if is_running else Standing.WITHHELD)
    assert [reason.obstacle for reason in verdict.reasons] == [obstacle]
    assert verdict.reasons[0].detail


def test_every_obstacle_has_a_row() -> None:
    """One without a row would be one that nobody tests; `observing-anew` has its own tests."""
    assert {obstacle for _, obstacle in IN_THE_WAY.values()} == set(Obstacle) - {Obstacle.OBSERVING}


@pytest.mark.parametrize("name", [n for n, (c, _) in IN_THE_WAY.items() if "source" not in str(c)])
def test_while_the_cluster_lives_the_same_things_say_that_it_would_not_be(name: str) -> None:
    """So that somebody sees it before the region dies."""
    changes, obstacle = IN_THE_WAY[name]

    verdict = judge(facts(is_missing=False, gone_ms=0, suspected_ms=0, **changes))

    assert verdict.standing is Standing.BLOCKED
    assert [reason.obstacle for reason in verdict.reasons] == [obstacle]


def test_all_that_stands_in_the_way_is_told_at_once() -> None:
    verdict = judge(
        facts(automation=PAUSE, last=begun(acknowledged=False), candidates=(), is_sealed=True)
    )

    assert {reason.obstacle for reason in verdict.reasons} == {
        Obstacle.PAUSED,
        Obstacle.ACKNOWLEDGEMENT,
        Obstacle.TARGET,
        Obstacle.SEALED,
    }


def test_a_group_without_the_policy_is_left_alone() -> None:
    assert judge(facts(policy=GroupPolicy())).standing is Standing.MANUAL


def test_a_living_cluster_with_nothing_in_the_way_is_ready() -> None:
    verdict = judge(facts(is_missing=False, source_reports=True))

    assert (verdict.standing, verdict.target, verdict.reasons) == (Standing.READY, B, ())


def test_it_is_waited_for_the_whole_window() -> None:
    verdict = judge(facts(gone_ms=AFTER_MS - 1, suspected_ms=AFTER_MS - 1))

    assert verdict.standing is Standing.OBSERVING


def test_a_window_that_was_broken_is_told_once_it_should_have_been_over() -> None:
    """The coordination etcd was away in between: the person asks why nothing has happened yet."""
    verdict = judge(facts(gone_ms=2_000, suspected_ms=AFTER_MS, why_anew="nothing was seen"))

    assert verdict.standing is Standing.WITHHELD
    assert [reason.obstacle for reason in verdict.reasons] == [Obstacle.OBSERVING]
    assert "nothing was seen" in verdict.reasons[0].detail


def test_the_next_in_order_is_taken_if_the_first_cannot_or_would_lose_too_much() -> None:
    out_of_step = Candidate(cluster=B, obstacles=("target_in_step: no",))
    behind = Candidate(cluster=B, objections=("up to 30 s",))

    for first in (out_of_step, behind):
        verdict = judge(facts(candidates=(first, Candidate(cluster=C))))
        assert (verdict.standing, verdict.target) == (Standing.DUE, C)


def test_each_cluster_that_cannot_take_it_is_named_with_the_reason() -> None:
    verdict = judge(
        facts(
            candidates=(
                Candidate(cluster=B, obstacles=("target_in_step: copies",)),
                Candidate(cluster=C, objections=("up to 30 s of writes may be lost",)),
            )
        )
    )

    assert [(r.obstacle, r.cluster) for r in verdict.reasons] == [
        (Obstacle.TARGET, B),
        (Obstacle.LOSS, C),
    ]


def test_an_acknowledged_one_that_is_long_over_does_not_stand_in_the_way() -> None:
    verdict = judge(
        facts(
            last=begun(acknowledged=True),
            ended=FailoverId("f-1"),
            ended_ms=NOW_MS - COOL_DOWN_MS,
        )
    )

    assert verdict.standing is Standing.DUE


def test_an_acknowledgement_after_an_adoption_counts() -> None:
    last = begun(acknowledged=True, incarnation=2)

    assert judge(facts(last=last, incarnation=2)).standing is Standing.DUE


def test_a_seal_of_the_failover_that_runs_is_not_told_twice() -> None:
    verdict = judge(facts(is_sealed=True, running=FailoverId("f-9")))

    assert [reason.obstacle for reason in verdict.reasons] == [Obstacle.RUNNING]


def test_the_policy_never_consents_to_what_nobody_can_bound() -> None:
    assert bound_of(AUTOMATIC) == LossBound(records=100, seconds=12, unknown=False)


@given(
    chosen=st.sets(st.sampled_from(sorted(IN_THE_WAY))),
    is_missing=st.booleans(),
    gone_ms=st.integers(0, 3 * AFTER_MS),
    more_ms=st.integers(0, AFTER_MS),
)
def test_it_is_due_only_if_gone_for_long_enough_and_nothing_at_all_stands_in_the_way(
    chosen: set[str], is_missing: bool, gone_ms: int, more_ms: int
) -> None:
    """Whatever else is the case: no obstacle is ever hidden by another one."""
    given_facts = facts(is_missing=is_missing, gone_ms=gone_ms, suspected_ms=gone_ms + more_ms)
    for name in sorted(chosen):
        changes = dict(IN_THE_WAY[name][0])
        if (intent := changes.pop("intent", None)) is not None:
            assert given_facts.source is not None
            changes["source"] = attrs.evolve(given_facts.source, intent=intent)
        given_facts = attrs.evolve(given_facts, **changes)

    verdict = judge(given_facts)

    may = is_missing and gone_ms >= AFTER_MS and not chosen
    assert (verdict.standing is Standing.DUE) == may
    if verdict.standing is Standing.DUE:
        assert verdict.target in {B, C}
        assert verdict.target != A
