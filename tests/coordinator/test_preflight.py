"""Each check: what passes, what fails, what is unknown, and what may be waived."""

from __future__ import annotations

import attrs
import pytest

from coordinator.governance.check import Level, lasting
from coordinator.governance.preflight import (
    CHECK_NAMES,
    CLOSE_AGE_MS_MAX,
    Situation,
    how_close,
    preview,
)
from meshkit.model import (
    Authority,
    ClusterDescriptor,
    ClusterIntent,
    Group,
    GroupPolicy,
    LeasePolicy,
)
from meshkit.names import FailoverId, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Sequence
from meshkit.status import (
    ClusterHealth,
    GroupBehind,
    GroupHealth,
    Lag,
    StreamState,
    StreamStatus,
)
from meshkit.store.port import StoreStatus
from tests.coordinator.fake_region import ORDERS, A, B

NOW = 1_000_000_000


def health(cluster) -> ClusterHealth:
    return ClusterHealth(
        cluster=cluster,
        replicator="r1",
        incarnation=Incarnation("x"),
        etcd_version="3.5.12",
        etcd_cluster_id="1",
        revision=1,
        raft_index=1,
        db_size_bytes=1,
        certificate_not_after_ms=NOW + 7_200_000,
        groups={
            ORDERS: GroupHealth(
                mode="superseded",
                epoch=Epoch(1),
                command_token=NO_TOKEN,
                permit=False,
                in_step=True,
            )
        },
        at_ms=NOW - 1_000,
    )


def obstructed() -> ClusterHealth:
    known = attrs.evolve(health(B).groups[ORDERS], leases="lease 1b59 lives here already")
    return attrs.evolve(health(B), groups={ORDERS: known})


def stream(state=StreamState.STREAMING, lag_ms: int | None = 12) -> StreamStatus:
    return StreamStatus(
        source=A,
        target=B,
        incarnation=Incarnation("x"),
        lag=Lag(state=state, lag_ms=lag_ms, error_bound_ms=5),
        head=Sequence(10),
        at_ms=NOW - 1_000,
    )


def with_paused(group: GroupName, lag_ms: int | None = 9_000) -> StreamStatus:
    """The stream of a target where one group stands still."""
    paused = Lag(state=StreamState.PAUSED, lag_ms=lag_ms, error_bound_ms=5 if lag_ms else None)
    told = GroupBehind(group=group, why="paused", lag=paused, text="paused by alice")
    return attrs.evolve(
        stream(StreamState.PAUSED, lag_ms),
        in_step=stream().lag,
        groups_out_of_step=(group,),
        behind=(told,),
    )


def test_the_lag_of_a_paused_group_is_judged_and_not_that_of_its_stream() -> None:
    """Nor may a group be refused for what another one lacks."""
    own = preview(attrs.evolve(good(), stream=with_paused(ORDERS)))
    unknown = preview(attrs.evolve(good(), stream=with_paused(ORDERS, None)))
    other = preview(attrs.evolve(good(), stream=with_paused(GroupName("users"))))

    told = {check.name: check for check in own.checks}["lag"]
    assert not told.ok
    assert "the group is paused and 9000 ms behind" in told.detail
    assert (own.stream, own.lag_ms) == ("paused", 9_000)
    untold = {check.name: check for check in unknown.checks}["lag"]
    assert "unknown: the group is paused there: paused by alice" in untold.detail
    assert (other.stream, other.lag_ms) == ("streaming", 12)
    assert {check.name: check for check in other.checks}["lag"].ok


def test_the_lag_of_a_group_that_only_its_target_calls_out_of_step_is_unknown() -> None:
    """A source that does not know it (yet, or at all) would say that it is in step."""
    out = attrs.evolve(health(B).groups[ORDERS], in_step=False)
    situation = attrs.evolve(
        good(), target_health=attrs.evolve(health(B), groups={ORDERS: out}), stream=stream()
    )

    seen = preview(situation)

    assert (seen.stream, seen.lag_ms, seen.pause_ms_predicted) == ("unknown", None, None)


def coordination(**changes) -> StoreStatus:
    status = StoreStatus(
        cluster_id=1,
        member_id=1,
        version="3.5.12",
        revision=Revision(1),
        raft_term=1,
        raft_index=1,
        leader_id=1,
        db_size_bytes=1,
    )
    return attrs.evolve(status, **changes)


def good() -> Situation:
    return Situation(
        group=Group(
            name=ORDERS,
            prefixes=("/orders/",),
            members=(A, B),
            policy=GroupPolicy(cool_down_ms=60_000),
        ),
        authority=Authority(group=ORDERS, epoch=Epoch(1), token=NO_TOKEN, active=A),
        source=ClusterDescriptor(name=A),
        target=ClusterDescriptor(name=B),
        source_health=health(A),
        target_health=health(B),
        stream=stream(),
        coordination=coordination(),
        is_sealed=False,
        running=None,
        succeeded_at_ms=None,
        pause_ms_last=None,
        now_ms=NOW,
    )


def failed(**changes) -> dict[str, str]:
    judged = preview(attrs.evolve(good(), **changes))
    return {check.name: check.detail for check in judged.failed}


def test_nothing_stands_in_the_way_of_a_healthy_mesh() -> None:
    """And every check has been made, by the name by which it may be waived."""
    judged = preview(good())

    assert judged.failed == ()
    assert {check.name for check in judged.checks} == CHECK_NAMES
    assert judged.pause_ms_predicted is not None


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"coordination": None}, "coordination_healthy"),
        ({"coordination": coordination(alarms=("NOSPACE",))}, "coordination_healthy"),
        ({"coordination": coordination(leader_id=0)}, "coordination_healthy"),
        ({"source_health": None}, "source_healthy"),
        ({"target_health": None}, "target_healthy"),
        ({"target_health": attrs.evolve(health(B), at_ms=NOW - 60_000)}, "target_healthy"),
        ({"target_health": attrs.evolve(health(B), alarms=("NOSPACE",))}, "target_healthy"),
        ({"target_health": attrs.evolve(health(B), etcd_version="3.3.9")}, "target_version"),
        ({"source_health": attrs.evolve(health(A), etcd_version="")}, "source_version"),
        (
            {"source_health": attrs.evolve(health(A), certificate_not_after_ms=NOW + 60_000)},
            "source_certificate",
        ),
        ({"stream": None}, "lag"),
        ({"stream": stream(lag_ms=None)}, "lag"),
        ({"stream": stream(lag_ms=6_000)}, "lag"),
        ({"stream": stream(state=StreamState.CATCHING_UP)}, "lag"),
        ({"stream": attrs.evolve(stream(), at_ms=NOW - 60_000)}, "lag"),
        ({"target_health": attrs.evolve(health(B), groups={})}, "target_in_step"),
        ({"target_health": attrs.evolve(health(B), groups={})}, "leases"),
        ({"target_health": obstructed()}, "leases"),
        (
            {"target": ClusterDescriptor(name=B, intent=ClusterIntent.MAINTENANCE)},
            "target_in_service",
        ),
        ({"is_sealed": True}, "not_sealed"),
        ({"running": FailoverId("f-1")}, "nothing_running"),
        ({"succeeded_at_ms": NOW - 30_000}, "cool_down"),
        ({"pause_ms_last": 20_000}, "pause_budget"),
    ],
)
def test_what_is_wrong_or_unknown_fails_its_check(changes, name: str) -> None:
    """Unknown is never taken for good."""
    assert name in failed(**changes)


def test_a_target_is_close_if_its_lag_is_within_policy_at_most_and_was_told_just_now() -> None:
    """Else writes would be paused before it has caught up."""
    near, edge, far = stream(lag_ms=12), stream(lag_ms=195), stream(lag_ms=196)
    old = attrs.evolve(near, at_ms=NOW - CLOSE_AGE_MS_MAX - 1)
    ahead = attrs.evolve(near, at_ms=NOW + CLOSE_AGE_MS_MAX + 1)
    parked = stream(state=StreamState.STALLED, lag_ms=12)

    assert how_close(attrs.evolve(good(), stream=near)) == "17 ms behind at most"
    assert how_close(attrs.evolve(good(), stream=edge)) == "200 ms behind at most"
    for other in (None, far, old, ahead, parked, stream(lag_ms=None)):
        assert how_close(attrs.evolve(good(), stream=other)) == ""


def test_a_check_is_waived_only_by_its_own_name() -> None:
    """And some cannot be waived: the failover could not be carried out."""
    situation = attrs.evolve(good(), stream=stream(lag_ms=6_000), is_sealed=True)

    judged = preview(situation, waivers=["lag", "not_sealed", "cool_down"])

    assert [check.name for check in judged.failed] == ["not_sealed"]
    waived = [check.name for check in judged.checks if check.waived]
    assert waived == ["lag"]


def test_an_etcd_that_is_known_to_lose_data_is_a_warning() -> None:
    """3.5.0 to 3.5.2: the operator should know, and may go on."""
    for version in ("3.5.0", "3.5.1", "3.5.2"):
        bad = attrs.evolve(health(B), etcd_version=version)
        judged = preview(attrs.evolve(good(), target_health=bad))

        levels = {check.name: check.level for check in judged.checks}

        assert levels["target_version"] is Level.WARNING
        assert judged.failed == ()


@pytest.mark.parametrize("policy", [LeasePolicy.DROP, LeasePolicy.REMAP])
def test_a_lease_in_the_way_is_a_warning_if_policy_lets_the_group_move(policy) -> None:
    """The operator should know that clients will lose it."""
    group = attrs.evolve(good().group, policy=GroupPolicy(leases=policy))

    judged = preview(attrs.evolve(good(), group=group, target_health=obstructed()))

    check = next(check for check in judged.checks if check.name == "leases")
    assert (check.ok, check.level) == (True, Level.WARNING)
    assert policy.value in check.detail
    assert "1b59" in check.detail
    assert judged.failed == ()


@pytest.mark.parametrize(
    ("left_ms", "words"),
    [
        (31_535_580_000, "valid for 364 days 23 h more"),
        (86_400_000 + 120_000, "valid for 1 day more"),
        (7_260_000, "valid for 2 h 1 min more"),
        (600_000, "valid for 10 min more"),
        (30_000, "valid for less than 1 min more"),
        (0, "expired less than 1 min ago"),
        (-3 * 86_400_000, "expired 3 days ago"),
    ],
)
def test_the_life_of_a_certificate_is_told_in_units_that_fit(left_ms: int, words: str) -> None:
    there = attrs.evolve(health(A), certificate_not_after_ms=NOW + left_ms)

    found = preview(attrs.evolve(good(), source_health=there)).checks

    assert next(c.detail for c in found if c.name == "source_certificate") == words


def test_a_length_of_time_is_never_told_in_minutes_by_the_hundred_thousand() -> None:
    assert lasting(525_593 * 60_000) == "364 days 23 h"
