"""Pauses are told by the phases that they were made of."""

from __future__ import annotations

import pytest

from bench.pauses import ELSEWHERE, NOTICE, PHASES, phases_of, told

STEPS = [
    {"step": "check", "started_ms": 0, "ended_ms": 90},
    {"step": "drain", "started_ms": 95, "ended_ms": 120},
    {"step": "converge", "started_ms": 121, "ended_ms": 130},
    {"step": "pivot", "started_ms": 130, "ended_ms": 135},
    {"step": "open", "started_ms": 136, "ended_ms": 160},
    {"step": "reverse", "started_ms": 160, "ended_ms": None},
]


def test_phases_add_up_to_the_gap() -> None:
    found = phases_of(STEPS, from_ms=100, to_ms=175)

    assert found == {
        "drain": 20,
        "converge": 10,
        "pivot": 5,
        "open": 25,
        NOTICE: 15,
        ELSEWHERE: 0,
    }


@pytest.mark.parametrize(("from_ms", "to_ms"), [(50.0, 90.0), (160.0, 300.0)])
def test_a_gap_beside_the_steps_is_no_step_of_it(from_ms: float, to_ms: float) -> None:
    """A disk that stalls before or after stops a client as well."""
    assert phases_of(STEPS, from_ms=from_ms, to_ms=to_ms)[ELSEWHERE] == to_ms - from_ms


@pytest.mark.parametrize(("from_ms", "to_ms"), [(100.0, 128.0), (140.0, 150.0), (10.0, 20.0)])
def test_a_gap_that_ends_before_the_steps_do_is_still_shared_out(
    from_ms: float, to_ms: float
) -> None:
    """A client may write before the coordinator has heard that the target has opened."""
    found = phases_of(STEPS, from_ms=from_ms, to_ms=to_ms)

    assert sum(found.values()) == to_ms - from_ms
    assert all(part >= 0 for part in found.values())


def test_the_phase_that_took_most_is_named_first() -> None:
    usual = dict.fromkeys(PHASES, 1.0)
    slow = {**usual, "converge": 299.0}

    text = told([usual] * 99 + [slow])

    rest = "drain 1 + pivot 1 + open 1 + client notice 1 + beside the failover 1"
    assert text.endswith(f"the longest 2: 155 ms = converge 150 + {rest}")
