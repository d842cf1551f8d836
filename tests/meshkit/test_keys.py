"""The keyspace: every key lies under /mesh/v1/, none is built twice, and keys come apart again."""

import inspect
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.keys import (
    RESERVED,
    ROOT,
    CoordinationKeys,
    RegionalKeys,
    last_part,
    parts_below,
)
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch
from meshkit.prefixes import overlaps
from meshkit.store.txn import prefix_range

KEYSPACES = [CoordinationKeys, RegionalKeys]


def builders(keyspace: type) -> Iterator[tuple[str, inspect.Signature]]:
    for name, member in vars(keyspace).items():
        if isinstance(member, staticmethod):
            yield name, inspect.signature(member.__func__)


def example(keyspace: type, name: str, signature: inspect.Signature, salt: int) -> bytes:
    def argument(parameter: inspect.Parameter) -> str | int:
        is_number = parameter.annotation in {"int", "Epoch"}
        return salt if is_number else f"{parameter.name}-{salt}"

    built = getattr(keyspace, name)(*map(argument, signature.parameters.values()))
    assert isinstance(built, bytes)
    return built


def constants(keyspace: type) -> dict[str, bytes]:
    return {name: value for name, value in vars(keyspace).items() if isinstance(value, bytes)}


@pytest.mark.parametrize("keyspace", KEYSPACES)
def test_every_key_lies_under_the_root(keyspace: type) -> None:
    built = [example(keyspace, *builder, 1) for builder in builders(keyspace)]

    assert all(key.startswith(ROOT) for key in (*built, *constants(keyspace).values()))
    assert ROOT.startswith(RESERVED)


@pytest.mark.parametrize("keyspace", KEYSPACES)
def test_no_two_builders_give_the_same_key(keyspace: type) -> None:
    """Two records at one key would overwrite each other."""
    built = [example(keyspace, *builder, 1) for builder in builders(keyspace)]
    built += constants(keyspace).values()

    assert sorted(set(built)) == sorted(built)


@pytest.mark.parametrize("keyspace", KEYSPACES)
def test_different_arguments_give_different_keys(keyspace: type) -> None:
    for builder in builders(keyspace):
        assert example(keyspace, *builder, 1) != example(keyspace, *builder, 2)


@pytest.mark.parametrize("keyspace", KEYSPACES)
def test_every_builder_says_what_lies_there(keyspace: type) -> None:
    """docs/keyspace.md is made of these."""
    for name, _ in builders(keyspace):
        assert inspect.getdoc(getattr(keyspace, name)), f"{name} has no docstring"


def test_numbers_in_keys_sort_as_numbers() -> None:
    """etcd sorts keys as bytes."""
    group = GroupName("orders")

    assert RegionalKeys.segment_cut(group, Epoch(9)) < RegionalKeys.segment_cut(group, Epoch(10))
    assert CoordinationKeys.audit(group, 99) < CoordinationKeys.audit(group, 100)


def test_one_names_keys_are_never_in_anothers_prefix() -> None:
    """`orders` and `orders-archive` share their first letters, and nothing else."""
    start, end = prefix_range(CoordinationKeys.commands_to(ClusterName("us-east")))
    other = CoordinationKeys.command(ClusterName("us-east-2"), GroupName("orders"))

    assert not start <= other < end


def test_a_group_checkpoint_lies_below_the_checkpoints_of_its_source_and_the_main_one_does_not() -> (
    None
):
    source = ClusterName("us-east")
    below = RegionalKeys.checkpoints_of(source)

    assert parts_below(below, RegionalKeys.group_checkpoint(source, GroupName("orders"))) == (
        "orders",
    )
    assert parts_below(below, RegionalKeys.checkpoint(source)) is None


def test_a_key_comes_apart_into_what_it_was_built_from() -> None:
    key = CoordinationKeys.command(ClusterName("us-east"), GroupName("orders"))

    assert parts_below(CoordinationKeys.commands, key) == ("us-east", "orders")
    assert last_part(key) == "orders"
    assert parts_below(CoordinationKeys.answers, key) is None


def test_a_key_that_is_not_text_still_comes_apart() -> None:
    """Somebody may put anything under our prefix; reading it must not raise."""
    assert parts_below(ROOT, ROOT + b"\xff/x") == ("�", "x")


@given(st.binary(max_size=4), st.binary(max_size=4))
def test_prefixes_overlap_exactly_if_one_key_could_have_both(one: bytes, other: bytes) -> None:
    longest = max(one, other, key=len)

    assert overlaps(one, other) == (longest.startswith(one) and longest.startswith(other))
    assert overlaps(one, other) == overlaps(other, one)


@given(st.binary(max_size=5), st.binary(max_size=5))
def test_a_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix: bytes, key: bytes) -> None:
    start, end = prefix_range(prefix)
    key = key or b"\x00"
    is_inside = start <= key and (end == b"\x00" or key < end)

    assert is_inside == key.startswith(prefix)
