"""Claims about digests: equal exactly for equal states, whatever the order and the parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.digest import Digest, bucket_of, entry_hash

BUCKETS = 8
STATES = st.dictionaries(st.binary(max_size=3), st.binary(max_size=3), max_size=8)


def digest(state: dict[bytes, bytes]) -> Digest:
    return Digest.of(state.items(), buckets_count=BUCKETS)


@given(STATES, STATES)
def test_digests_are_equal_exactly_when_the_states_are(
    one: dict[bytes, bytes], other: dict[bytes, bytes]
) -> None:
    assert (digest(one) == digest(other)) is (one == other)
    assert (not digest(one).differing(digest(other))) is (one == other)


@given(STATES, STATES)
def test_the_buckets_that_differ_are_those_of_the_keys_that_differ(
    one: dict[bytes, bytes], other: dict[bytes, bytes]
) -> None:
    differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    expected = {bucket_of(key, BUCKETS) for key in differing}
    assert digest(one).differing(digest(other)) == expected


@given(STATES, st.randoms(use_true_random=False))
def test_neither_order_nor_parts_matter(state: dict[bytes, bytes], rng: object) -> None:
    items = list(state.items())
    rng.shuffle(items)  # type: ignore[attr-defined]
    half = len(items) // 2
    merged = Digest.of(items[:half], buckets_count=BUCKETS)
    merged.merge(Digest.of(items[half:], buckets_count=BUCKETS))
    assert merged == digest(state)
    assert merged.keys_count == len(state)


@given(STATES)
def test_a_digest_survives_its_bytes(state: dict[bytes, bytes]) -> None:
    raw = digest(state).to_bytes()
    assert Digest.from_bytes(raw, keys_count=len(state)) == digest(state)


def test_what_is_key_and_what_is_value_matters() -> None:
    assert entry_hash(b"ab", b"c") != entry_hash(b"a", b"bc")


@pytest.mark.parametrize("raw", [b"", b"x" * 15, b"x" * 17])
def test_bytes_that_are_no_digest_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="hashes"):
        Digest.from_bytes(raw, keys_count=0)


def test_digests_of_different_width_do_not_compare() -> None:
    with pytest.raises(ValueError, match="buckets"):
        Digest(4).differing(Digest(8))
