"""What the watcher of a group makes of one cluster's history, revision by revision. Pure.

A *leg* is one epoch of a group at one cluster: from where that cluster is joined to the cut. At its
beginning the cluster may still be replaying its parent's log (revisions below its opening); what
was delivered before is told apart by the checkpoint each of those revisions carries. It reads no
etcd, and decides nothing about where the next leg begins.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import attrs

from meshkit.codec import decode
from meshkit.keys import RegionalKeys, parts_below
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence
from meshkit.regional import Checkpoint, PartsCheckpoint, SegmentScope
from meshkit.store.port import Change, RevisionChanges
from meshkit.store.txn import KeyValue

RECENT_KEYS_MAX = 10_000
"""Keys whose last delivered change is remembered, to tell repeats after a failover."""


@attrs.frozen(kw_only=True)
class GroupEvent:
    """One change of one key of the group."""

    key: bytes
    value: bytes
    is_delete: bool
    is_repeat: bool = False
    """The last thing delivered for this key was this very change."""


@attrs.frozen(kw_only=True)
class GroupChanges:
    """What one revision of the active cluster changed in the group; `revision` is that cluster's.

    Behind a failover one revision may stand for several of the old cluster: then a key that was
    changed more than once shows its last change only.
    """

    cluster: ClusterName
    epoch: Epoch
    revision: Revision
    events: tuple[GroupEvent, ...]


@attrs.frozen(kw_only=True)
class Reset:
    """The whole state of the group, because events alone could not say what it is.

    Forget what was built from earlier items and begin with `state`; `reason` says why.
    """

    cluster: ClusterName
    epoch: Epoch
    revision: Revision
    state: Mapping[bytes, bytes] = attrs.field(repr=False)
    reason: str


GroupItem = GroupChanges | Reset


@attrs.frozen(kw_only=True)
class Place:
    """How far a watcher has come: in this leg, everything up to `revision` was delivered."""

    cluster: ClusterName
    incarnation: Incarnation
    epoch: Epoch
    opened: Revision
    """Where the cluster opened the epoch; below it, it replays its parent's log."""
    revision: Revision
    delivered: Revision
    """The last revision of which something was delivered."""


@attrs.frozen
class Anew:
    """Events cannot go on from here: the state must be read and delivered."""

    reason: str


@attrs.frozen(kw_only=True)
class Known:
    """The last change that was delivered for a key, and where in the leg's log it was."""

    sequence: Sequence
    fingerprint: bytes | None
    """None: the key was deleted."""


class Recent:
    """The last change delivered for each key lately.

    Invariant: it knows every key that was delivered as there, and was last changed above `floor`.
    """

    def __init__(self, floor: Sequence) -> None:
        self.floor = floor
        self._known: OrderedDict[bytes, Known] = OrderedDict()

    @classmethod
    def of_state(cls, state: Iterable[KeyValue]) -> Recent:
        """Return what is known after a whole state was delivered."""
        ordered = sorted(state, key=lambda item: item.mod_revision)
        latest = ordered[-RECENT_KEYS_MAX:]
        forgotten = ordered[: -len(latest)] if len(ordered) > len(latest) else []
        recent = cls(Sequence(forgotten[-1].mod_revision if forgotten else 0))
        for item in latest:
            event = GroupEvent(key=item.key, value=item.value, is_delete=False)
            recent.remember(event, Sequence(item.mod_revision))
        return recent

    def remember(self, event: GroupEvent, sequence: Sequence) -> None:
        """Note what is delivered; the oldest is forgotten first."""
        fingerprint = None if event.is_delete else fingerprint_of(event.value)
        self._known[event.key] = Known(sequence=sequence, fingerprint=fingerprint)
        self._known.move_to_end(event.key)
        if len(self._known) > RECENT_KEYS_MAX:
            _, oldest = self._known.popitem(last=False)
            self.floor = max(self.floor, oldest.sequence)

    def above(self, sequence: Sequence, through: Sequence) -> Mapping[bytes, Known] | None:
        """Return what was delivered in `(sequence, through]`; None: not all of it is known."""
        if self.floor > sequence:
            return None
        return {k: v for k, v in self._known.items() if sequence < v.sequence <= through}


@attrs.frozen(kw_only=True)
class Replay:
    """The leg begins inside its cluster's replay of `source`, of which `through` was seen."""

    source: ClusterName
    through: Sequence
    known: Mapping[bytes, Known]
    """What was delivered of the part that shares its transaction with what was not."""


class LegFold:
    """Takes one revision after the other, and says what of it is news about the group.

    Invariant: between a cut and its undoing nothing is delivered: it is part of no log.
    """

    def __init__(
        self,
        group: GroupName,
        *,
        epoch: Epoch,
        opened: Revision,
        prefixes: tuple[bytes, ...],
        replay: Replay | None = None,
        cut: Revision | None = None,
    ) -> None:
        self.prefixes = prefixes
        self.cut = cut
        self._group = group
        self._opened = opened
        self._replay = replay
        self._is_dirty = False
        self._cut_key = RegionalKeys.segment_cut(group, epoch)
        self._scope_key = RegionalKeys.segment_scope(group, epoch)

    def take(self, item: RevisionChanges) -> tuple[GroupEvent, ...] | Anew:
        """Return the group's events of one revision, in key order as etcd reports them."""
        if item.revision < self._opened:
            return self._replayed(item)
        was_cut = self.cut is not None
        ours = [change for change in item.changes if change.key.startswith(self.prefixes)]
        anew = self._marks(item)
        if anew is not None:
            return anew
        is_apply = any(change.key.startswith(RegionalKeys.checkpoints) for change in item.changes)
        if is_apply or not ours:
            return ()
        if was_cut:
            self._is_dirty = True
            return ()
        return tuple(_event(change) for change in ours)

    def _marks(self, item: RevisionChanges) -> Anew | None:
        for change in item.changes:
            if change.key == self._scope_key and item.revision > self._opened:
                if _prefixes(change) != self.prefixes:
                    return Anew("the group covers other prefixes than before")
            elif change.key == self._cut_key and not change.is_delete:
                self.cut = self.cut or item.revision
            elif change.key == self._cut_key:
                self.cut = None
                if self._is_dirty:
                    return Anew("something that ignores the permit wrote while writes were paused")
        return None

    def _replayed(self, item: RevisionChanges) -> tuple[GroupEvent, ...] | Anew:
        assert self._replay is not None, "only a replay begins below the opening"
        applied: Sequence | None = None
        for change in item.changes:
            parts = parts_below(RegionalKeys.checkpoints, change.key)
            if parts is None or change.is_delete:
                continue
            if len(parts) == 2 and parts[1] == self._group:
                return Anew("the new active cluster had copied the group anew")
            if parts == (self._replay.source,):
                applied = decode(Checkpoint, change.item.value).sequence
            elif change.key == RegionalKeys.parts(self._replay.source):
                applied = decode(PartsCheckpoint, change.item.value).sequence
        changes = [change for change in item.changes if change.key.startswith(self.prefixes)]
        if applied is None:
            return tuple(_event(change) for change in changes)
        if applied <= self._replay.through:
            return tuple(_event(change, is_repeat=True) for change in changes)
        known, self._replay = self._replay.known, attrs.evolve(self._replay, known={})
        return _straddling(changes, known)


def _straddling(changes: list[Change], known: Mapping[bytes, Known]) -> tuple[GroupEvent, ...]:
    """Return the events of the transaction that holds both what was delivered and what was not.

    A key that was delivered as put and is neither put nor there was put and deleted within the
    transaction: etcd reports nothing for it, so the delete is told here.
    """
    events = [
        _event(c, is_repeat=c.key in known and known[c.key].fingerprint == _fingerprint(c))
        for c in changes
    ]
    changed = {change.key for change in changes}
    gone = sorted(k for k, v in known.items() if v.fingerprint is not None and k not in changed)
    events += [GroupEvent(key=key, value=b"", is_delete=True) for key in gone]
    return tuple(events)


def fingerprint_of(value: bytes) -> bytes:
    """Return what tells a value from another, at a fixed size."""
    return hashlib.sha256(value).digest()


def _fingerprint(change: Change) -> bytes | None:
    return None if change.is_delete else fingerprint_of(change.item.value)


def _event(change: Change, *, is_repeat: bool = False) -> GroupEvent:
    return GroupEvent(
        key=change.key,
        value=change.item.value,
        is_delete=change.is_delete,
        is_repeat=is_repeat,
    )


def _prefixes(change: Change) -> tuple[bytes, ...]:
    if change.is_delete:
        return ()
    return tuple(p.encode() for p in decode(SegmentScope, change.item.value).prefixes)
