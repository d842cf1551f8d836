"""Which changes of an etcd belong to which group's log: a fold over its history. Pure.

Segments decide what is mine (architecture 5.1 rule 1): a change of a key under a group's scope
belongs to this cluster's log exactly while the group's segment is open here, whoever made it. The
fold begins with the segments stored at some revision and goes on with the changes after it, so it
is the same on every replay. A revision that changes a key under `checkpoint/` is an apply: nothing
of it is ours.
"""

from __future__ import annotations

import bisect
from collections import ChainMap
from collections.abc import Iterable, Mapping

import attrs

from meshkit.codec import decode
from meshkit.keys import ROOT, RegionalKeys, parts_below
from meshkit.model import Lineage
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, NO_TOKEN, Epoch, Revision, Sequence, Token
from meshkit.prefixes import overlaps
from meshkit.regional import SegmentCut, SegmentOpened, SegmentScope
from meshkit.store.port import Change, RevisionChanges
from meshkit.store.txn import Delete, KeyValue, Put
from replicator.record import Cut, GroupPart, Mark, Opened, Record, Resumed, Scoped, Write

_SEGMENTS = RegionalKeys.segments
_CHECKPOINTS = RegionalKeys.checkpoints


@attrs.frozen(kw_only=True)
class Segment:
    """One epoch of a group in this cluster's log.

    `opened` is 0 until the opening was seen. `is_dirty` says that the scope was written to since
    the cut by something other than an apply.
    """

    group: GroupName
    epoch: Epoch
    token: Token = NO_TOKEN
    lineage: Lineage | None = None
    opened: Revision = ABSENT
    cut: Revision | None = None
    cut_token: Token = NO_TOKEN
    prefixes: tuple[bytes, ...] = ()
    is_dirty: bool = False

    @property
    def is_open(self) -> bool:
        """Whether writes now belong to it."""
        return self.opened > 0 and self.cut is None


class SegmentMap:
    """The newest segment of every group, as of the last revision folded in.

    Invariant: scopes of open segments do not overlap, so a key belongs to at most one group.
    """

    def __init__(self) -> None:
        self._newest: dict[GroupName, Segment] = {}
        self._starts: list[bytes] = []
        self._owners: list[GroupName] = []
        self._has_yielded = False
        """Whether some prefix is not in the order because it overlaps another one."""

    @classmethod
    def from_items(
        cls, items: Iterable[KeyValue], *, dirty: frozenset[GroupName] = frozenset()
    ) -> SegmentMap:
        """Return the map of the keys under `segments/` as they were at one revision."""
        segments = cls()
        for item in items:
            segments._fold(Change(item=item, is_delete=False), item.mod_revision)
        for group in dirty & segments._newest.keys():
            segments._newest[group] = attrs.evolve(segments._newest[group], is_dirty=True)
        segments._index()
        return segments

    @classmethod
    def from_segments(cls, newest: Iterable[Segment]) -> SegmentMap:
        """Return the map that `all_newest` of another one described."""
        segments = cls()
        segments._newest = {segment.group: segment for segment in newest}
        segments._index()
        return segments

    def copy(self) -> SegmentMap:
        """Return a map that can be changed without changing this one."""
        other = SegmentMap()
        other._newest = dict(self._newest)
        other._starts, other._owners = list(self._starts), list(self._owners)
        other._has_yielded = self._has_yielded
        return other

    def take(self, items: Iterable[KeyValue]) -> None:
        """Take in keys under `segments/` that were put since; none may have been deleted."""
        before: dict[GroupName, Segment | None] = {}
        for item in items:
            group = self._fold(Change(item=item, is_delete=False), item.mod_revision)
            if group is not None:
                before.setdefault(group[0], group[1])
        self._index_again(before)

    def newest(self, group: GroupName) -> Segment | None:
        """Return the group's segment of the greatest epoch here."""
        return self._newest.get(group)

    def all_newest(self) -> tuple[Segment, ...]:
        """Return the newest segment of every group, by group."""
        return tuple(self._newest[group] for group in sorted(self._newest))

    def advance(self, changes: RevisionChanges) -> Record | None:
        """Fold in one revision and return what of it belongs to the groups' logs, if anything."""
        if len(changes.changes) == 1 and not changes.changes[0].item.key.startswith(ROOT):
            return self._advance_one(changes)
        own = [key for key in changes.keys if key.startswith(ROOT)]
        applied = any(key.startswith(_CHECKPOINTS) for key in own)
        touches_segments = any(key.startswith(_SEGMENTS) for key in own)
        if touches_segments:
            return self._advance_marks(changes, applied=applied)
        if applied:
            return None
        parts = self._parts(changes, self._newest)
        if not parts:
            return None
        return Record(sequence=Sequence(changes.revision), parts=parts)

    def _advance_one(self, changes: RevisionChanges) -> Record | None:
        """Fold in a revision of one application's key, as nearly all are."""
        change = changes.changes[0]
        group = self.owner_of(change.item.key)
        if group is None:
            return None
        segment = self._newest[group]
        if segment.opened <= 0 or segment.cut is not None:
            self._mark_dirty(group)
            return None
        if not change.is_delete and not change.item.lease:
            item = change.item
            sequence = Sequence(changes.revision)
            return Record.of_put(sequence, group, segment.epoch, item.key, item.value)
        part = GroupPart.made(group, segment.epoch, (_write(change),))
        return Record.of_one(Sequence(changes.revision), part)

    def owner_of(self, key: bytes) -> GroupName | None:
        """Return the group whose newest scope covers the key."""
        # The greatest prefix not above the key: if any prefix covers the key it is this one,
        # because no prefix begins with another.
        at = bisect.bisect_right(self._starts, key) - 1
        if at >= 0 and key.startswith(self._starts[at]):
            return self._owners[at]
        return None

    def _parts(
        self, changes: RevisionChanges, standing: Mapping[GroupName, Segment]
    ) -> tuple[GroupPart, ...]:
        writes: dict[GroupName, list[Write]] = {}
        for change in changes.changes:
            item = change.item
            group = self.owner_of(item.key)
            if group is None:
                continue
            if not standing[group].is_open:
                self._mark_dirty(group)
                continue
            writes.setdefault(group, []).append(_write(change))
        return tuple(
            GroupPart(group=group, epoch=standing[group].epoch, writes=tuple(writes[group]))
            for group in writes
        )

    def _mark_dirty(self, group: GroupName) -> None:
        segment = self._newest[group]
        if segment.cut is not None and not segment.is_dirty:
            self._newest[group] = attrs.evolve(segment, is_dirty=True)

    def _advance_marks(self, changes: RevisionChanges, *, applied: bool) -> Record | None:
        """Fold in a revision that changes segments: both its ends are inclusive."""
        before: dict[GroupName, Segment | None] = {}
        for change in changes.under(_SEGMENTS):
            group = self._fold(change, changes.revision)
            if group is not None:
                before.setdefault(group[0], group[1])
        self._index_again(before)
        marks = tuple(
            mark
            for group in sorted(before)
            if (mark := _mark(before[group], self._newest[group])) is not None
        )
        for mark in marks:
            if isinstance(mark, Resumed):
                clean = attrs.evolve(self._newest[mark.group], is_dirty=False)
                self._newest[mark.group] = clean
        was_open = {g: s for g, s in before.items() if s is not None and s.is_open}
        parts = () if applied else self._parts(changes, ChainMap(was_open, self._newest))
        if not marks and not parts:
            return None
        return Record(sequence=Sequence(changes.revision), parts=parts, marks=marks)

    def _fold(self, change: Change, revision: Revision) -> tuple[GroupName, Segment | None] | None:
        """Take in one key; return the group whose newest segment it changed, and that before."""
        parts = parts_below(_SEGMENTS, change.key)
        if parts is None or len(parts) != 3 or not parts[1].isdigit():
            return None
        group, epoch, what = GroupName(parts[0]), Epoch(int(parts[1])), parts[2]
        newest = before = self._newest.get(group)
        if newest is None or newest.epoch < epoch:
            if change.is_delete:
                return None
            newest = Segment(group=group, epoch=epoch)
        elif newest.epoch > epoch:
            return None
        self._newest[group] = _folded(newest, what, change, revision)
        return group, before

    def _index_again(self, before: Mapping[GroupName, Segment | None]) -> None:
        """Bring the order of the scopes up to date after these groups' segments have changed.

        While no scope yields to another one, only a group's own prefixes matter: thousands of
        groups that are cut and opened do not move it at all.
        """
        for group, segment in before.items():
            prefixes = self._newest[group].prefixes
            known = segment.prefixes if segment is not None else ()
            if prefixes == known and not self._has_yielded:
                continue
            if known or self._has_yielded or not self._insert(group, prefixes):
                self._index()
                return

    def _insert(self, group: GroupName, prefixes: tuple[bytes, ...]) -> bool:
        """Add a group's prefixes; return False if one overlaps another scope."""
        for prefix in prefixes:
            at = bisect.bisect_left(self._starts, prefix)
            if any(overlaps(prefix, other) for other in self._starts[max(0, at - 1) : at + 1]):
                return False
            self._starts.insert(at, prefix)
            self._owners.insert(at, group)
        return True

    def _index(self) -> None:
        """Order the scopes for lookup; of two that overlap one yields.

        A closed one yields to an open one; of two open ones, which nobody means to have, the one
        that lies within the other does: so each key of either belongs to somebody.
        """
        # By name, so that the order in which groups came to be known never matters.
        known = sorted(self._newest.values(), key=lambda segment: segment.group)
        scopes: dict[bytes, GroupName] = {}
        self._starts = []
        for prefix, group in sorted((p, s.group) for s in known if s.is_open for p in s.prefixes):
            if not self._starts or not prefix.startswith(self._starts[-1]):
                self._starts.append(prefix)
                scopes[prefix] = group
        for segment in (s for s in known if not s.is_open):
            for prefix in segment.prefixes:
                # No scope in the list begins with another, so only neighbours can overlap.
                at = bisect.bisect_left(self._starts, prefix)
                near = self._starts[max(0, at - 1) : at + 1]
                if not any(overlaps(prefix, other) for other in near):
                    self._starts.insert(at, prefix)
                    scopes[prefix] = segment.group
        self._owners = [scopes[prefix] for prefix in self._starts]
        named = sum(len(segment.prefixes) for segment in self._newest.values())
        self._has_yielded = len(self._starts) != named


def _folded(segment: Segment, what: str, change: Change, revision: Revision) -> Segment:
    match (what, change.is_delete):
        case ("opened", False):
            opened = decode(SegmentOpened, change.item.value)
            return attrs.evolve(
                segment, token=opened.token, lineage=opened.lineage, opened=revision
            )
        case ("scope", False):
            scope = decode(SegmentScope, change.item.value)
            return attrs.evolve(segment, prefixes=tuple(p.encode() for p in scope.prefixes))
        case ("cut", False):
            token = decode(SegmentCut, change.item.value).command_token
            return attrs.evolve(segment, cut=revision, cut_token=token, is_dirty=False)
        case ("cut", True):
            return attrs.evolve(segment, cut=None)
        case _:
            return segment


def _write(change: Change) -> Write:
    item = change.item
    return Delete(item.key) if change.is_delete else Put(item.key, item.value, item.lease)


def _mark(before: Segment | None, after: Segment) -> Mark | None:
    """Return what a change of a group's newest segment means to those who follow it.

    The transactions of the fence (fencing) change one thing at a time; should one revision change
    several, the mark that makes the follower copy again is the one to send.
    """
    group, epoch = after.group, after.epoch
    if before is None or before.epoch < epoch or before.opened == 0:
        if after.opened == 0:
            return None
        return Opened(
            group=group,
            epoch=epoch,
            token=after.token,
            lineage=after.lineage,
            prefixes=after.prefixes,
        )
    if before.prefixes != after.prefixes:
        return Scoped(group=group, epoch=epoch, prefixes=after.prefixes)
    if before.cut is None and after.cut is not None:
        return Cut(group=group, epoch=epoch, token=after.cut_token)
    if before.cut is not None and after.cut is None:
        return Resumed(group=group, epoch=epoch, is_dirty=before.is_dirty)
    return None
