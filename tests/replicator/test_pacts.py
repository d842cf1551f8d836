"""A pact says nothing in the coordination etcd that the region does not already demand."""

import attrs
import pytest

from meshkit.model import Authority, CoordinationLoss, Group, GroupPolicy
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Revision, Token
from meshkit.promises import Pact
from replicator.pacts import Change, Standing, change_due

A, B, C, D = (ClusterName(name) for name in "abcd")
ORDERS = GroupName("orders")
KEEP = GroupPolicy(on_coordination_loss=CoordinationLoss.KEEP)


def group(*members: ClusterName, policy: GroupPolicy = KEEP) -> Group:
    return Group(name=ORDERS, prefixes=("/orders/",), members=members, policy=policy)


def pact(*members: ClusterName, epoch: int = 3, cluster: ClusterName = A) -> Pact:
    return Pact(group=ORDERS, epoch=Epoch(epoch), cluster=cluster, members=members)


def standing(described: Group, *, outside: Pact | None, here: Pact | None) -> Standing:
    token = Token(incarnation=1, revision=Revision(7))
    authority = Authority(group=ORDERS, epoch=Epoch(3), token=token, active=A)
    return Standing(group=described, authority=authority, outside=outside, here=here)


def test_a_pact_is_made_in_the_coordination_etcd_first() -> None:
    made = pact(A, B)

    assert change_due(standing(group(A, B), outside=None, here=None)) == Change(
        is_here=False, pact=made
    )
    assert change_due(standing(group(A, B), outside=made, here=None)) == Change(
        is_here=True, pact=made
    )
    assert change_due(standing(group(A, B), outside=made, here=made)) is None


def test_a_member_that_joins_is_asked_before_it_may_be_promoted() -> None:
    before, after = pact(A, B), pact(A, B, D)

    first = change_due(standing(group(A, B, D), outside=before, here=before))
    then = change_due(standing(group(A, B, D), outside=before, here=after))

    assert first == Change(is_here=True, pact=after)
    assert then == Change(is_here=False, pact=after)


def test_a_group_that_stops_to_keep_stops_here_before_anybody_is_told() -> None:
    made, lapsing = pact(A, B), group(A, B, policy=GroupPolicy())
    ended = attrs.evolve(made, is_in_force=False)

    assert change_due(standing(lapsing, outside=made, here=made)) == Change(
        is_here=True, pact=ended
    )
    assert change_due(standing(lapsing, outside=made, here=ended)) == Change(
        is_here=False, pact=None
    )
    assert change_due(standing(lapsing, outside=None, here=ended)) is None


def test_the_pact_of_the_cluster_before_goes_with_the_opening() -> None:
    """Until then nobody may be promoted whom the old one does not ask."""
    old = pact(B, A, C, epoch=2, cluster=B)

    kept = change_due(standing(group(A, B, C), outside=old, here=None))
    lapsed = change_due(standing(group(A, B, policy=GroupPolicy()), outside=old, here=None))

    assert kept == Change(is_here=False, pact=pact(A, B, C))
    assert lapsed == Change(is_here=False, pact=None)


def test_an_older_pact_here_does_not_count() -> None:
    """It was active before, in an epoch in which it asked others."""
    old, made = pact(A, B, epoch=1), pact(A, B)

    assert change_due(standing(group(A, B), outside=made, here=old)) == Change(
        is_here=True, pact=made
    )


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("members", [(A, B), (A, B, D), (A, B, C, D)])
@pytest.mark.parametrize("outside", [None, pact(A, B), pact(A, B, D), pact(B, A, epoch=2)])
@pytest.mark.parametrize(
    "here", [None, pact(A, B), pact(A, B, D), attrs.evolve(pact(A, B), is_in_force=False)]
)
def test_the_region_never_demands_less_than_the_coordination_etcd_says(
    keeps: bool, members: tuple[ClusterName, ...], outside: Pact | None, here: Pact | None
) -> None:
    """The invariant, kept by every single change from wherever it holds; and it comes to an end."""
    described = group(*members, policy=KEEP if keeps else GroupPolicy())
    if not holds(outside, here):
        pytest.skip("not a state that there is")
    for _ in range(6):
        due = change_due(standing(described, outside=outside, here=here))
        if due is None:
            break
        outside, here = (outside, due.pact) if due.is_here else (due.pact, here)
        assert holds(outside, here), (outside, here)
    assert due is None


def holds(outside: Pact | None, here: Pact | None) -> bool:
    if here is None or not here.is_in_force:
        return True
    if outside is None or outside.epoch != here.epoch:
        return False
    return set(outside.members) <= set(here.members)
