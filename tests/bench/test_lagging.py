"""How P6 judges: the truth it holds the metric against."""

from __future__ import annotations

import pytest

from bench.lagging import Observed, is_right, true_lag_s


def test_the_truth_is_the_age_of_the_oldest_write_that_is_missing() -> None:
    """What was written later, or has arrived, does not count."""
    seen = Observed(written={b"1": 1.0, b"2": 2.0, b"3": 9.0}, arrived={b"1": 4.0, b"2": 5.0})

    assert true_lag_s(seen, 0.5) == 0
    assert true_lag_s(seen, 3.0) == 2.0
    assert true_lag_s(seen, 4.5) == 2.5
    assert true_lag_s(seen, 6.0) == 0
    assert true_lag_s(seen, 10.0) == 1.0


@pytest.mark.parametrize(
    ("said", "true", "right"),
    [(0.0, 0.0, True), (0.05, 0.0, True), (0.06, 0.0, False), (None, 0.0, False),
     (10.5, 10.0, True), (10.6, 10.0, False), (0.0, 10.0, False), (0.2, 0.25, True)],
)  # fmt: skip
def test_right_is_within_a_twentieth_or_fifty_milliseconds(
    said: float | None, true: float, right: bool
) -> None:
    """A metric that says nothing is not right."""
    assert is_right(said, true) is right
