"""Finds what a cluster has of a group that its successor does not stand on, and sets it aside.

The cluster that was active has a *tail*: its own log past the parent sequence. Another standby may
be *ahead*: it applied more of that log than the cluster that was promoted. Where the log is still
there every change is found; where it was compacted away, states are compared (S16); and where not
even that says for certain what is whose, the entries say `unknown`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import attrs
import structlog

from meshkit.codec import decode
from meshkit.errors import Compacted, NotFound, Refused, Unreachable
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NOTHING, Epoch, Incarnation, Revision
from meshkit.ordinals import Sequence as LogSequence
from meshkit.quarantine import (
    Completeness,
    Origin,
    QuarantineClass,
    QuarantineEntry,
    SetAside,
    classed,
    set_aside,
    unknown_entry,
    worst,
)
from meshkit.regional import Checkpoint
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import WHOLE_STORE, KeyValue
from replicator.elsewhere import Elsewhere, StatePage
from replicator.tail import TailReader, Theirs, foreign_changes, head_of, opened_past, read_now

_log = structlog.get_logger()

PAGE_KEYS_MAX = 500
BATCH_KEYS_MAX = 64

Entries = AsyncGenerator[list[SetAside], None]


@attrs.define(kw_only=True)
class Found:
    """What was found, in numbers."""

    classes: Counter[QuarantineClass] = attrs.field(factory=Counter)
    kinds: dict[Completeness, None] = attrs.field(factory=dict)
    total: int = 0

    def add(self, entries: Sequence[SetAside]) -> None:
        """Count some entries."""
        for one in entries:
            self.classes[one.entry.divergence] += 1
            self.kinds[one.entry.completeness] = None
            self.total += 1

    @property
    def completeness(self) -> Completeness:
        """The worst of what was found."""
        return worst([*self.kinds])


@attrs.frozen(kw_only=True)
class Divergence:
    """One group's divergence from its successor, in the region of `regional`."""

    regional: Store
    elsewhere: Elsewhere
    me: ClusterName
    incarnation: Incarnation
    group: GroupName
    active: ClusterName
    """Who is active now, and has what is `there`."""
    lineage: Lineage | None
    """What the first epoch past this cluster's stands on; None: nobody knows."""
    prefixes: tuple[bytes, ...]
    now_ms: int

    async def entries(self) -> Entries:
        """Yield everything that diverged, in batches; the same each time while nothing moves.

        Raises:
            Unreachable: the active cluster does not answer.
        """
        lineage = self.lineage
        why = self._unknowable()
        if why:
            async with aclosing(self._unknown(why)) as batches:
                async for batch in batches:
                    yield batch
            return
        assert lineage is not None
        try:
            is_mine = lineage.parent == self.me
            logged = self._tail(lineage) if is_mine else self._beside(lineage)
            async with aclosing(logged) as batches:
                async for batch in batches:
                    yield batch
        except Compacted as error:
            _log.warning("tail.compacted", group=self.group, why=str(error))
            async with aclosing(self._by_state(lineage, str(error))) as batches:
                async for batch in batches:
                    yield batch

    def _unknowable(self) -> str:
        if self.lineage is None:
            return "nobody knows what the epochs since this cluster's stand on"
        is_mine = self.lineage.parent == self.me
        if is_mine and self.lineage.parent_incarnation != self.incarnation:
            return "this etcd is not the one that was active: its history is another"
        return ""

    # --- by the log ----------------------------------------------------------------------------

    def _tail(self, lineage: Lineage) -> Entries:
        why = f"written past {lineage.sequence}, where the next epoch begins"
        return self._written(lineage.parent_epoch, lineage.sequence, why)

    async def _beside(self, lineage: Lineage) -> Entries:
        """Yield what was written here in epochs that are not stood on at all, then the excess."""
        mine = await opened_past(self.regional, self.group, lineage.parent_epoch)
        if mine is not None:
            epoch, opened = mine
            why = f"written in epoch {epoch}, which the next one does not stand on"
            async with aclosing(self._written(epoch, opened, why)) as batches:
                async for batch in batches:
                    yield batch
        async with aclosing(self._excess(lineage, mine[1] if mine else None)) as batches:
            async for batch in batches:
                yield batch

    def _written(self, epoch: Epoch, after: LogSequence, why: str) -> Entries:
        async def there(keys: Sequence[bytes]) -> Theirs:
            return await self.elsewhere.keys(self.active, self.group, keys)

        return TailReader(
            regional=self.regional,
            group=self.group,
            epoch=epoch,
            prefixes=self.prefixes,
            after=after,
            origin=Origin.TAIL,
            read_there=there,
            now_ms=self.now_ms,
            why=why,
        ).batches()

    async def _excess(self, lineage: Lineage, mine_after: LogSequence | None) -> Entries:
        """Yield the keys that were changed here by more of the parent's log than counts.

        A batch may straddle the parent sequence, so each key is compared with what the new epoch
        began with, where that is still there.
        """
        after = await self._applied_up_to(lineage)
        base_at = await self._epoch_start(lineage)
        head = await head_of(self.regional)
        keys: dict[bytes, Revision] = {}
        if head > after:
            async with self.regional.watch(WHOLE_STORE, start=Revision(after + 1)) as items:
                async for item in items:
                    if not isinstance(item, RevisionChanges):
                        continue
                    if item.revision > head:
                        break
                    is_mine = mine_after is not None and item.revision > mine_after
                    mine = foreign_changes(item, self.prefixes) if is_mine else ()
                    for change in item.changes:
                        if change.key.startswith(self.prefixes) and change not in mine:
                            keys[change.key] = item.revision
                    if len(keys) >= BATCH_KEYS_MAX:
                        yield await self._compared(lineage, keys, base_at)
                        keys = {}
                    if item.revision >= head:
                        break
        yield await self._compared(lineage, keys, base_at)

    async def _compared(
        self, lineage: Lineage, changed: dict[bytes, Revision], base_at: Revision | None
    ) -> list[SetAside]:
        """Return the entries of keys that are not as the new epoch began with them."""
        now = await read_now(self.regional, list(changed))
        newest = [k for k, r in changed.items() if k not in now or now[k].mod_revision == r]
        base = await self._base(newest, base_at)
        if base is not None:
            newest = [k for k in newest if _value(now.get(k)) != base.values.get(k)]
        theirs = await self.elsewhere.keys(self.active, self.group, newest)
        found = []
        for key in newest:
            entry = self._entry(
                lineage.parent_epoch,
                LogSequence(changed[key]),
                key,
                origin=Origin.EXCESS,
                completeness=Completeness.COMPLETE,
                parent=lineage.sequence,
                why=f"applied from {lineage.parent} past {lineage.sequence}",
            )
            found.append(self._with_values(entry, _value(now.get(key)), theirs))
        return found

    async def _base(self, keys: Sequence[bytes], at: Revision | None) -> Theirs | None:
        """Return what the new epoch began with under some keys; None where that is gone.

        Then all that was changed here counts: rather too much is set aside than too little.
        """
        if at is None:
            return None
        try:
            return await self.elsewhere.keys(self.active, self.group, keys, at)
        except Unreachable:
            raise
        except Refused as error:
            _log.warning("base.gone", group=self.group, source=self.active, why=str(error))
            return None

    async def _applied_up_to(self, lineage: Lineage) -> Revision:
        """Return the last revision here at which no more of the parent was applied than counts.

        The checkpoint only rises, so it is searched by halves.

        Raises:
            Compacted: it is gone.
        """
        low, high = Revision(0), await head_of(self.regional)
        while high - low > 1:
            middle = Revision((low + high) // 2)
            try:
                is_within = await self._applied_at(lineage, middle) <= lineage.sequence
            except Compacted:
                is_within = True
            low, high = (middle, high) if is_within else (low, middle)
        if low:
            await self._applied_at(lineage, low)
        return low

    async def _applied_at(self, lineage: Lineage, revision: Revision) -> LogSequence:
        """Return how much of the parent was applied at a revision here.

        Raises:
            Compacted: nobody can say any more.
        """
        key = RegionalKeys.checkpoint(lineage.parent)
        result = await self.regional.range((key, b""), revision=revision)
        if not result.items:
            return NOTHING
        checkpoint = decode(Checkpoint, result.items[0].value)
        if checkpoint.incarnation != lineage.parent_incarnation:
            raise Compacted(revision=revision, compact_revision=result.revision)
        return checkpoint.sequence

    # --- by states -----------------------------------------------------------------------------

    async def _by_state(self, lineage: Lineage, why: str) -> Entries:
        """Yield what differs from what the new epoch began with; each change of it is lost.

        Where that state is gone too, what differs from the present one; then it may be the other
        side's later write as well, and nobody can tell.
        """
        base_at = await self._epoch_start(lineage)
        kind = Completeness.STATE_ONLY
        if base_at is not None:
            try:
                async with aclosing(self._differing(lineage, base_at, kind, why)) as batches:
                    async for batch in batches:
                        yield batch
            except Refused as error:
                if isinstance(error, Unreachable):
                    raise
                why = f"{why}; {self.active}: {error}"
            else:
                return
        async with aclosing(self._unknown(why)) as batches:
            async for batch in batches:
                yield batch

    async def _unknown(self, why: str) -> Entries:
        """Yield what differs from the present state there, and that something may be missing."""
        lineage = self.lineage
        epoch = lineage.parent_epoch if lineage else Epoch(0)
        sequence = lineage.sequence if lineage else NOTHING
        origin = Origin.TAIL if lineage is None or lineage.parent == self.me else Origin.EXCESS
        yield [
            unknown_entry(self.group, epoch, sequence, origin=origin, why=why, now_ms=self.now_ms)
        ]
        async with aclosing(self._differing(lineage, None, Completeness.UNKNOWN, why)) as batches:
            async for batch in batches:
                yield batch

    async def _differing(
        self, lineage: Lineage | None, at: Revision | None, kind: Completeness, why: str
    ) -> Entries:
        pages = self.elsewhere.state(self.active, self.group, self.prefixes, at)
        async with aclosing(pages) as states:
            async for page in states:
                start = page.start
                while start < page.end:
                    here = await self.regional.range((start, page.end), limit=PAGE_KEYS_MAX)
                    end = here.items[-1].key + b"\x00" if here.more else page.end
                    yield await self._page_entries(
                        lineage, page, (start, end), here.items, kind=kind, why=why
                    )
                    start = end

    async def _page_entries(
        self,
        lineage: Lineage | None,
        page: StatePage,
        stretch: tuple[bytes, bytes],
        here: Sequence[KeyValue],
        *,
        kind: Completeness,
        why: str,
    ) -> list[SetAside]:
        start, end = stretch
        ours = {item.key: item for item in here}
        base = {key: value for key, value in page.values.items() if start <= key < end}
        keys = [k for k in sorted({*ours, *base}) if _value(ours.get(k)) != base.get(k)]
        if not keys:
            return []
        theirs = await self.elsewhere.keys(self.active, self.group, keys)
        is_excess = lineage is not None and lineage.parent != self.me
        found = []
        for key in keys:
            parent = lineage.sequence if lineage else NOTHING
            sequence = LogSequence(ours[key].mod_revision) if key in ours else parent
            entry = self._entry(
                lineage.parent_epoch if lineage else Epoch(0),
                sequence,
                key,
                origin=Origin.EXCESS if is_excess else Origin.TAIL,
                completeness=kind,
                parent=parent,
                why=f"the log is gone, states were compared: {why}",
            )
            found.append(self._with_values(entry, _value(ours.get(key)), theirs))
        return found

    # --- parts ---------------------------------------------------------------------------------

    async def _epoch_start(self, lineage: Lineage) -> Revision | None:
        """Return the revision at which the next epoch began at the active cluster, if it did."""
        child = Epoch(lineage.parent_epoch + 1)
        try:
            found = await self.elsewhere.epoch_start(self.active, self.group, child)
        except NotFound:
            return None
        return found.opened

    def _entry(
        self,
        epoch: Epoch,
        sequence: LogSequence,
        key: bytes,
        *,
        origin: Origin,
        completeness: Completeness,
        parent: LogSequence | None,
        why: str,
    ) -> QuarantineEntry:
        return QuarantineEntry(
            group=self.group,
            epoch=epoch,
            sequence=sequence,
            key=key,
            origin=origin,
            divergence=QuarantineClass.SAME,
            completeness=completeness,
            parent_sequence=parent,
            at_ms=self.now_ms,
            why=why,
        )

    def _with_values(self, entry: QuarantineEntry, here: bytes | None, theirs: Theirs) -> SetAside:
        there = theirs.values.get(entry.key)
        whole = attrs.evolve(
            entry,
            is_delete=here is None,
            divergence=classed(here, there),
            there_cluster=theirs.cluster,
            there_sequence=theirs.sequence,
        )
        return set_aside(whole, here=here, there=there)


def _value(item: KeyValue | None) -> bytes | None:
    return item.value if item is not None else None
