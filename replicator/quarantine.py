"""The quarantine of one region: storing entries, reading them in pages, and letting them go.

Everything is bounded: a transaction by what etcd takes, a page by keys and bytes. What is stored is
stored once: an entry is put only where there is none, its chunks only while it is not there yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import attrs
import structlog

from meshkit.codec import decode, encode
from meshkit.errors import CorruptRecord, NotFound, RevisionConflict, TermEnded
from meshkit.keys import RegionalKeys
from meshkit.names import GroupName
from meshkit.ordinals import Epoch
from meshkit.quarantine import (
    Completeness,
    KeptValue,
    QuarantineClass,
    QuarantineEntry,
    SetAside,
    chunks_range,
    deletes_of,
    key_of,
    puts_of,
    worst,
)
from meshkit.store.port import Store
from meshkit.store.txn import (
    Committed,
    Guard,
    KeyValue,
    ModRevisionIs,
    Put,
    Txn,
    absent,
    prefix_range,
)

_log = structlog.get_logger()

BATCH_OPERATIONS_MAX = 32
BATCH_BYTES_MAX = 256 * 1024
PAGE_ENTRIES_MAX = 500
PAGE_BYTES_MAX = 1024 * 1024
READ_KEYS = 100
"""Entries read from etcd at a time; each is at most some ten KiB."""


@attrs.frozen(kw_only=True)
class EntryPage:
    """Some entries in order of epoch and sequence, and where the next page begins."""

    entries: tuple[QuarantineEntry, ...]
    next_key: bytes | None = None


@attrs.frozen(kw_only=True)
class QuarantineCounts:
    """What lies in a group's quarantine; what was replayed is counted apart."""

    waiting: Mapping[QuarantineClass, int] = attrs.field(factory=dict)
    replayed: int = 0
    completeness: Completeness = Completeness.COMPLETE

    @property
    def total(self) -> int:
        """How many entries wait for a decision."""
        return sum(self.waiting.values())


@attrs.frozen(kw_only=True)
class Quarantine:
    """What is set aside in the region of `regional`; writes only while `leader` holds."""

    regional: Store
    leader: Guard

    # --- setting aside -------------------------------------------------------------------------

    async def put(self, found: Sequence[SetAside]) -> int:
        """Store what is not there yet, and return how much that was.

        Raises:
            TermEnded: another replicator leads the region.
        """
        stored = 0
        for batch in _batched(found):
            stored += await self._put_batch(batch)
        return stored

    async def _put_batch(self, batch: Sequence[SetAside]) -> int:
        left = list(batch)
        while left:
            *first, last = _transactions(left)
            for puts in (*first, last):
                guards = (self.leader, *(absent(key_of(one.entry)) for one in left))
                outcome = await self.regional.commit(Txn(guards=guards, operations=puts))
                if not isinstance(outcome, Committed):
                    self._check_leads(outcome.broken)
                    present = {g.key for g in outcome.broken if isinstance(g, ModRevisionIs)}
                    left = [one for one in left if key_of(one.entry) not in present]
                    break
            else:
                return len(left)
        return 0

    async def put_with(self, one: SetAside) -> Put:
        """Store the chunks of an entry, and return the put of the entry for another transaction.

        Raises:
            TermEnded: another replicator leads the region.
        """
        *chunks, entry = puts_of(one)
        for puts in _sized(chunks):
            guards = (self.leader, absent(entry.key))
            outcome = await self.regional.commit(Txn(guards=guards, operations=puts))
            if not isinstance(outcome, Committed):
                self._check_leads(outcome.broken)
        return entry

    def _check_leads(self, broken: Sequence[Guard]) -> None:
        if self.leader in broken:
            raise TermEnded("another replicator leads this region")

    # --- reading -------------------------------------------------------------------------------

    async def page(
        self,
        group: GroupName,
        *,
        epoch: Epoch | None = None,
        start: bytes | None = None,
        limit: int = PAGE_ENTRIES_MAX,
    ) -> EntryPage:
        """Return the next entries from `start` on, by default from the first."""
        prefix = RegionalKeys.quarantine_of(group)
        if epoch is not None:
            prefix = RegionalKeys.quarantine(group, epoch, "")
        first, end = prefix_range(prefix)
        entries: list[QuarantineEntry] = []
        size = 0
        at = max(first, start) if start else first
        while True:
            result = await self.regional.range((at, end), limit=READ_KEYS)
            for item in result.items:
                is_full = len(entries) >= min(limit, PAGE_ENTRIES_MAX) or size > PAGE_BYTES_MAX
                if is_full:
                    return EntryPage(entries=tuple(entries), next_key=item.key)
                at = item.key + b"\x00"
                entry = _readable(item)
                if entry is not None:
                    entries.append(entry)
                    size += len(item.value)
            if not result.more:
                return EntryPage(entries=tuple(entries))

    async def entries(
        self, group: GroupName, *, epoch: Epoch | None = None
    ) -> AsyncIterator[QuarantineEntry]:
        """Yield every entry of a group, page by page."""
        start: bytes | None = None
        while True:
            page = await self.page(group, epoch=epoch, start=start)
            for entry in page.entries:
                yield entry
            if page.next_key is None:
                return
            start = page.next_key

    async def counts(self, group: GroupName) -> QuarantineCounts:
        """Count what lies in a group's quarantine."""
        waiting: dict[QuarantineClass, int] = {}
        kinds: dict[Completeness, None] = {}
        replayed = 0
        async for entry in self.entries(group):
            if entry.replayed_ms is not None:
                replayed += 1
                continue
            waiting[entry.divergence] = waiting.get(entry.divergence, 0) + 1
            kinds[entry.completeness] = None
        return QuarantineCounts(waiting=waiting, replayed=replayed, completeness=worst([*kinds]))

    async def whole(self, group: GroupName, epoch: Epoch, name: str) -> SetAside:
        """Return one entry with its values whole.

        Raises:
            NotFound: there is none of that name.
        """
        item = await self.regional.get(RegionalKeys.quarantine(group, epoch, name))
        if item is None:
            raise NotFound(f"there is no entry {name} of {group} in epoch {epoch} in quarantine")
        entry = decode(QuarantineEntry, item.value)
        chunks = {chunk.key: chunk.value for chunk in (await self._chunks(entry))}
        return SetAside(
            entry=entry,
            here=_value(entry, entry.here, "here", chunks),
            there=_value(entry, entry.there, "there", chunks),
        )

    async def _chunks(self, entry: QuarantineEntry) -> Sequence[KeyValue]:
        if not any(how.chunks for how in (entry.here, entry.there) if how):
            return ()
        return (await self.regional.range(chunks_range(entry))).items

    # --- letting go ----------------------------------------------------------------------------

    async def mark_replayed(self, entry: QuarantineEntry, *, by: str, now_ms: int) -> None:
        """Note that an entry was replayed; repeating it changes nothing.

        Raises:
            NotFound: it is not there any more.
        """
        key = key_of(entry)
        item = await self.regional.get(key)
        if item is None:
            raise NotFound(f"entry {entry.name} is not in quarantine any more")
        before = decode(QuarantineEntry, item.value)
        if before.replayed_ms is not None:
            return
        after = attrs.evolve(before, replayed_ms=now_ms, replayed_by=by)
        guards = (self.leader, ModRevisionIs(key, item.mod_revision))
        outcome = await self.regional.commit(
            Txn(guards=guards, operations=(Put(key, encode(after)),))
        )
        if not isinstance(outcome, Committed):
            self._check_leads(outcome.broken)
            raise RevisionConflict(f"entry {entry.name} moved meanwhile")

    async def discard(self, group: GroupName, epoch: Epoch, name: str) -> bool:
        """Remove an entry with its values for ever; False if it was not there."""
        key = RegionalKeys.quarantine(group, epoch, name)
        item = await self.regional.get(key)
        if item is None:
            return False
        entry = decode(QuarantineEntry, item.value)
        outcome = await self.regional.commit(
            Txn(guards=(self.leader,), operations=deletes_of(entry))
        )
        if not isinstance(outcome, Committed):
            self._check_leads(outcome.broken)
        return True


def _batched(found: Sequence[SetAside]) -> Iterator[list[SetAside]]:
    """Yield the entries in batches whose entries alone fit into one transaction."""
    batch: list[SetAside] = []
    for one in found:
        if len(batch) >= BATCH_OPERATIONS_MAX // 2:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _transactions(batch: Sequence[SetAside]) -> list[tuple[Put, ...]]:
    """Return the puts of a batch: first the chunks, at last all its entries together."""
    chunks: list[Put] = []
    entries: list[Put] = []
    for one in batch:
        *parts, entry = puts_of(one)
        chunks += parts
        entries.append(entry)
    return [*_sized(chunks), tuple(entries)]


def _sized(puts: Sequence[Put]) -> Iterator[tuple[Put, ...]]:
    batch: list[Put] = []
    size = 0
    for put in puts:
        if batch and (
            len(batch) >= BATCH_OPERATIONS_MAX or size + len(put.value) > BATCH_BYTES_MAX
        ):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(put)
        size += len(put.value)
    if batch:
        yield tuple(batch)


def _value(
    entry: QuarantineEntry, how: KeptValue | None, side: str, chunks: Mapping[bytes, bytes]
) -> bytes | None:
    if how is None or not how.chunks:
        return how.inline if how else None
    keys = [
        RegionalKeys.quarantine_chunk(entry.group, entry.epoch, entry.name, f"{side}-{n:04d}")
        for n in range(how.chunks)
    ]
    if any(key not in chunks for key in keys):
        raise CorruptRecord(f"a part of the value of entry {entry.name} is missing")
    return b"".join(chunks[key] for key in keys)


def _readable(item: KeyValue) -> QuarantineEntry | None:
    try:
        return decode(QuarantineEntry, item.value)
    except CorruptRecord as error:
        _log.warning("quarantine.unreadable", key=item.key.decode(), why=str(error))
        return None
