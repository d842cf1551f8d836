"""What an emergency may lose of a group that stood still beside its stream: from where it stands."""

from __future__ import annotations

from coordinator.failover.loss import Evidence, FenceStatus, assess
from meshkit.model import Lineage
from meshkit.names import GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence
from meshkit.status import GroupHead, LogHead, TargetHead
from tests.coordinator.fake_region import ORDERS, A, B

USERS = GroupName("users")
ENDED_MS = 100_000


def head() -> LogHead:
    """The main stream is 20 ms behind; the paused group stands at 500 since a minute."""
    paused = GroupHead(applied=Sequence(500), records=40, lag_ms=60_000)
    target = TargetHead(
        applied=Sequence(990),
        records=2,
        records_per_second=10.0,
        lag_ms=20,
        behind={ORDERS: paused},
    )
    return LogHead(
        cluster=A,
        incarnation=Incarnation("a-1"),
        sequence=Sequence(1_000),
        at_ms=ENDED_MS - 1_000,
        targets={B: target},
    )


def evidence(group: GroupName, sequence: int) -> Evidence:
    on = Lineage(
        parent=A,
        parent_incarnation=Incarnation("a-1"),
        parent_epoch=Epoch(1),
        sequence=Sequence(sequence),
    )
    return Evidence(cluster=B, group=group, stands_on=on, head=head(), permit_ended_ms=ENDED_MS)


def test_of_a_group_that_stood_still_all_since_then_may_be_lost() -> None:
    """By the main stream's numbers it would be two records in a second."""
    loss = assess(evidence(ORDERS, 500), fence=FenceStatus.CONFIRMED, epoch=Epoch(1))

    assert (loss.window_ms, loss.records_known) == (61_000, 40)


def test_of_a_group_in_step_no_more_than_its_stream_lacks_is_lost() -> None:
    """Another group that stands still must not make its loss look worse than it is."""
    loss = assess(evidence(USERS, 990), fence=FenceStatus.CONFIRMED, epoch=Epoch(1))

    assert (loss.window_ms, loss.records_known) == (1_020, 2)
