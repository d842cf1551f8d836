"""What a target knows of itself: fences, checkpoints and cuts of its region at one revision. Pure.

Appliers read all fences and the index at one revision (architecture 5.1 rule 4); the guards of
each transaction are the mod revisions found here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from types import MappingProxyType

import attrs

from meshkit.codec import decode
from meshkit.keys import RegionalKeys, parts_below
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Revision, Sequence
from meshkit.regional import (
    Checkpoint,
    Fence,
    FenceIndex,
    FenceMode,
    GroupCheckpoint,
    JoinPhase,
    ParkedWrite,
    PartsCheckpoint,
)
from meshkit.store.txn import Get, KeyValue, prefix_range
from replicator.attachments import ATTACHED_KEYS_MAX, KnownAttachments
from replicator.segments import SegmentMap
from replicator.shield import Shield

JoinKey = tuple[ClusterName, GroupName]
"""A group's own checkpoint is named by the source it follows and by the group."""


@attrs.frozen(kw_only=True)
class OwnSpan:
    """From where to where this cluster's log was a group's, in one epoch."""

    opened: Revision = ABSENT
    cut: Revision | None = None

    def holds(self, revision: Revision) -> bool:
        """Return whether what was written at `revision` belongs to it."""
        return 0 < self.opened <= revision and (self.cut is None or revision <= self.cut)


@attrs.define(kw_only=True)
class RegionState:
    """Everything an apply transaction depends on, as of one revision.

    Kept up to date by the one stream that applies its own transactions to it; anything else that
    moves breaks the next transaction, and the state is read anew.
    """

    fences: dict[GroupName, Fence] = attrs.field(factory=dict)
    index_count: int = 0
    index_revision: Revision = ABSENT
    checkpoints: dict[ClusterName, Checkpoint] = attrs.field(factory=dict)
    checkpoint_revisions: dict[ClusterName, Revision] = attrs.field(factory=dict)
    joins: dict[JoinKey, GroupCheckpoint] = attrs.field(factory=dict)
    join_revisions: dict[JoinKey, Revision] = attrs.field(factory=dict)
    join_begun: dict[JoinKey, Revision] = attrs.field(factory=dict)
    """When each of these groups fell out of step with that source."""
    spans: dict[tuple[GroupName, Epoch], OwnSpan] = attrs.field(factory=dict)
    """Which of this cluster's revisions were the group's log, by epoch."""
    cuts: dict[tuple[GroupName, Epoch], Sequence] = attrs.field(factory=dict)
    """Where segments of this cluster's own log were cut."""
    own: SegmentMap = attrs.field(factory=SegmentMap)
    """The segments of this cluster's own log."""
    parts: dict[ClusterName, PartsCheckpoint] = attrs.field(factory=dict)
    """Transactions of sources that are applied in part."""
    parts_revisions: dict[ClusterName, Revision] = attrs.field(factory=dict)
    parked: dict[GroupName, ParkedWrite] = attrs.field(factory=dict)
    """Writes that etcd here refuses, which their groups wait for."""
    attachments: KnownAttachments = attrs.field(factory=KnownAttachments)
    """Which keys of passive copies hang on a lease at the active cluster."""

    def copy(self) -> RegionState:
        """Return the same state, to be changed without changing this one."""
        other = copy(self)
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, dict | SegmentMap | KnownAttachments):
                setattr(other, field.name, value.copy())
        return other

    def joins_of(self, group: GroupName) -> tuple[JoinKey, ...]:
        """Return the group's own checkpoints, whatever source they follow."""
        return tuple(key for key in self.joins if key[1] == group)

    def begun(self, key: JoinKey) -> Revision:
        """Return since when a group is out of step."""
        return self.joins[key].since or self.join_begun.get(key, ABSENT)

    def is_torn(self, group: GroupName) -> bool:
        """Return whether the group holds a part of a transaction, and not yet the whole."""
        return any(group in parts.cursors for parts in self.parts.values())

    def followed(self, key: JoinKey) -> GroupCheckpoint | None:
        """Return the checkpoint of a group that is out of step, if it still is to be applied."""
        own, fence = self.joins.get(key), self.fences.get(key[1])
        if own is None or fence is None:
            return None
        is_passive = fence.mode is FenceMode.SUPERSEDED and fence.epoch == own.epoch
        return own if is_passive and own.phase is not JoinPhase.AHEAD else None

    def shield(self, changed: Mapping[GroupName, Fence] = MappingProxyType({})) -> Shield:
        """Return the keys that nothing may be applied over, with some fences changed.

        Also those of a drained group: until a successor has opened, it may be undrained.
        """
        return Shield(
            (prefix, segment.group)
            for segment in self.own.all_newest()
            if (fence := changed.get(segment.group) or self.fences.get(segment.group))
            and fence.mode in (FenceMode.OPEN, FenceMode.DRAINED)
            and fence.epoch == segment.epoch
            for prefix in segment.prefixes
        )

    def take(
        self,
        fences: Iterable[KeyValue],
        index: Iterable[KeyValue],
        checkpoints: Iterable[KeyValue],
        segments: tuple[KeyValue, ...],
        parked: Iterable[KeyValue],
    ) -> None:
        """Take in keys that are new, or were put again; the state shows all others.

        Raises:
            CorruptRecord: a record cannot be read.
        """
        for item in fences:
            self.take_fence(item)
        for item in index:
            self.index_count = decode(FenceIndex, item.value).count
            self.index_revision = item.mod_revision
        for item in checkpoints:
            self.take_checkpoint(item)
        for item in segments:
            self.take_segment(item)
        for item in parked:
            write = decode(ParkedWrite, item.value)
            self.parked[write.group] = write
        self.own.take(segments)

    def take_checkpoint(self, item: KeyValue) -> None:
        """Take in one key below `checkpoint/`; ignores what it does not know."""
        parts = parts_below(RegionalKeys.checkpoints, item.key)
        assert parts is not None
        if len(parts) == 1:
            source = ClusterName(parts[0])
            self.checkpoints[source] = decode(Checkpoint, item.value)
            self.checkpoint_revisions[source] = item.mod_revision
        elif len(parts) == 2:
            key = (ClusterName(parts[0]), GroupName(parts[1]))
            self.joins[key] = decode(GroupCheckpoint, item.value)
            self.join_revisions[key] = item.mod_revision
            self.join_begun[key] = item.create_revision
        elif (applied := parts_source(item.key)) is not None:
            self.parts[applied] = decode(PartsCheckpoint, item.value)
            self.parts_revisions[applied] = item.mod_revision

    def take_fence(self, item: KeyValue) -> None:
        """Take in one key below `fence/`."""
        fence = decode(Fence, item.value)
        self.fences[fence.group] = fence

    def take_segment(self, item: KeyValue) -> None:
        """Take in one key below `segments/`; only openings and cuts matter."""
        parts = parts_below(RegionalKeys.segments, item.key)
        if parts is None or len(parts) != 3:
            return
        key = (GroupName(parts[0]), Epoch(int(parts[1])))
        span = self.spans.get(key, OwnSpan())
        match parts[2]:
            case "opened":
                self.spans[key] = attrs.evolve(span, opened=item.mod_revision)
            case "cut":
                self.cuts[key] = Sequence(item.mod_revision)
                self.spans[key] = attrs.evolve(span, cut=item.mod_revision)


def parts_source(key: bytes) -> ClusterName | None:
    """Return the source whose transaction a key below `checkpoint/` says is applied in part."""
    parts = parts_below(RegionalKeys.checkpoints, key)
    if parts is None or len(parts) != 3:
        return None
    source = ClusterName(parts[0])
    return source if key == RegionalKeys.parts(source) else None


def torn_groups(items: Iterable[KeyValue]) -> frozenset[GroupName]:
    """Return the groups of which the keys below `checkpoint/` say that they hold half of something.

    Raises:
        CorruptRecord: a mark cannot be read.
    """
    marks = (decode(PartsCheckpoint, i.value) for i in items if parts_source(i.key) is not None)
    return frozenset(group for mark in marks for group in mark.cursors)


REGION_READS = (
    Get(*prefix_range(RegionalKeys.fences)),
    Get(RegionalKeys.fence_index),
    Get(*prefix_range(RegionalKeys.checkpoints)),
    Get(*prefix_range(RegionalKeys.segments)),
    Get(*prefix_range(RegionalKeys.attachments), limit=ATTACHED_KEYS_MAX + 1, keys_only=True),
    Get(*prefix_range(RegionalKeys.parked_writes)),
)
"""What `region_of` understands, to be read in one transaction."""


def region_of(reads: tuple[tuple[KeyValue, ...], ...]) -> RegionState:
    """Return the state that the answers to `REGION_READS` show.

    Raises:
        CorruptRecord: a record cannot be read.
    """
    fences, index, checkpoints, segments, attached, parked = reads
    state = RegionState(attachments=KnownAttachments.of(item.key for item in attached))
    state.take(fences, index, checkpoints, segments, parked)
    return state
