"""Finds writes that something that ignores the permit makes on a passive cluster, as they happen.

A revision that changes a key of a group which is passive here, and carries no checkpoint, came from
nowhere MeshKit knows (architecture 5, origin). It is counted, logged and listed in the regional
etcd until the group is copied anew or opened here. Nothing is put right here; and what is written
while no replicator leads the region is not seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar

import attrs
import structlog

from meshkit.codec import Stored, decode, encode
from meshkit.errors import Compacted, CorruptRecord, MeshError, TermEnded
from meshkit.keys import ROOT, RegionalKeys, last_part, parts_below
from meshkit.model import Group
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, Revision, Sequence
from meshkit.regional import Fence, FenceMode
from meshkit.shared_reads import SharedReads
from meshkit.store.port import Change, RevisionChanges
from meshkit.store.txn import (
    Committed,
    Delete,
    Get,
    KeyValue,
    Operation,
    Put,
    Txn,
    prefix_range,
)
from replicator.agent_ports import Region
from replicator.awaited import AwaitedPositions
from replicator.local_writes import LocalWrites, PrefixOwners
from replicator.shared_watch import WatchAll, alone
from replicator.tail import head_of, ran_out_of
from replicator.together import together

_log = structlog.get_logger()

LISTED_MAX = 20
"""So many of the latest are listed for each group; all are counted."""
KEY_BYTES_MAX = 400
"""Of a listed key: a longer one is cut off."""
STORE_INTERVAL_MS = 1_000
RETRY_MS = 250
LOOK_BACK_MAX = 50_000
"""For so many revisions it is looked back at what groups wrote that stopped before this began."""


@attrs.frozen(kw_only=True)
class ForeignWrite:
    """One key that was written or deleted beside MeshKit, and where."""

    key: str
    revision: Revision
    deleted: bool = False


@attrs.frozen(kw_only=True)
class ForeignWrites(Stored):
    """What was written to a passive copy of a group beside MeshKit and is not put right yet."""

    SCHEMA: ClassVar[str] = "foreign-writes"

    group: GroupName
    count: int = 0
    latest: tuple[ForeignWrite, ...] = ()
    """The last ones, oldest first."""

    @property
    def problem(self) -> str:
        """What to tell people."""
        last = self.latest[-1]
        return (
            f"foreign writes: {self.count}, by something that ignores the permit;"
            f" the last of {last.key} at revision {last.revision}"
        )


class ForeignFold:
    """Knows of each revision what in it is foreign: a fold over the region's history.

    Invariant: `found` has an entry for a group exactly while something foreign is in its copy, as
    far as was seen.
    """

    def __init__(
        self,
        fences: Iterable[KeyValue] = (),
        stored: Iterable[KeyValue] = (),
        *,
        seen: Revision = ABSENT,
    ) -> None:
        self.found: dict[GroupName, ForeignWrites] = {}
        self.local = LocalWrites(seen)
        """Of the groups that are active here as well."""
        self._passive: set[GroupName] = set()
        self._owners = PrefixOwners()
        for item in fences:
            self._on_fence(Change(item=item, is_delete=False))
        for item in stored:
            writes = _readable(item)
            if writes is not None:
                self.found[writes.group] = writes

    def set_groups(self, groups: Iterable[Group]) -> None:
        """Say which keys belong to which group, from now on."""
        scopes = {group.name: group.prefix_bytes for group in groups}
        self._owners = PrefixOwners({p: name for name, scope in scopes.items() for p in scope})
        self.local.set_groups(scopes)

    def deletes_to_explain(self, item: RevisionChanges) -> list[bytes]:
        """Return the keys of passive groups that the revision deletes, unless it is an apply."""
        if not self._passive or _is_apply(item):
            return []
        deleted = (change.key for change in item.changes if change.is_delete)
        return [key for key in deleted if self._owner(key) is not None]

    def take(
        self, item: RevisionChanges, *, expired: Container[bytes] = ()
    ) -> frozenset[GroupName]:
        """Take in one revision; return the groups of which `found` has changed.

        `expired` are the keys of it that ran out past the group's cut: nobody wrote them.
        """
        is_apply = _is_apply(item)
        foreign: list[Change] = []
        before = dict(self.found)
        # Of an apply, which may be large, nothing else counts.
        for change in item.under(ROOT) if is_apply else item.changes:
            if change.key.startswith(RegionalKeys.checkpoints):
                self._on_checkpoint(change)
            elif change.key.startswith(RegionalKeys.fences):
                self._on_fence(change)
            elif change.is_delete and change.key in expired:
                continue
            elif self._passive and self._owner(change.key) is not None:
                foreign.append(change)
        if not is_apply:
            for change in foreign:
                self._add(change, item.revision)
        self.local.take(item, self._owners, is_apply=is_apply)
        groups = before.keys() | self.found.keys()
        return frozenset(g for g in groups if before.get(g) is not self.found.get(g))

    def look_back(self, item: RevisionChanges) -> None:
        """Take in a revision from before the fences were read: only what it changed counts."""
        self.local.take(item, self._owners, is_apply=_is_apply(item))

    def _owner(self, key: bytes) -> GroupName | None:
        """Return the passive group that the key belongs to, if any."""
        owner = self._owners.owner_of(key)
        return owner if owner in self._passive else None

    def _add(self, change: Change, revision: Revision) -> None:
        group = self._owner(change.key)
        if group is None:
            return  # It is active here since this very revision.
        writes = self.found.get(group) or ForeignWrites(group=group)
        key = change.key[:KEY_BYTES_MAX].decode(errors="backslashreplace")
        one = ForeignWrite(key=key, revision=revision, deleted=change.is_delete)
        latest = (*writes.latest, one)[-LISTED_MAX:]
        self.found[group] = attrs.evolve(writes, count=writes.count + 1, latest=latest)

    def _on_checkpoint(self, change: Change) -> None:
        """A group that goes out of step is copied anew: the copy leaves nothing foreign."""
        parts = parts_below(RegionalKeys.checkpoints, change.key)
        if parts is not None and len(parts) == 2 and not change.is_delete:
            self.found.pop(GroupName(parts[1]), None)

    def _on_fence(self, change: Change) -> None:
        group = GroupName(last_part(change.key))
        if change.is_delete:
            self._passive.discard(group)
        else:
            try:
                mode = decode(Fence, change.item.value).mode
            except CorruptRecord:
                return
            if mode is FenceMode.OPEN:
                # What is there now is the group's state, wherever it came from.
                self._passive.discard(group)
                self.found.pop(group, None)
            else:
                self._passive.add(group)


class ForeignWatch:
    """Watches the region while its replicator leads, and keeps the list of what is foreign."""

    def __init__(
        self,
        region: Region,
        member_groups: Callable[[], Iterable[Group]],
        *,
        watch: WatchAll | None = None,
    ) -> None:
        self.region = region
        self._watch_all = watch or alone(region.regional)
        self._member_groups = member_groups
        self._fold = ForeignFold()
        self._due: set[GroupName] = set()
        self._changed = asyncio.Event()
        self._positions = AwaitedPositions()
        self._may_look_back = True
        # Groups that leave together ask together.
        self._head = SharedReads(partial(head_of, region.regional))

    async def untouched(
        self, group: GroupName, prefixes: Iterable[bytes], after: Sequence, *, deletes: bool = False
    ) -> bool:
        """Return whether nothing but applies changed (or deleted) keys, up to now, for certain.

        Now is the revision that the region's etcd has when asked.
        """
        head = await self._head.read()
        while self._fold.local.seen < head:
            await self._positions.until(Sequence(head))
        return self._fold.local.untouched(group, prefixes, Revision(after), deletes=deletes)

    @property
    def found(self) -> Mapping[GroupName, ForeignWrites]:
        """What is foreign now, by group."""
        return self._fold.found

    def regroup(self) -> None:
        """Look again at which groups there are."""
        self._fold.set_groups(self._member_groups())

    async def run(self) -> None:
        """Watch until cancelled; survives the store's absence."""
        await together(self._watch(), self._keep_list())

    async def _watch(self) -> None:
        while True:
            try:
                await self._follow(await self._load())
            except Compacted as error:
                self._may_look_back = False
                _log.warning("foreign_watch.began_anew", why=str(error))
            except MeshError as error:
                _log.warning("foreign_watch.interrupted", why=str(error))
                await self.region.clock.sleep_ms(RETRY_MS)

    async def _load(self) -> Revision:
        """Begin a fold, and return as of which revision it stands."""
        outcome = await self.region.regional.commit(
            Txn(
                operations=(
                    Get(*prefix_range(RegionalKeys.fences)),
                    Get(*prefix_range(RegionalKeys.foreign_writes)),
                    Get(*prefix_range(RegionalKeys.segments), keys_only=True),
                )
            )
        )
        assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
        fences, stored, segments = outcome.reads
        seen = outcome.revision
        if self._may_look_back:
            # What stopped here and does not follow yet will be asked about: one reading for all.
            cuts = (cut for cut in unfollowed_cuts(fences, segments) if seen - cut < LOOK_BACK_MAX)
            seen = min(cuts, default=seen)
        self._fold = ForeignFold(fences, stored, seen=seen)
        self.regroup()
        self._positions.wake_all()
        return outcome.revision

    async def _follow(self, stands_at: Revision) -> None:
        start = Revision(self._fold.local.seen + 1)
        async with self._watch_all(start) as items:
            async for item in items:
                if not isinstance(item, RevisionChanges):
                    continue
                if item.revision <= stands_at:
                    self._fold.look_back(item)
                    self._positions.on_position(Sequence(item.revision))
                else:
                    self._take(item, await self._expired(item))

    async def _expired(self, item: RevisionChanges) -> frozenset[bytes]:
        """Return the keys that the revision deletes because their lease ended.

        One that cannot be told counts as foreign.
        """
        keys = self._fold.deletes_to_explain(item)
        if not keys:
            return frozenset()
        try:
            return await ran_out_of(self.region.regional, keys, item.revision)
        except MeshError as error:
            _log.warning("foreign_write.not_explained", revision=item.revision, why=str(error))
            return frozenset()

    def _take(self, item: RevisionChanges, expired: frozenset[bytes]) -> None:
        changed = self._fold.take(item, expired=expired)
        self._positions.on_position(Sequence(item.revision))
        for group in changed:
            writes = self.found.get(group)
            if writes is not None and group not in self._due:
                # Once for each time the list is stored, not for each write.
                last = writes.latest[-1]
                _log.warning(
                    "foreign_write.found", group=group, key=last.key, revision=last.revision
                )
            self._due.add(group)
            self._changed.set()

    async def _keep_list(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            due, self._due = self._due, set()
            try:
                await self._store(due)
            except TermEnded:
                raise
            except MeshError as error:
                _log.warning("foreign_writes.not_stored", why=str(error))
                self._due |= due
                self._changed.set()
            await self.region.clock.sleep_ms(STORE_INTERVAL_MS)

    async def _store(self, due: Iterable[GroupName]) -> None:
        for group in sorted(due):
            key, writes = RegionalKeys.foreign(group), self.found.get(group)
            operation: Operation = Delete(key) if writes is None else Put(key, encode(writes))
            outcome = await self.region.regional.commit(
                Txn(guards=(self.region.leader,), operations=(operation,))
            )
            if not isinstance(outcome, Committed):
                raise TermEnded("another replicator leads this region")


def unfollowed_cuts(fences: Iterable[KeyValue], segments: Iterable[KeyValue]) -> Iterator[Revision]:
    """Yield where groups stopped here that do not follow a successor yet."""
    at = {item.key: item.mod_revision for item in segments}
    for item in fences:
        try:
            fence = decode(Fence, item.value)
        except CorruptRecord:
            continue
        cut = at.get(RegionalKeys.segment_cut(fence.group, fence.epoch))
        if cut is not None:
            yield cut


def _is_apply(item: RevisionChanges) -> bool:
    return any(key.startswith(RegionalKeys.checkpoints) for key in item.keys)


def _readable(item: KeyValue) -> ForeignWrites | None:
    try:
        return decode(ForeignWrites, item.value)
    except CorruptRecord as error:
        _log.warning("foreign_writes.unreadable", key=item.key.decode(), why=str(error))
        return None
