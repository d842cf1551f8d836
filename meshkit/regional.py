"""The records MeshKit keeps in a regional etcd: fences, permits, segments, checkpoints. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.model import Lineage
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import (
    ABSENT,
    NO_TOKEN,
    NOTHING,
    Epoch,
    Incarnation,
    LeaseId,
    Revision,
    Sequence,
    Token,
)
from meshkit.vector import ClusterVersionVector


class FenceMode(enum.Enum):
    """What this cluster may do for a group (architecture 4.1 rule 1)."""

    OPEN = "open"
    """It is active: a permit may be put, nothing may be applied from elsewhere."""
    DRAINED = "drained"
    """It was active and has stopped; its permit is deleted, the cut is fixed."""
    HELD = "held"
    """Passive and frozen: nothing of the group may be applied."""
    SUPERSEDED = "superseded"
    """Passive: it follows the active cluster. Also the mode of a member that was never active."""


@attrs.frozen(kw_only=True)
class Fence(Stored):
    """The greatest command obeyed for a group and what came of it. Decides, where memory must not.

    `epoch` is the greatest epoch this cluster has taken part in: as the active cluster (`open`,
    `drained`) or, when passive, the epoch whose records it applies.
    """

    SCHEMA: ClassVar[str] = "fence"

    group: GroupName
    epoch: Epoch
    mode: FenceMode
    token: Token
    """The epoch's fencing token, as the permit carries it; NO_TOKEN on a cluster never active."""
    command_token: Token = NO_TOKEN
    """The greatest command obeyed. Never goes down."""
    step: str = ""
    """The command's step, for people."""
    failover: FailoverId | None = None


@attrs.frozen(kw_only=True)
class FenceIndex(Stored):
    """Rewritten with every fence, so that one compare protects an apply against all commands."""

    SCHEMA: ClassVar[str] = "fence-index"

    count: int


@attrs.frozen(kw_only=True)
class Permit(Stored):
    """The write permit. Guarded writes compare its *bytes*; they are canonical."""

    SCHEMA: ClassVar[str] = "permit"

    group: GroupName
    epoch: Epoch
    token: Token


@attrs.frozen(kw_only=True)
class Beat(Stored):
    """Changed in every round by the leading replicator; a gate opens only after seeing it change.

    The value only has to differ each time.
    """

    SCHEMA: ClassVar[str] = "beat"

    replicator: str
    round: int
    regional_ttl_ms: int = 0
    """For how long a gate may trust it (`Tr`); 0: it does not say."""


@attrs.frozen(kw_only=True)
class SegmentOpened(Stored):
    """An epoch of a group opened in this log. The key's mod revision is where it begins."""

    SCHEMA: ClassVar[str] = "segment-opened"

    group: GroupName
    epoch: Epoch
    token: Token
    lineage: Lineage | None = None


@attrs.frozen(kw_only=True)
class SegmentScope(Stored):
    """Which keys the segment covers, from the key's mod revision on."""

    SCHEMA: ClassVar[str] = "segment-scope"

    group: GroupName
    epoch: Epoch
    prefixes: tuple[str, ...]


@attrs.frozen(kw_only=True)
class SegmentCut(Stored):
    """The segment ended. The key's mod revision is the cut; undrain deletes the key."""

    SCHEMA: ClassVar[str] = "segment-cut"

    group: GroupName
    epoch: Epoch
    command_token: Token


@attrs.frozen(kw_only=True)
class Checkpoint(Stored):
    """How far a source's log is contained here, for every group that is in step."""

    SCHEMA: ClassVar[str] = "checkpoint"

    source: ClusterName
    incarnation: Incarnation
    sequence: Sequence
    vector: ClusterVersionVector = attrs.field(factory=ClusterVersionVector)


@attrs.frozen(kw_only=True)
class Attachment(Stored):
    """A key of a passive copy that hangs on a lease at the active cluster.

    Put, changed and deleted in the very transaction that applies what it tells of, so it is as
    exact as the copy. The key here carries no lease: it must not run out by itself.
    """

    SCHEMA: ClassVar[str] = "attachment"

    group: GroupName
    key: bytes
    lease: LeaseId
    ttl_s: int
    """What the lease was granted for: the new active cluster grants it for as long."""


@attrs.frozen(kw_only=True)
class GroupLease:
    """A lease that came to this cluster with a group."""

    lease: LeaseId
    """Its id at the cluster the group came from."""
    ttl_s: int
    here: LeaseId
    """Its id here: another one if it was remapped, 0 if its keys are left without a lease."""


@attrs.frozen(kw_only=True)
class LeaseClaim(Stored):
    """Which leases of this etcd belong to a group because MeshKit says so (5.1 rule 7).

    Stored before any of them is granted, so that whoever goes on after a death knows an id that
    exists already for its own; and what a promotion that was undone leaves is taken back.
    """

    SCHEMA: ClassVar[str] = "lease-claim"

    group: GroupName
    failover: FailoverId
    """The one that moved them here, or away from here."""
    leases: tuple[GroupLease, ...] = ()


class JoinPhase(enum.Enum):
    """Where a group that is out of step with its stream stands."""

    JOINING = "joining"
    """Nothing copied yet: waits for the source to begin a copy."""
    COPYING = "copying"
    """Pages of the cut `sequence` arrive in key order; everything below `cursor` is there."""
    FOLLOWING = "following"
    """The copy is complete; records past `sequence` are applied until it meets the main stream."""
    AHEAD = "ahead"
    """Goes past what the new epoch stands on (`sequence` of its parent's log): nothing is copied
    before what is too much has been set aside."""


class CopyBasis(enum.Enum):
    """What is known of the keys that a copy finds here, and so whether it may overwrite them.

    Whatever it may not is set aside in quarantine first (architecture 5.1 rule 6, ADR 14).
    """

    STRANGE = "strange"
    """Nothing: this cluster has not followed the group, or stands on another history of it."""
    DOUBTFUL = "doubtful"
    """An older state of the same lineage, to which something else has written."""
    OLDER = "older"
    """An older state of the same lineage: only what is shown to be foreign was not expected."""


@attrs.frozen(kw_only=True)
class GroupCheckpoint(Stored):
    """Position of one group that is out of step with a source's main stream (5.1 rule 2)."""

    SCHEMA: ClassVar[str] = "group-checkpoint"

    source: ClusterName
    group: GroupName
    incarnation: Incarnation
    phase: JoinPhase
    epoch: Epoch
    """The epoch being copied; when the fence moves past it, the join starts anew."""
    sequence: Sequence = NOTHING
    """The copy's cut while copying; then how far the group's records are applied."""
    cursor: bytes = b""
    reason: str = ""
    basis: CopyBasis = CopyBasis.STRANGE
    since: Revision = ABSENT
    """Of this etcd, when the group fell out of step; 0: the revision that created this key."""
    lineage: Lineage | None = None
    """While ahead: what the epoch stands on that this cluster has more than."""
    left_at: Sequence | None = None
    """While it is copied: up to where the source's log was applied when that began, if known."""

    @property
    def contained(self) -> Sequence | None:
        """Up to where all of the group's log at the source is applied, if that is known."""
        match self.phase:
            case JoinPhase.FOLLOWING:
                return self.sequence
            case JoinPhase.AHEAD:
                return None
            case JoinPhase.JOINING | JoinPhase.COPYING:
                return self.left_at


@attrs.frozen(kw_only=True)
class PartsCheckpoint(Stored):
    """A transaction of a source that is applied here in parts, and how far; gone with the last one.

    It is put in the transaction of every part but the last, beside an unmoved main checkpoint: the
    groups it names hold half of something, and are neither promotable nor comparable.
    """

    SCHEMA: ClassVar[str] = "parts-checkpoint"

    source: ClusterName
    incarnation: Incarnation
    sequence: Sequence
    """Of the transaction."""
    cursors: Mapping[GroupName, bytes]
    """The last key that is applied, of each group that it changes; parts are in key order."""


@attrs.frozen(kw_only=True)
class ParkedWrite(Stored):
    """A write that the etcd here refuses for good, so that its group is out of step.

    It is not lost: the source has it, the group is copied again and again (at longer intervals,
    up to a bound), and with the first copy that is taken this is deleted.
    """

    SCHEMA: ClassVar[str] = "parked-write"

    group: GroupName
    source: ClusterName
    sequence: Sequence
    """Of the transaction at the source, or of the copy's cut."""
    key: str
    value_bytes: int
    reason: str
    """What etcd said."""

    @property
    def problem(self) -> str:
        """What to tell people."""
        return (
            f"parked: etcd here refuses {self.key!r} of {self.source}@{self.sequence}"
            f" ({self.value_bytes} bytes): {self.reason}. Change the key at {self.source}, or what"
            " etcd here accepts; the group is then copied by itself"
        )


@attrs.frozen(kw_only=True)
class RegionIncarnation(Stored):
    """Identity of this etcd's history, made when a replicator first led here."""

    SCHEMA: ClassVar[str] = "region-incarnation"

    cluster: ClusterName
    incarnation: Incarnation


@attrs.frozen(kw_only=True)
class Witness(Stored):
    """Counts up, and is remembered in the coordination etcd: an etcd that went back shows it."""

    SCHEMA: ClassVar[str] = "witness"

    count: int


@attrs.frozen(kw_only=True)
class ChainLeases(Stored):
    """The live leases of this region's permits, for a successor to adopt."""

    SCHEMA: ClassVar[str] = "chain-leases"

    coordination: LeaseId
    regional: LeaseId
