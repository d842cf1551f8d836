"""Reads what a group's keys were changed to past a point of this etcd's history.

A change that did not come with a checkpoint was made here and is nobody else's (architecture 5,
origin). It is read by a watch, in batches, so that a tail may be of any length.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

import attrs

from meshkit.errors import LeaseLost
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_LEASE, Epoch, Revision
from meshkit.ordinals import Sequence as LogSequence
from meshkit.quarantine import (
    Completeness,
    Origin,
    QuarantineEntry,
    SetAside,
    classed,
    set_aside,
)
from meshkit.store.port import Change, RevisionChanges, Store
from meshkit.store.txn import WHOLE_STORE, Committed, Get, KeyValue, Txn, prefix_range
from replicator.together import in_parallel

BATCH_CHANGES_MAX = 64
BATCH_BYTES_MAX = 1024 * 1024
EXPIRIES_PARALLEL_MAX = 16


@attrs.frozen(kw_only=True)
class Theirs:
    """What the other side has under some keys."""

    values: Mapping[bytes, bytes | None]
    cluster: ClusterName | None = None
    sequence: LogSequence | None = None


ReadThere = Callable[[Sequence[bytes]], Awaitable[Theirs]]
"""Reads some keys at the cluster that is active."""

Located = tuple[Revision, Change]


@attrs.frozen(kw_only=True)
class TailReader:
    """Reads the changes of one group past `after`, and says of each how it stands."""

    regional: Store
    group: GroupName
    epoch: Epoch
    prefixes: tuple[bytes, ...]
    after: LogSequence
    origin: Origin
    read_there: ReadThere
    now_ms: int
    why: str = ""

    async def batches(self) -> AsyncGenerator[list[SetAside], None]:
        """Yield what was changed here past `after` and up to now, in order.

        Raises:
            Compacted: some of it is gone.
        """
        head = await head_of(self.regional)
        changes = local_changes(self.regional, self.prefixes, self.after, head)
        async with aclosing(changes) as batches:
            async for batch in batches:
                yield await self._entries(batch)

    async def _entries(self, batch: Sequence[Located]) -> list[SetAside]:
        keys = list(dict.fromkeys(change.key for _, change in batch))
        now = await read_now(self.regional, keys)
        theirs = await self.read_there(keys)
        return [await self._entry(r, change, now, theirs) for r, change in batch]

    async def _entry(
        self,
        revision: Revision,
        change: Change,
        now: Mapping[bytes, KeyValue],
        theirs: Theirs,
    ) -> SetAside:
        key, last = change.key, now.get(change.key)
        is_newest = last is None if change.is_delete else bool(last) and is_at(last, revision)
        there = theirs.values.get(key)
        is_expiry = change.is_delete and await ran_out(self.regional, key, revision)
        entry = QuarantineEntry(
            group=self.group,
            epoch=self.epoch,
            sequence=LogSequence(revision),
            key=key,
            is_delete=change.is_delete,
            origin=Origin.EXPIRY if is_expiry else self.origin,
            divergence=classed(last.value if last else None, there),
            completeness=Completeness.COMPLETE,
            is_newest=is_newest,
            there_cluster=theirs.cluster,
            there_sequence=theirs.sequence,
            parent_sequence=self.after,
            at_ms=self.now_ms,
            why=self.why,
        )
        here = None if change.is_delete else change.item.value
        return set_aside(entry, here=here, there=there)


def is_at(item: KeyValue | None, revision: Revision) -> bool:
    """Return whether the key was last changed at `revision`."""
    return item is not None and item.mod_revision == revision


async def head_of(regional: Store) -> Revision:
    """Return the newest revision of an etcd."""
    return (await regional.range((RegionalKeys.beat, b""), keys_only=True)).revision


async def opened_past(
    regional: Store, group: GroupName, epoch: Epoch
) -> tuple[Epoch, LogSequence] | None:
    """Return the first epoch after `epoch` that opened here, and where; None if there is none."""
    start = RegionalKeys.segment_opened(group, Epoch(epoch + 1))
    _, end = prefix_range(RegionalKeys.segment_opened(group, epoch).rsplit(b"/", 2)[0] + b"/")
    for item in (await regional.range((start, end), keys_only=True)).items:
        *_, opened, what = item.key.decode().split("/")
        if what == "opened":
            return Epoch(int(opened)), LogSequence(item.mod_revision)
    return None


async def local_changes(
    regional: Store, prefixes: tuple[bytes, ...], after: LogSequence, head: Revision
) -> AsyncGenerator[list[Located], None]:
    """Yield the changes under `prefixes` in `(after, head]` that no apply made, in batches.

    Raises:
        Compacted: some of it is gone.
    """
    if head <= after:
        return
    batch: list[Located] = []
    size = 0
    async with regional.watch(WHOLE_STORE, start=Revision(after + 1)) as items:
        async for item in items:
            if not isinstance(item, RevisionChanges):
                continue
            if item.revision > head:
                break
            for change in foreign_changes(item, prefixes):
                batch.append((item.revision, change))
                size += len(change.key) + len(change.item.value)
            if len(batch) >= BATCH_CHANGES_MAX or size >= BATCH_BYTES_MAX:
                yield batch
                batch, size = [], 0
            if item.revision >= head:
                break
    if batch:
        yield batch


def foreign_changes(item: RevisionChanges, prefixes: tuple[bytes, ...]) -> list[Change]:
    """Return the changes under `prefixes`, unless the revision is an apply."""
    if any(key.startswith(RegionalKeys.checkpoints) for key in item.keys):
        return []
    return [change for change in item.changes if change.key.startswith(prefixes)]


async def read_now(regional: Store, keys: Sequence[bytes]) -> dict[bytes, KeyValue]:
    """Return what is there now of some keys."""
    found: dict[bytes, KeyValue] = {}
    for start in range(0, len(keys), BATCH_CHANGES_MAX):
        gets = tuple(Get(key) for key in keys[start : start + BATCH_CHANGES_MAX])
        outcome = await regional.commit(Txn(operations=gets))
        assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
        found |= {item.key: item for read in outcome.reads for item in read}
    return found


async def read_at(
    regional: Store, keys: Sequence[bytes], revision: Revision
) -> dict[bytes, KeyValue]:
    """Return what was there of some keys at a revision.

    Raises:
        Compacted: that is gone.
    """
    found: dict[bytes, KeyValue] = {}
    for key in keys:
        result = await regional.range((key, b""), revision=revision)
        found |= {item.key: item for item in result.items}
    return found


def at_revision(regional: Store, revision: Revision) -> ReadThere:
    """Return what reads keys of this very etcd as they were at a revision."""

    async def read(keys: Sequence[bytes]) -> Theirs:
        found = await read_at(regional, keys, revision)
        values = {key: found[key].value if key in found else None for key in keys}
        return Theirs(values=values, sequence=LogSequence(revision))

    return read


async def ran_out(regional: Store, key: bytes, revision: Revision) -> bool:
    """Return whether a key was deleted at `revision` because its lease ended, by itself or whole.

    Raises:
        Compacted: what the key was before is gone.
    """
    before = await regional.range((key, b""), revision=Revision(revision - 1))
    if not before.items or before.items[0].lease == NO_LEASE:
        return False
    try:
        await regional.lease_ttl(before.items[0].lease)
    except LeaseLost:
        return True
    return False


async def ran_out_of(
    regional: Store, keys: Sequence[bytes], revision: Revision
) -> frozenset[bytes]:
    """Return which of these keys were deleted at `revision` because their lease ended.

    Raises:
        Compacted, Unreachable: it cannot be known.
    """

    async def ended(key: bytes) -> bool:
        return await ran_out(regional, key, revision)

    is_ended = await in_parallel(ended, keys, at_most=EXPIRIES_PARALLEL_MAX)
    return frozenset(key for key, is_one in zip(keys, is_ended, strict=True) if is_one)
