"""What replicators report into the coordination etcd, on leases, so that silence is seen. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence, Token


class StreamState(enum.Enum):
    """How a stream stands. The first is the only one in which lag is small by nature."""

    STREAMING = "streaming"
    CATCHING_UP = "catching-up"
    RECONCILING = "reconciling"
    PAUSED = "paused"
    STALLED = "stalled"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Lag:
    """Age of the oldest source commit the target has not applied; None means unknown.

    Zero only when proven. `error_bound_ms` says how far off `lag_ms` may be; without one, `lag_ms`
    is the least that it is. Of a stream it counts all of its groups, also those out of step.
    """

    state: StreamState
    lag_ms: int | None = None
    error_bound_ms: int | None = None
    records: int | None = None
    bytes: int | None = None

    @property
    def greatest_ms(self) -> int | None:
        """The most that it may be; None: nobody knows."""
        if self.lag_ms is None or self.error_bound_ms is None:
            return None
        return self.lag_ms + self.error_bound_ms


class WhyBehind(enum.Enum):
    """Why a group is out of step with its stream, in the order in which one is told of it."""

    PAUSED = "paused"
    """An operator has it stand still."""
    HELD = "held"
    """Frozen for an emergency."""
    PARKED = "parked"
    """The target's etcd refuses one of its writes for good."""
    AHEAD = "ahead"
    """The target has more than the epoch stands on: that has to be set aside first."""
    JOINING = "joining"
    """It is to be copied, and nothing is yet."""
    RECONCILING = "reconciling"
    """It is copied, or follows beside the main stream until it meets that."""
    UNKNOWN = "unknown"
    """For a reason that this version does not know."""

    @property
    def state(self) -> StreamState:
        """How a stream stands of which this group is the worst."""
        match self:
            case WhyBehind.PAUSED | WhyBehind.HELD:
                return StreamState.PAUSED
            case WhyBehind.PARKED | WhyBehind.AHEAD:
                return StreamState.STALLED
            case WhyBehind.JOINING | WhyBehind.RECONCILING:
                return StreamState.RECONCILING
            case WhyBehind.UNKNOWN:
                return StreamState.UNKNOWN


@attrs.frozen(kw_only=True)
class GroupBehind:
    """A group that is out of step at a target, and how far behind it is there."""

    group: GroupName
    why: str
    """A `WhyBehind`; kept as it is written, so that a newer one does not make this unreadable."""
    lag: Lag
    position: Sequence | None = None
    """Up to where the source's log is applied of it; None: nobody knows."""
    text: str = ""
    """The same for people."""


@attrs.frozen(kw_only=True)
class CopyProgress:
    """How far the copy of one group is, as its source sees it."""

    group: GroupName
    keys_done: int
    """Sent, or found to be there already."""
    keys_total: int
    """At the copy's cut, as far as they are counted."""
    bytes_done: int
    """Of keys and values that are done."""
    keys_sent: int = 0
    bytes_sent: int = 0

    @property
    def bytes_total(self) -> int:
        """How large everything is, estimated from what is done."""
        return self.bytes_done * self.keys_total // self.keys_done if self.keys_done else 0


@attrs.frozen(kw_only=True)
class StreamStatus(Stored):
    """One stream as its source sees it, at `at_ms` (source's wall clock, for people)."""

    SCHEMA: ClassVar[str] = "stream-status"

    source: ClusterName
    target: ClusterName
    incarnation: Incarnation
    lag: Lag
    head: Sequence
    applied: Sequence | None = None
    records_per_second: float = 0.0
    groups_out_of_step: tuple[GroupName, ...] = ()
    """Those that the target copies, or follows beside the main stream, or that stand still."""
    at_ms: int = 0
    problem: str = ""
    headroom_ms: int | None = None
    """How long, at least, until the source's etcd compacts away where the target would go on from
    if it stopped now; 0 if that is gone or may go at any time. None: unknown."""
    is_spooled: bool = False
    """Whether the source's spool holds all that the target has not stored: then compaction costs
    it nothing."""
    copies: tuple[CopyProgress, ...] = ()
    """The copies that are under way to the target."""
    tells: bool = False
    """Whether the target tells which groups are out of step; else `lag` is unknown."""
    in_step: Lag | None = None
    """Of the groups that are in step; None: an older source, whose `lag` is of those alone."""
    behind: tuple[GroupBehind, ...] = ()
    """How far behind each group out of step is; of those that are only named nobody knows."""

    def lag_of(self, group: GroupName) -> Lag:
        """Return the lag of one group: its own if it is out of step, else that of those in step."""
        for behind in self.behind:
            if behind.group == group:
                return behind.lag
        if group in self.groups_out_of_step:
            return Lag(state=StreamState.RECONCILING)
        return self.lag if self.in_step is None else self.in_step


@attrs.frozen(kw_only=True)
class StandbyPosition(Stored):
    """From where a standby may have to be served; written by the source, and not leased.

    A successor, or a source that comes back, learns from it what must be kept for standbys that it
    has not heard of yet. It may be older than the truth, never newer.
    """

    SCHEMA: ClassVar[str] = "standby-position"

    source: ClusterName
    target: ClusterName
    incarnation: Incarnation
    sequence: Sequence
    at_ms: int = 0


@attrs.frozen(kw_only=True)
class GroupHead:
    """The same of a group that was out of step; None: unknown."""

    applied: Sequence | None = None
    records: int | None = None
    lag_ms: int | None = None


@attrs.frozen(kw_only=True)
class TargetHead:
    """What a source last knew of one target; kept when the source is gone."""

    applied: Sequence | None = None
    """Up to where the target had acknowledged."""
    records: int | None = None
    """How many records of the log, of whatever group in step, it had not acknowledged."""
    records_per_second: float = 0.0
    lag_ms: int | None = None
    """The most that it may have lagged in the groups that were in step."""
    behind: Mapping[GroupName, GroupHead] = attrs.field(factory=dict)
    """The groups that were out of step."""

    def of(self, group: GroupName | None) -> TargetHead:
        """Return what was known of one group."""
        if group is None or group not in self.behind:
            return self
        own = self.behind[group]
        return attrs.evolve(self, applied=own.applied, records=own.records, lag_ms=own.lag_ms)


@attrs.frozen(kw_only=True)
class LogHead(Stored):
    """The last revision known of a source's log, with when it was known (its own wall clock).

    Not leased: it is needed exactly when the source is gone (architecture 5.1 rule 8). Everything
    that was committed by `at_ms` lies at or below `sequence`.
    """

    SCHEMA: ClassVar[str] = "log-head"

    cluster: ClusterName
    incarnation: Incarnation
    sequence: Sequence
    at_ms: int
    targets: Mapping[ClusterName, TargetHead] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Applied:
    """How far a region has applied another one's log, by its own stored checkpoint."""

    incarnation: Incarnation
    sequence: Sequence


@attrs.frozen(kw_only=True)
class GroupHealth:
    """How a group stands in one region."""

    mode: str
    epoch: Epoch
    command_token: Token
    permit: bool
    in_step: bool
    """Whether the copy here is complete and follows the active cluster (or is active itself)."""
    problem: str = ""
    parked: str = ""
    """The write that the etcd here refuses for good, if the group waits for one."""
    leases: str = ""
    """What stands in the way of its leases, should the group move here."""
    ahead: bool = False
    """Whether the copy here has what the present epoch does not stand on."""
    promised_to: str = ""
    """The cluster that was promised not to be overtaken here, as long as that lasts."""
    quarantined: Mapping[str, int] = attrs.field(factory=dict)
    """How many entries wait in quarantine here, by class."""


@attrs.frozen(kw_only=True)
class ClusterHealth(Stored):
    """How a region stands, by its leading replicator. Leased: absent means nobody leads there."""

    SCHEMA: ClassVar[str] = "cluster-health"

    cluster: ClusterName
    replicator: str
    incarnation: Incarnation
    etcd_version: str
    etcd_cluster_id: str
    revision: int
    raft_index: int
    db_size_bytes: int
    alarms: tuple[str, ...] = ()
    certificate_not_after_ms: int | None = None
    groups: Mapping[GroupName, GroupHealth] = attrs.field(factory=dict)
    foreign_writes: int = 0
    at_ms: int = 0
    problems: tuple[str, ...] = ()
    positions: Mapping[ClusterName, Applied] = attrs.field(factory=dict)
    """Up to where the logs of others are applied here."""
