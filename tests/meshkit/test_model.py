"""Clusters and groups: which changes are allowed, how a cluster stands, what a group may claim."""

import itertools

import attrs
import pytest

from meshkit.errors import InvalidInput
from meshkit.model import (
    INTENT_TRANSITIONS,
    Authority,
    ClusterDescriptor,
    ClusterIntent,
    ClusterState,
    Group,
    GroupPolicy,
    check_group,
    check_transition,
    derived_state,
)
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch

US, EU, AP = ClusterName("us-east"), ClusterName("eu-west"), ClusterName("ap-south")
ORDERS, BILLING = GroupName("orders"), GroupName("billing")
IN_SERVICE, DRAINING, MAINTENANCE = ClusterIntent


def group(
    name: str = "orders",
    prefixes: tuple[str, ...] = ("/orders/",),
    members: tuple[ClusterName, ...] = (US, EU),
) -> Group:
    return Group(name=GroupName(name), prefixes=prefixes, members=members)


def authority(name: GroupName, active: ClusterName) -> Authority:
    return Authority(group=name, epoch=Epoch(1), token=NO_TOKEN, active=active)


def refusal(candidate: Group, *others: Group) -> str:
    with pytest.raises(InvalidInput) as refused:
        check_group(candidate, others=others, clusters=(US, EU, AP))
    return str(refused.value)


# --- transitions --------------------------------------------------------------------------------

ALLOWED = {
    (IN_SERVICE, DRAINING),
    (IN_SERVICE, MAINTENANCE),
    (DRAINING, IN_SERVICE),
    (DRAINING, MAINTENANCE),
    (MAINTENANCE, IN_SERVICE),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ClusterIntent, repeat=2)))
def test_every_transition_is_allowed_or_refused_as_the_table_says(
    before: ClusterIntent, after: ClusterIntent
) -> None:
    if before is after or (before, after) in ALLOWED:
        check_transition(before, after)
        return
    with pytest.raises(InvalidInput):
        check_transition(before, after)


def test_the_table_has_a_row_for_every_intent_and_no_way_in_without_a_way_out() -> None:
    assert set(INTENT_TRANSITIONS) == set(ClusterIntent)
    assert all(INTENT_TRANSITIONS.values())
    assert set().union(*INTENT_TRANSITIONS.values()) == set(ClusterIntent)


def test_a_refused_transition_says_which_are_allowed() -> None:
    with pytest.raises(InvalidInput) as refused:
        check_transition(MAINTENANCE, DRAINING)

    assert str(refused.value) == (
        "a cluster in maintenance cannot go to draining: it may go to in-service"
    )


# --- how a cluster stands -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intent", "active_groups", "sealed_groups", "expected"),
    [
        (IN_SERVICE, (), (), ClusterState.PASSIVE),
        (IN_SERVICE, (ORDERS,), (), ClusterState.ACTIVE),
        (IN_SERVICE, (ORDERS,), (ORDERS,), ClusterState.FENCED),
        (IN_SERVICE, (ORDERS, BILLING), (ORDERS,), ClusterState.ACTIVE),
        (IN_SERVICE, (), (ORDERS,), ClusterState.PASSIVE),
        (DRAINING, (ORDERS,), (), ClusterState.DRAINING),
        (MAINTENANCE, (), (), ClusterState.MAINTENANCE),
        (MAINTENANCE, (ORDERS,), (ORDERS,), ClusterState.MAINTENANCE),
    ],
)
def test_how_a_cluster_stands_is_derived_and_never_stored(
    intent: ClusterIntent,
    active_groups: tuple[GroupName, ...],
    sealed_groups: tuple[GroupName, ...],
    expected: ClusterState,
) -> None:
    """Thousands of pivots must not contend for one descriptor (5.1 rule 12)."""
    authorities = [authority(name, US) for name in active_groups]
    elsewhere = authority(GroupName("elsewhere"), EU)

    state = derived_state(
        ClusterDescriptor(name=US, intent=intent),
        authorities=[*authorities, elsewhere],
        sealed=frozenset(sealed_groups),
    )

    assert state is expected


# --- what a group may claim ---------------------------------------------------------------------


def test_a_group_beside_others_is_allowed() -> None:
    others = [group("billing", prefixes=("/billing/",), members=(US,))]

    check_group(group(prefixes=("/orders/", "/carts/")), others=others, clusters=(US, EU))


def test_a_group_does_not_collide_with_its_own_former_self() -> None:
    check_group(group(prefixes=("/orders/eu/",)), others=[group()], clusters=(US, EU))


def test_a_group_without_a_prefix_is_refused() -> None:
    assert refusal(group(prefixes=())) == "group orders has no prefix"


def test_the_empty_prefix_is_refused() -> None:
    assert refusal(group(prefixes=("",))) == (
        "group orders has an empty prefix, which is every key"
    )


@pytest.mark.parametrize("prefix", ["/", "/m", "/mesh/", "/mesh/v1/", "/mesh/v2/x"])
def test_meshkits_own_keys_cannot_be_claimed(prefix: str) -> None:
    assert refusal(group(prefixes=(prefix,))) == (
        f"prefix {prefix!r} of group orders overlaps '/mesh/' of MeshKit itself"
    )


@pytest.mark.parametrize("prefix", ["/orders/", "/orders/eu/", "/orde"])
def test_another_groups_keys_cannot_be_claimed(prefix: str) -> None:
    candidate = group("billing", prefixes=(prefix,))

    assert refusal(candidate, group()) == (
        f"prefix {prefix!r} of group billing overlaps '/orders/' of group orders"
    )


def test_a_groups_own_prefixes_may_not_overlap() -> None:
    """A key would be in the group twice, and a scope could be changed by half."""
    assert refusal(group(prefixes=("/orders/", "/orders/eu/"))) == (
        "prefix '/orders/eu/' of group orders overlaps '/orders/' of the same group orders"
    )


def test_a_group_needs_a_member() -> None:
    assert refusal(group(members=())) == "group orders has no member cluster"


def test_a_member_named_twice_is_refused() -> None:
    assert refusal(group(members=(US, US))) == "group orders names a member twice"


def test_an_unknown_member_is_refused_with_the_way_to_make_it_known() -> None:
    candidate = group(members=(US, ClusterName("mars")))

    with pytest.raises(InvalidInput, match="there is no cluster 'mars'") as refused:
        check_group(candidate, others=(), clusters=(US,))

    assert refused.value.hint == "apply the cluster first: mesh clusters apply -f FILE"
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "field", ["lag_ms_max", "catch_up_lag_ms_max", "catch_up_ms_max", "pause_budget_ms"]
)
def test_a_policy_has_no_limit_of_zero(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        attrs.evolve(GroupPolicy(), **{field: 0})


def test_prefixes_are_keys_as_bytes() -> None:
    assert group(prefixes=("/ü/",)).prefix_bytes == ("/ü/".encode(),)
