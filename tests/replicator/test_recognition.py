"""Claims about recognising an etcd that went back: every mark by itself, and no false alarm."""

from __future__ import annotations

import attrs
import pytest

from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision
from meshkit.store.port import StoreStatus
from replicator.recognition import MEMBERS_MAX, Look, Observation, observed, went_back

A = ClusterName("a")
ONE = Incarnation("one")


def status(**more: int) -> StoreStatus:
    plain = StoreStatus(
        cluster_id=7,
        member_id=1,
        version="3.5.30",
        revision=Revision(1000),
        raft_term=3,
        raft_index=5000,
        leader_id=1,
        db_size_bytes=0,
    )
    return attrs.evolve(plain, **more)  # type: ignore[arg-type]


def look(*, witness: int = 9, incarnation: str | None = "one", **more: int) -> Look:
    known = None if incarnation is None else Incarnation(incarnation)
    return Look(status=status(**more), witness=witness, incarnation=known)


SEEN = observed(None, look(), cluster=A)


def test_an_etcd_that_goes_on_is_the_one_it_was() -> None:
    assert went_back(None, look()) == ""
    assert went_back(SEEN, look()) == ""
    assert went_back(SEEN, look(revision=2000, raft_index=9000, witness=10)) == ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (look(cluster_id=8, revision=2000, raft_index=9000), "another etcd"),
        (look(revision=999, raft_index=9000), "revision is 999 after 1000"),
        (look(revision=2_000_000, raft_index=4999), "raft index of member 1 is 4999 after 5000"),
        (look(revision=2_000_000, raft_index=9000, witness=8), "witness 8 after 9"),
        (look(revision=2_000_000, raft_index=9000, incarnation="zero"), "incarnation 'zero'"),
        (look(revision=2_000_000, raft_index=9000, incarnation=""), "incarnation ''"),
    ],
)
def test_each_mark_tells_by_itself(found: Look, words: str) -> None:
    """S25: a bumped revision hides one mark, writes since the restore hide another."""
    assert words in went_back(SEEN, found)


def test_a_member_that_lags_behind_another_is_no_restore() -> None:
    """Clients move from member to member, and followers apply later."""
    assert went_back(SEEN, look(member_id=2, raft_index=4000)) == ""


def test_every_member_is_remembered() -> None:
    """A restored etcd is recognised by whichever member answers first."""
    seen = observed(SEEN, look(member_id=2, raft_index=4900, revision=1001), cluster=A)
    back = observed(seen, look(member_id=1, raft_index=5100, revision=1002), cluster=A)

    assert "member 2 is 12 after 4900" in went_back(
        back, look(member_id=2, raft_index=12, revision=2_000_000)
    )
    assert "member 1 is 12 after 5100" in went_back(
        back, look(member_id=1, raft_index=12, revision=2_000_000)
    )


def test_members_remembered_are_bounded() -> None:
    seen: Observation | None = None
    for member in range(MEMBERS_MAX * 2):
        seen = observed(seen, look(member_id=member), cluster=A)

    assert seen is not None
    assert len(seen.members) == MEMBERS_MAX
    assert f"{MEMBERS_MAX * 2 - 1:x}" in seen.members


def test_what_an_older_version_observed_is_still_a_mark() -> None:
    """It named one member, and knew no witness."""
    old = Observation(
        cluster=A,
        etcd_cluster_id="7",
        revision=1000,
        raft_index=5000,
        member_id="1",
        incarnation=ONE,
    )

    assert went_back(old, look()) == ""
    assert "raft index" in went_back(old, look(revision=2_000_000, raft_index=10))


def test_an_incarnation_that_nobody_knew_yet_is_no_difference() -> None:
    """The very first look comes before the etcd was given an identity."""
    first = observed(None, look(incarnation="", witness=0), cluster=A)

    assert went_back(first, look(incarnation="one", witness=1)) == ""
