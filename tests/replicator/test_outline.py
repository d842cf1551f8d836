"""Outlines: what two copies tell each other tells exactly how they differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.outline import (
    FINGERPRINT_BYTES,
    NO_DIGEST,
    NO_FINGERPRINT,
    PART_KEYS,
    difference_of,
    digest_of,
    fingerprint_of,
    items_in_parts,
    part_digests,
    part_starts,
    places_of_parts,
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


MANY = st.dictionaries(st.binary(max_size=2), st.binary(max_size=1), max_size=80)


def columns(state: dict[bytes, bytes]) -> tuple[list[bytes], list[bytes]]:
    return [key for key, _ in items(state)], [value for _, value in items(state)]


@given(MANY, MANY, st.booleans())
def test_parts_that_differ_hold_everything_that_does(
    one: dict[bytes, bytes], changes: dict[bytes, bytes], removes: bool
) -> None:
    """What is told of no part is taken to be as it should be."""
    there, here = one, {k: v for k, v in one.items() if not removes or k not in changes}
    here |= {} if removes else changes
    starts = part_starts(columns(there)[0])
    told = part_digests(*columns(there), starts)
    own = part_digests(*columns(here), starts)
    parts = [number for number, digest in enumerate(told) if digest != own[number]]
    places = places_of_parts(columns(here)[0], starts)
    shown = [item for part in parts for item in items(here)[places[part] : places[part + 1]]]

    wanted = items_in_parts(items(there), parts)
    missing, dropped = difference_of(wanted, b"".join(fingerprint_of(*item) for item in shown))

    gone = {shown[place][0] for place in dropped}
    assert {k: v for k, v in here.items() if k not in gone} | dict(missing) == there


def test_one_key_that_differs_is_looked_for_in_its_part_only() -> None:
    """Else each side hashes every key of the stretch by itself."""
    there = {b"%03d" % n: b"v" for n in range(10 * PART_KEYS)}
    starts = part_starts(columns(there)[0])
    told = part_digests(*columns(there), starts)

    own = part_digests(*columns(there | {b"100": b"w", b"100x": b"new"}), starts)

    assert [n for n, digest in enumerate(told) if digest != own[n]] == [100 // PART_KEYS]


def test_a_part_with_a_key_to_be_looked_at_by_itself_has_no_digest() -> None:
    """A lease is nothing that a digest of keys and values shows."""
    keys = [b"%03d" % n for n in range(3 * PART_KEYS)]

    told = part_digests(keys, keys, part_starts(keys), by_key=[keys[PART_KEYS]])

    assert [digest == NO_DIGEST for digest in told] == [False, True, False]


def test_a_part_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no part 1"):
        items_in_parts([(b"a", b"1")], [1])
