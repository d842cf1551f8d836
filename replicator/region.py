"""Reads and follows the fences and checkpoints of the region that a stream applies to."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.keys import RegionalKeys, parts_below
from meshkit.mirror import PrefixMirror
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision
from meshkit.regional import Checkpoint, Fence
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import Committed, KeyValue, Txn, prefix_range
from replicator.region_state import (
    REGION_READS,
    JoinKey,
    RegionState,
    region_of,
    torn_groups,
)
from replicator.shared_watch import WatchAll

LARGE_GROUPS = 200
"""With more groups than that a region is read in pages."""


@attrs.define
class RegionReader:
    """Reads the state of a region again and again.

    A large one is read in pages, so that no request is long: etcd before 3.5.5 panics when a
    transaction that only reads is given up in the middle (etcd #14110). And of a large one only
    what has changed is read: all of it is asked for whenever one of its groups moves.
    """

    store: Store
    _is_large: bool = attrs.field(default=False, init=False)
    _known: _Known | None = attrs.field(default=None, init=False)

    async def read(self) -> RegionState:
        """Return the state of the region at one revision; it is the caller's own.

        Raises:
            Unreachable, OutcomeUnknown: nothing was read, nothing was changed.
            Compacted: history moves faster than it is read.
        """
        if not self._is_large:
            state = await read_region(self.store)
            self._is_large = len(state.fences) > LARGE_GROUPS
            return state
        known, self._known = self._known, None
        if known is None or not await known.catch_up(self.store):
            known = _Known.of(*await _read_in_pages(self.store))
        self._known = known
        self._is_large = len(known.state.fences) > LARGE_GROUPS
        return known.state.copy()


@attrs.define
class _Known:
    """What was read of a region, and which keys there were in each of `REGION_READS`."""

    revision: Revision
    state: RegionState
    keys: list[set[bytes]]

    @classmethod
    def of(cls, revision: Revision, reads: tuple[tuple[KeyValue, ...], ...]) -> _Known:
        keys = [{item.key for item in items} for items in reads]
        return cls(revision=revision, state=region_of(reads), keys=keys)

    async def catch_up(self, store: Store) -> bool:
        """Take in what was put since; False if that is not all that happened: read it whole.

        Deleted keys show in the count: what is there is among the known and the new ones. After
        False or an error nothing of this is to be used.
        """
        at: Revision | None = None
        changed: list[tuple[KeyValue, ...]] = []
        for get, known in zip(REGION_READS, self.keys, strict=True):
            result = await store.range(
                (get.key, get.end),
                revision=at,
                limit=get.limit,
                keys_only=get.keys_only,
                modified_after=self.revision,
            )
            at = at or result.revision
            if at < self.revision:
                return False  # It is not the etcd it was.
            known.update(item.key for item in result.items)
            if result.more or len(known) != result.count:
                return False
            changed.append(tuple(result.items))
        fences, index, checkpoints, segments, attached, parked = changed
        if attached or at is None:
            return False
        self.state.take(fences, index, checkpoints, segments, parked)
        self.revision = at
        return True


async def read_region(store: Store) -> RegionState:
    """Return the state of the region at one revision, in one request.

    Raises:
        Unreachable, OutcomeUnknown: nothing was read, nothing was changed.
    """
    outcome = await store.commit(Txn(operations=REGION_READS))
    assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
    return region_of(outcome.reads)


async def _read_in_pages(store: Store) -> tuple[Revision, tuple[tuple[KeyValue, ...], ...]]:
    at = (await store.range((RegionalKeys.fence_index, b""), keys_only=True)).revision
    results = [
        await store.range((get.key, get.end), revision=at, limit=get.limit, keys_only=get.keys_only)
        for get in REGION_READS
    ]
    return at, tuple(tuple(result.items) for result in results)


class RegionMirror(PrefixMirror):
    """Fences and checkpoints of the region, followed by one watch, for those who wait for them.

    One watch over both, because "in step" is a claim about both at one revision.
    """

    def __init__(self, store: Store, *, clock: Clock, watch: WatchAll | None = None) -> None:
        """`watch`: of everything, where somebody follows that anyway; None: of these keys alone."""
        super().__init__(store, RegionalKeys.checkpoints, clock=clock)
        # checkpoint/... < fence-index < fence/...: one range holds all three.
        self._range = (RegionalKeys.checkpoints, prefix_range(RegionalKeys.fences)[1])
        self._watch = watch or (lambda start: store.watch(self._range, start=start))
        self._joined: dict[GroupName, dict[JoinKey, bytes]] = {}
        self._parts: set[bytes] = set()

    def checkpoint(self, source: ClusterName) -> Checkpoint | None:
        """Return the stored main checkpoint of a source."""
        item = self.entries.get(RegionalKeys.checkpoint(source))
        return decode(Checkpoint, item.value) if item else None

    def fence(self, group: GroupName) -> Fence | None:
        """Return the group's fence."""
        item = self.entries.get(RegionalKeys.fence(group))
        return decode(Fence, item.value) if item else None

    def joins(self) -> Mapping[JoinKey, KeyValue]:
        """Return the keys of every group that is out of step."""
        return {
            join: self.entries[key]
            for joined in self._joined.values()
            for join, key in joined.items()
        }

    def has_moved(self, known: RegionState) -> bool:
        """Return whether somebody else moved a fence or a join since the region was read."""
        item = self.entries.get(RegionalKeys.fence_index)
        return item is not None and item.mod_revision > known.index_revision

    def is_out_of_step(self, group: GroupName) -> bool:
        """Return whether the group has a checkpoint of its own, or a part of a transaction."""
        return group in self._joined or group in self.torn()

    def torn(self) -> frozenset[GroupName]:
        """Return the groups that hold a part of a transaction, and not yet the whole."""
        return torn_groups(self.entries[key] for key in self._parts)

    async def _follow(self) -> None:
        begin, end = self._range
        async with self._watch(Revision(self.revision + 1)) as items:
            async for item in items:
                if not isinstance(item, RevisionChanges):
                    continue
                changes = item.within(begin, end)
                if changes:
                    self._take_in(RevisionChanges(revision=item.revision, changes=changes))
                else:
                    # It was here too: a watch that is begun anew goes on after it.
                    self.revision = item.revision

    def _advance(self, revision: Revision, changed: frozenset[bytes]) -> None:
        """Look at the checkpoints that have changed: thousands of groups wait for theirs."""
        for key in changed:
            parts = parts_below(RegionalKeys.checkpoints, key)
            if parts is None or len(parts) == 1:
                continue
            if len(parts) == 2:
                self._on_join((ClusterName(parts[0]), GroupName(parts[1])), key)
            elif key in self.entries:
                self._parts.add(key)
            else:
                self._parts.discard(key)
        super()._advance(revision, changed)

    def _on_join(self, join: JoinKey, key: bytes) -> None:
        joined = self._joined.setdefault(join[1], {})
        if key in self.entries:
            joined[join] = key
        else:
            joined.pop(join, None)
        if not joined:
            del self._joined[join[1]]
