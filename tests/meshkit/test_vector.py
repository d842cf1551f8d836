"""The algebra of `ClusterVersionVector`: a partial order with a least upper bound."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Sequence
from meshkit.vector import ClusterVersionVector, LogName, VectorOrder, merged

EMPTY = ClusterVersionVector()

# Few logs and small sequences, so that equal, ordered and concurrent vectors all occur often.
logs = st.builds(
    LogName,
    cluster=st.sampled_from(["ap-south", "eu-west", "us-east"]).map(ClusterName),
    incarnation=st.sampled_from(["a", "b"]).map(Incarnation),
)
sequences = st.integers(min_value=0, max_value=3).map(Sequence)
vectors = st.dictionaries(logs, sequences, max_size=4).map(ClusterVersionVector.of)
wide_vectors = st.dictionaries(logs, st.integers(0, 2**63 - 1).map(Sequence)).map(
    ClusterVersionVector.of
)


def up_to(one: ClusterVersionVector, other: ClusterVersionVector) -> bool:
    return one.compare(other) in {VectorOrder.EQUAL, VectorOrder.BEFORE}


def log(cluster: str, incarnation: str = "a") -> LogName:
    return LogName(cluster=ClusterName(cluster), incarnation=Incarnation(incarnation))


def vector(**entries: int) -> ClusterVersionVector:
    return ClusterVersionVector.of({log(name): Sequence(n) for name, n in entries.items()})


# --- the order ----------------------------------------------------------------------------------


@given(vectors)
def test_the_order_is_reflexive(one: ClusterVersionVector) -> None:
    assert one.compare(one) is VectorOrder.EQUAL


@given(vectors, vectors)
def test_the_order_is_antisymmetric(one: ClusterVersionVector, other: ClusterVersionVector) -> None:
    if up_to(one, other) and up_to(other, one):
        assert one == other


@given(vectors, vectors, vectors)
def test_the_order_is_transitive(
    one: ClusterVersionVector, two: ClusterVersionVector, three: ClusterVersionVector
) -> None:
    if up_to(one, two) and up_to(two, three):
        assert up_to(one, three)


@given(vectors, vectors)
def test_compare_from_the_other_side_is_the_mirror_image(
    one: ClusterVersionVector, other: ClusterVersionVector
) -> None:
    mirror = {
        VectorOrder.EQUAL: VectorOrder.EQUAL,
        VectorOrder.BEFORE: VectorOrder.AFTER,
        VectorOrder.AFTER: VectorOrder.BEFORE,
        VectorOrder.CONCURRENT: VectorOrder.CONCURRENT,
    }

    assert other.compare(one) is mirror[one.compare(other)]


@given(vectors, vectors, logs, sequences)
def test_before_means_that_everything_contained_here_is_contained_there(
    one: ClusterVersionVector, other: ClusterVersionVector, name: LogName, sequence: Sequence
) -> None:
    if up_to(one, other) and one.contains(name, sequence):
        assert other.contains(name, sequence)


@given(vectors, vectors)
def test_concurrent_means_that_each_contains_something_the_other_does_not(
    one: ClusterVersionVector, other: ClusterVersionVector
) -> None:
    ahead = any(not other.contains(name, sequence) for name, sequence in one.entries)
    behind = any(not one.contains(name, sequence) for name, sequence in other.entries)

    assert (one.compare(other) is VectorOrder.CONCURRENT) == (ahead and behind)


# --- the least upper bound ----------------------------------------------------------------------


@given(vectors, vectors)
def test_merge_is_commutative(one: ClusterVersionVector, other: ClusterVersionVector) -> None:
    assert one.merge(other) == other.merge(one)


@given(vectors, vectors, vectors)
def test_merge_is_associative(
    one: ClusterVersionVector, two: ClusterVersionVector, three: ClusterVersionVector
) -> None:
    assert one.merge(two).merge(three) == one.merge(two.merge(three))


@given(vectors)
def test_merge_is_idempotent_and_the_empty_vector_is_neutral(one: ClusterVersionVector) -> None:
    assert one.merge(one) == one
    assert one.merge(EMPTY) == one


@given(vectors, vectors)
def test_merge_is_an_upper_bound(one: ClusterVersionVector, other: ClusterVersionVector) -> None:
    assert up_to(one, one.merge(other))
    assert up_to(other, one.merge(other))


@given(vectors, vectors, vectors)
def test_merge_is_the_least_upper_bound(
    one: ClusterVersionVector, other: ClusterVersionVector, bound: ClusterVersionVector
) -> None:
    if up_to(one, bound) and up_to(other, bound):
        assert up_to(one.merge(other), bound)


@given(vectors, vectors)
def test_compare_agrees_with_merge(one: ClusterVersionVector, other: ClusterVersionVector) -> None:
    assert up_to(one, other) == (one.merge(other) == other)


@given(st.lists(vectors, max_size=5))
def test_merging_many_is_merging_one_by_one_in_any_order(many: list[ClusterVersionVector]) -> None:
    assert merged(many) == merged(reversed(many))
    assert all(up_to(one, merged(many)) for one in many)


def test_merging_none_gives_the_empty_vector() -> None:
    assert merged([]) == EMPTY


@given(vectors, logs, sequences)
def test_advancing_never_goes_back_and_reaches_the_sequence(
    one: ClusterVersionVector, name: LogName, sequence: Sequence
) -> None:
    after = one.advanced(name, sequence)

    assert up_to(one, after)
    assert after.contains(name, sequence)
    assert after.sequence_of(name) == max(sequence, one.sequence_of(name))


# --- as JSON ------------------------------------------------------------------------------------


@given(wide_vectors)
def test_json_reads_back_as_the_same_vector(one: ClusterVersionVector) -> None:
    text = json.dumps(one.to_json())

    assert ClusterVersionVector.from_json(json.loads(text)) == one


@given(wide_vectors)
def test_equal_vectors_are_equal_json_whatever_the_order_of_entries(
    one: ClusterVersionVector,
) -> None:
    shuffled = dict(reversed(one.to_json().items()))

    again = ClusterVersionVector.from_json(shuffled)

    assert json.dumps(again.to_json()) == json.dumps(one.to_json())
    assert hash(again) == hash(one)


def test_json_names_cluster_and_incarnation() -> None:
    one = ClusterVersionVector.of({log("us-east", "7f3a"): Sequence(42)})

    assert one.to_json() == {"us-east#7f3a": 42}


# --- examples an operator would know ------------------------------------------------------------


def test_a_lagging_cluster_is_before_and_a_diverged_one_concurrent() -> None:
    source = vector(us=100, eu=7)

    assert vector(us=90, eu=7).compare(source) is VectorOrder.BEFORE
    assert vector(us=90, eu=8).compare(source) is VectorOrder.CONCURRENT


def test_two_incarnations_of_a_cluster_are_different_logs() -> None:
    """After a restore the same number names another record."""
    before = ClusterVersionVector.of({log("us-east", "a"): Sequence(100)})
    after = ClusterVersionVector.of({log("us-east", "b"): Sequence(100)})

    assert before.compare(after) is VectorOrder.CONCURRENT
    assert not before.contains(log("us-east", "b"), Sequence(1))


def test_an_entry_of_zero_is_no_entry() -> None:
    assert vector(us=0) == EMPTY


def test_an_unsorted_vector_cannot_be_made() -> None:
    """Invariant: entries are canonical, so equal vectors are equal values."""
    entries = ((log("us"), Sequence(1)), (log("eu"), Sequence(1)))

    with pytest.raises(AssertionError, match="canonical"):
        ClusterVersionVector(entries)
