"""A pact says nothing in the coordination etcd that the region does not already demand."""

import random

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


def standing(
    described: Group, *, outside: Pact | None, here: Pact | None, revision: int = 0
) -> Standing:
    token = Token(incarnation=1, revision=Revision(7))
    authority = Authority(group=ORDERS, epoch=Epoch(3), token=token, active=A)
    return Standing(
        group=described,
        authority=authority,
        outside=outside,
        here=here,
        outside_revision=Revision(revision),
    )


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
    ended = attrs.evolve(made, is_in_force=False, replaces=Revision(5))

    assert change_due(standing(lapsing, outside=made, here=made, revision=5)) == Change(
        is_here=True, pact=ended
    )
    assert change_due(standing(lapsing, outside=made, here=ended, revision=5)) == Change(
        is_here=False, pact=None
    )
    assert change_due(standing(lapsing, outside=None, here=ended)) is None


def test_none_is_put_in_force_on_one_that_may_yet_be_deleted() -> None:
    """The group kept, lapsed and keeps again, and the deletion in between is still on its way."""
    made = pact(A, B)
    ended = attrs.evolve(made, is_in_force=False, replaces=Revision(5))

    anew = change_due(standing(group(A, B), outside=made, here=ended, revision=5))
    then = change_due(standing(group(A, B), outside=made, here=ended, revision=6))

    assert anew == Change(is_here=False, pact=made)
    assert then == Change(is_here=True, pact=made)


def test_what_is_to_be_deleted_is_stored_first_though_none_was_in_force() -> None:
    made = pact(A, B)
    lapsing = group(A, B, policy=GroupPolicy())
    mark = attrs.evolve(made, members=(), is_in_force=False, replaces=Revision(5))

    first = change_due(standing(lapsing, outside=made, here=None, revision=5))
    then = change_due(standing(lapsing, outside=made, here=mark, revision=5))

    assert first == Change(is_here=True, pact=mark)
    assert then == Change(is_here=False, pact=None)


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


def holds(outside: Pact | None, here: Pact | None) -> bool:
    if here is None or not here.is_in_force:
        return True
    if outside is None or outside.epoch != here.epoch:
        return False
    return set(outside.members) <= set(here.members)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("members", [(A, B), (A, B, D), (A, B, C, D)])
@pytest.mark.parametrize(
    ("outside", "here"),
    [
        (outside, here)
        for outside in (None, pact(A, B), pact(A, B, D), pact(B, A, epoch=2))
        for here in (None, pact(A, B), pact(A, B, D), attrs.evolve(pact(A, B), is_in_force=False))
        if holds(outside, here)
    ],
)
def test_the_region_never_demands_less_than_the_coordination_etcd_says(
    keeps: bool, members: tuple[ClusterName, ...], outside: Pact | None, here: Pact | None
) -> None:
    """The invariant, kept by every single change from wherever it holds; and it comes to an end."""
    described = group(*members, policy=KEEP if keeps else GroupPolicy())
    etcds = Etcds(outside=outside, here=here, revision=0 if outside is None else 1)
    for _ in range(8):
        due = change_due(etcds.standing(described))
        if due is None:
            break
        etcds.arrive(etcds.send(due))
        assert holds(etcds.outside, etcds.here), etcds
    assert due is None


@pytest.mark.parametrize("seed", range(300))
def test_whatever_arrives_late_the_region_never_demands_less(seed: int) -> None:
    """S3: each change may arrive when it is long given up, in any order, or never."""
    draw = random.Random(seed)
    etcds, on_the_way = Etcds(), list[Sent]()
    described = group(A, B)
    for _ in range(120):
        act = draw.randrange(4)
        if act == 0:
            members = draw.choice([(A, B), (A, B, C), (A, B, D)])
            keeps = draw.choice([KEEP, GroupPolicy()])
            described = group(*members, policy=keeps)
        elif act == 1 and on_the_way:
            etcds.arrive(on_the_way.pop(draw.randrange(len(on_the_way))))
        elif (due := change_due(etcds.standing(described))) is not None:
            on_the_way.append(etcds.send(due))
            if draw.random() < 0.5:
                etcds.arrive(on_the_way.pop())
        assert holds(etcds.outside, etcds.here), etcds


@attrs.frozen
class Sent:
    change: Change
    over: int
    """The mod revision that it compares."""


@attrs.define
class Etcds:
    """One pact in two etcds."""

    outside: Pact | None = None
    here: Pact | None = None
    revision: int = 0
    here_revision: int = 0
    counted: int = 1

    def standing(self, described: Group) -> Standing:
        return standing(described, outside=self.outside, here=self.here, revision=self.revision)

    def send(self, change: Change) -> Sent:
        return Sent(change, self.here_revision if change.is_here else self.revision)

    def arrive(self, sent: Sent) -> None:
        pact_ = sent.change.pact
        self.counted += 1
        revision = self.counted if pact_ is not None else 0
        if sent.change.is_here and sent.over == self.here_revision:
            self.here, self.here_revision = pact_, revision
        elif not sent.change.is_here and sent.over == self.revision:
            self.outside, self.revision = pact_, revision
