"""Facts for the decision about automatic failovers, all of them well unless told otherwise."""

from __future__ import annotations

from typing import Any

import attrs

from coordinator.automatic.judging import Candidate, Facts
from coordinator.automatic.record import AutomaticRecord
from meshkit.model import (
    Authority,
    ClusterDescriptor,
    ClusterIntent,
    FailoverMode,
    Group,
    GroupPolicy,
)
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Revision, Token
from meshkit.pauses import AutomationPause

A, B, C = ClusterName("us-east"), ClusterName("eu-west"), ClusterName("ap-south")
ORDERS = GroupName("orders")
AFTER_MS = 15_000
NOW_MS = 10_000_000

AUTOMATIC = GroupPolicy(
    failover=FailoverMode.AUTOMATIC,
    automatic_after_ms=AFTER_MS,
    automatic_cool_down_ms=120_000,
    automatic_loss_records_max=100,
    automatic_loss_seconds_max=12,
)


def facts(**changes: Any) -> Facts:
    """Return the facts of a group whose active cluster is gone for just long enough."""
    policy = changes.pop("policy", AUTOMATIC)
    intent = changes.pop("intent", ClusterIntent.IN_SERVICE)
    well = Facts(
        group=Group(name=ORDERS, prefixes=("/orders/",), members=(A, B, C), policy=policy),
        authority=Authority(
            group=ORDERS,
            epoch=Epoch(3),
            token=Token(incarnation=1, revision=Revision(7)),
            active=A,
        ),
        now_ms=NOW_MS,
        is_missing=True,
        gone_ms=AFTER_MS,
        suspected_ms=AFTER_MS,
        source=ClusterDescriptor(name=A, intent=intent),
        source_reports=False,
        candidates=(Candidate(cluster=B), Candidate(cluster=C)),
    )
    return attrs.evolve(well, **changes)


def begun(*, acknowledged: bool, incarnation: int = 1) -> AutomaticRecord:
    """Return what is stored after one automatic failover."""
    return AutomaticRecord(
        group=ORDERS,
        failover=FailoverId("f-1"),
        source=B,
        target=A,
        began_ms=1,
        acknowledged_by="operator/alice" if acknowledged else "",
        acknowledged_ms=2 if acknowledged else None,
        incarnation=incarnation,
    )


PAUSE = AutomationPause(by="operator/alice", reason="works on the network")
