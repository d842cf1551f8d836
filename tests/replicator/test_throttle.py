"""The throttle lets through what its rate allows, whatever comes when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.throttle import SAVED_MS_MAX, Throttle

PIECES = st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 5_000)), max_size=40)


def test_without_a_limit_nothing_waits() -> None:
    throttle = Throttle(0)

    assert [throttle.take(10**9, now_ms=0) for _ in range(3)] == [0, 0, 0]


def test_what_is_more_than_the_rate_waits_for_its_turn() -> None:
    throttle = Throttle(1_000)
    waits = [throttle.take(500, now_ms=10_000) for _ in range(5)]

    assert waits == [0, 0, 0, 500, 1_000]


def test_what_was_saved_up_while_idle_is_bounded() -> None:
    throttle = Throttle(1_000)
    throttle.take(1, now_ms=0)
    waits = [throttle.take(1_000, now_ms=10**9) for _ in range(3)]

    assert waits == [0, 0, 1_000]


@given(st.integers(1, 10_000), PIECES)
def test_no_stretch_of_time_sees_more_than_the_rate_allows(
    rate: int, pieces: list[tuple[int, int]]
) -> None:
    """A sender waits before each piece; so the next one is asked for no sooner than that."""
    throttle = Throttle(rate)
    now_ms = 5_000
    let_through: list[tuple[int, int]] = []
    for gap_ms, size in pieces:
        now_ms += gap_ms
        now_ms += throttle.take(size, now_ms=now_ms)
        let_through.append((now_ms, size))

    for first in range(len(let_through)):
        for last in range(first, len(let_through)):
            passed = sum(size for _, size in let_through[first:last])
            took_ms = let_through[last][0] - let_through[first][0]
            # Each wait is rounded down to a millisecond.
            allowed_ms = took_ms + SAVED_MS_MAX + 1
            assert passed * 1_000 <= rate * (allowed_ms + 1)
