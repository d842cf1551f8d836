"""What is stored of a group's automatic failovers, so that no successor forgets it. Pure."""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch


class Obstacle(enum.Enum):
    """Why no automatic failover begins. Each is looked at by itself."""

    PAUSED = "automation-paused"
    SEALED = "sealed"
    RUNNING = "failover-running"
    ACKNOWLEDGEMENT = "not-acknowledged"
    """A person has to look at the last automatic one first."""
    COOL_DOWN = "cool-down"
    COORDINATION = "coordination-unwell"
    OBSERVING = "observing-anew"
    """Whoever could not see cannot judge: a whole window has to be seen first."""
    SOURCE_REPORTS = "source-reports"
    SOURCE_SUSPENDED = "source-suspended"
    SOURCE_IN_MAINTENANCE = "source-in-maintenance"
    TARGET = "target"
    """A cluster cannot be the target."""
    LOSS = "loss"
    """More may be lost with a cluster than the policy allows."""


@attrs.frozen(kw_only=True)
class Reason:
    """One thing that stands in the way, for the person who asks why nothing happened."""

    obstacle: Obstacle
    detail: str
    cluster: ClusterName | None = None
    """The cluster that cannot take the group, if it is about one."""
    until_ms: int | None = None
    """When it ends by itself, on the wall clock."""


@attrs.frozen(kw_only=True)
class Withheld:
    """A failover that was due but for these reasons."""

    epoch: Epoch
    source: ClusterName
    reasons: tuple[Reason, ...]
    since_ms: int

    @property
    def about(self) -> frozenset[tuple[Obstacle, ClusterName | None]]:
        """What stands in the way, without words and numbers that change all the time."""
        return frozenset((reason.obstacle, reason.cluster) for reason in self.reasons)


@attrs.frozen(kw_only=True)
class AutomaticRecord(Stored):
    """The last automatic failover of a group and its acknowledgement, and what withholds another.

    Invariant: `failover` changes only in the transaction that begins that failover, and only while
    the one before it is acknowledged.
    """

    SCHEMA: ClassVar[str] = "automatic"

    group: GroupName
    failover: FailoverId | None = None
    """The last that was begun by policy, however it ended."""
    source: ClusterName | None = None
    target: ClusterName | None = None
    began_ms: int | None = None
    acknowledged_by: str = ""
    acknowledged_ms: int | None = None
    acknowledged_reason: str = ""
    withheld: Withheld | None = None
    incarnation: int = 1
    """Of the coordination etcd, when one was begun or acknowledged last."""

    def needs_acknowledgement(self, incarnation: int) -> bool:
        """Whether a person has to look before another one may begin.

        Also after the coordination etcd was adopted anew: nobody knows what it has forgotten.
        """
        is_open = self.failover is not None and self.acknowledged_ms is None
        return is_open or self.incarnation < incarnation
