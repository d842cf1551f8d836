"""What a coordinator may say it has seen: only what it saw itself, without a break."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from coordinator.automatic.sight import (
    GAP_MS_MAX,
    Look,
    Sight,
    blinded,
    gone_ms,
    looked,
    suspected_ms,
)
from meshkit.names import GroupName
from meshkit.ordinals import Revision
from tests.coordinator.automatic.facts import ORDERS, A, B, C

ALL = frozenset({A, B, C})
SINCE = Revision(7)


def look(at_ms: int, **changes: Any) -> Look:
    """Return a reading at which the group's proof of life is missing and all else is well."""
    made = Look(
        began_ms=at_ms,
        ended_ms=at_ms + 10,
        raft_term=2,
        missing={ORDERS: SINCE},
        regions=ALL,
        reporting=frozenset({B, C}),
    )
    return attrs.evolve(made, **changes)


def seen(*looks: Look) -> tuple[int, int]:
    """Return for how long the group is gone, and suspected to be, at the last look."""
    sight = Sight()
    for each in looks:
        sight = looked(sight, each)
    return gone_ms(sight, ORDERS, looks[-1]), suspected_ms(sight, ORDERS, looks[-1])


def test_time_counts_from_the_end_of_the_first_look_to_the_beginning_of_the_last() -> None:
    """What was between two looks is bounded from below, never guessed."""
    assert seen(look(0)) == (0, 0)
    assert seen(look(0), look(1_000), look(2_000)) == (1_990, 1_990)


def test_one_look_at_which_it_was_there_begins_the_time_anew() -> None:
    assert seen(look(0), look(1_000, missing={}), look(2_000), look(3_000)) == (990, 990)


def test_another_authority_begins_the_time_anew() -> None:
    """It is about another cluster or another epoch then."""
    later = look(1_000, missing={ORDERS: Revision(9)})

    assert seen(look(0), later, attrs.evolve(later, began_ms=2_000, ended_ms=2_010)) == (990, 990)


def test_a_gap_between_two_looks_begins_the_time_anew_but_the_suspicion_stays() -> None:
    """A stopped process, or an etcd that did not answer for a while."""
    at_ms = 1_010 + GAP_MS_MAX

    assert seen(look(0), look(1_000), look(at_ms), look(at_ms + 1_000)) == (990, at_ms + 990)


def test_a_look_that_just_comes_in_time_does_not() -> None:
    assert seen(look(0), look(GAP_MS_MAX)) == (GAP_MS_MAX - 10, GAP_MS_MAX - 10)


def test_another_leader_of_the_coordination_etcd_begins_the_time_anew() -> None:
    """It has refreshed every lease, and nobody knows who could speak to the one before it."""
    moved = look(2_000, raft_term=3)

    assert seen(look(0), look(1_000), moved) == (0, 1_990)
    assert seen(look(0), moved, look(3_000, raft_term=3)) == (990, 2_990)


def test_a_look_that_failed_begins_the_time_anew() -> None:
    sight = blinded(looked(Sight(), look(0)), "no quorum")
    sight = looked(sight, look(1_000))

    assert gone_ms(sight, ORDERS, look(1_000)) == 0
    assert suspected_ms(sight, ORDERS, look(1_000)) == 990
    assert sight.why_anew == "no quorum"


def test_nothing_counts_while_most_regions_are_missing() -> None:
    """Then it is rather us; and when the others come back first, this one has its whole time."""
    blind = {"reporting": frozenset({B})}
    looks = [look(at_ms, **blind) for at_ms in range(0, 20_000, 1_000)]

    assert seen(*looks)[0] == 0
    assert seen(*looks, look(20_000), look(21_000))[0] == 1_990


def test_one_of_two_regions_may_be_gone() -> None:
    two = {"regions": frozenset({A, B}), "reporting": frozenset({B})}

    assert seen(look(0, **two), look(1_000, **two))[0] == 990


OTHER = GroupName("carts")
LOOKS = st.lists(
    st.tuples(
        st.integers(1, 6_000),  # since the look before
        st.integers(0, 400),  # how long it takes
        st.booleans(),  # whether the holder is missing
        st.integers(1, 2),  # the raft term
        st.integers(0, 2),  # how many of three regions report
        st.booleans(),  # whether the look fails
    ),
    max_size=40,
)


@given(LOOKS)
def test_gone_is_never_said_of_time_that_was_not_seen(
    steps: list[tuple[int, int, bool, int, int, bool]],
) -> None:
    """Compared with the plain words of the rule, over the whole history of looks."""
    sight, at_ms = Sight(), 0
    unbroken: list[Look] = []
    for step_ms, takes_ms, is_missing, term, reports, fails in steps:
        at_ms += step_ms
        made = Look(
            began_ms=at_ms,
            ended_ms=at_ms + takes_ms,
            raft_term=term,
            missing={ORDERS: SINCE, OTHER: SINCE} if is_missing else {OTHER: SINCE},
            regions=ALL,
            reporting=frozenset(sorted(ALL)[:reports]),
        )
        at_ms = made.ended_ms
        if fails:
            sight, unbroken = blinded(sight, "failed"), []
            continue
        sight = looked(sight, made)
        is_blind = reports < 2
        is_gap = bool(unbroken) and made.ended_ms - unbroken[-1].ended_ms > GAP_MS_MAX
        is_other = bool(unbroken) and unbroken[-1].raft_term != term
        if is_blind or is_gap or is_other:
            unbroken = []
        unbroken = [*unbroken, made] if is_missing else []
        allowed_ms = made.began_ms - unbroken[0].ended_ms if unbroken else 0

        assert gone_ms(sight, ORDERS, made) <= max(0, allowed_ms)
        assert gone_ms(sight, ORDERS, made) <= suspected_ms(sight, ORDERS, made)
