"""Outlines: what two copies tell each other tells exactly how they differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.outline import (
    FINGERPRINT_BYTES,
    NO_FINGERPRINT,
    difference_of,
    digest_of,
    fingerprint_of,
)

STATES = st.dictionaries(st.binary(max_size=3), st.binary(max_size=3), max_size=8)


def items(state: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(sorted(state.items()))


@given(STATES, STATES)
def test_what_is_missing_and_what_is_too_much_makes_one_state_the_other(
    there: dict[bytes, bytes], here: dict[bytes, bytes]
) -> None:
    fingerprints = b"".join(fingerprint_of(*item) for item in items(here))

    missing, dropped = difference_of(items(there), fingerprints)

    keys = [key for key, _ in items(here)]
    made = {key: value for key, value in here.items() if key not in {keys[d] for d in dropped}}
    assert made | dict(missing) == there
    assert set(missing) == set(items(there)) - set(items(here))


@given(STATES, STATES)
def test_digests_are_equal_exactly_when_the_states_are(
    one: dict[bytes, bytes], other: dict[bytes, bytes]
) -> None:
    assert (digest_of(items(one)) == digest_of(items(other))) is (one == other)


def test_a_key_that_must_be_written_again_is_never_taken_for_what_it_should_be() -> None:
    """Keys on a lease, for one: there may be several, and none may be passed over."""
    missing, dropped = difference_of([(b"a", b"1")], NO_FINGERPRINT * 3)

    assert (missing, dropped) == (((b"a", b"1"),), (0, 1, 2))


def test_half_a_mark_is_no_mark() -> None:
    with pytest.raises(ValueError, match="not a number of fingerprints"):
        difference_of([], bytes(FINGERPRINT_BYTES + 1))
