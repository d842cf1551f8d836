"""How long a frame waits for company follows what the target's transactions take."""

from __future__ import annotations

import pytest

from replicator.limits import Limits
from replicator.linger import linger_ms
from replicator.room import Pace

LIMITS = Limits(linger_ms=2, linger_ms_max=8)


@pytest.mark.parametrize(
    ("apply_ms", "waits_ms"), [(0, 2), (3, 2), (5, 2), (6, 3), (11, 5), (16, 8), (5_000, 8)]
)
def test_a_frame_waits_half_a_transaction_within_bounds(apply_ms: int, waits_ms: int) -> None:
    assert linger_ms(LIMITS, apply_ms=apply_ms) == waits_ms


def test_a_bound_below_the_shortest_wait_does_not_count() -> None:
    assert linger_ms(Limits(linger_ms=5, linger_ms_max=0), apply_ms=100) == 5


def test_what_a_transaction_takes_follows_the_newest() -> None:
    pace = Pace(LIMITS)
    assert pace.apply_ms == 0
    for _ in range(100):
        pace.on_done(20, is_filled=False)
    assert pace.apply_ms == 20
    pace.on_done(500, is_filled=False)
    assert pace.apply_ms < 100, "one slow transaction says little"
    for _ in range(50):
        pace.on_done(4, is_filled=False)
    assert pace.apply_ms == 4
