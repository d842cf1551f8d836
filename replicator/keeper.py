"""Sets aside what a copy is about to overwrite although it was not expected there."""

from __future__ import annotations

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.errors import Compacted
from meshkit.ordinals import Sequence
from meshkit.quarantine import (
    Completeness,
    Origin,
    QuarantineEntry,
    SetAside,
    classed,
    key_of,
    set_aside,
)
from meshkit.store.port import Store
from meshkit.store.txn import KeyValue, Put, absent
from replicator.applier import Applier
from replicator.changes import Changes
from replicator.draft import Overtaken
from replicator.expected import Expectation, Origins, unexpected
from replicator.messages import CopyPage
from replicator.quarantine import Quarantine
from replicator.stride import stretches

_log = structlog.get_logger()

KEPT_BYTES_MAX = 256 * 1024
"""Of values that are set aside in one transaction, as far as they lie in their entries."""
KEPT_KEYS_MAX = 500
_NOBODY = absent(b"\x00")
"""A guard that always holds, where no term is to be compared."""

_WHY = "found where a copy was made, and not known to be an older state of it"


class Keeper:
    """Decides of each stretch what is to be kept, and stores it with what overwrites it."""

    def __init__(self, store: Store, applier: Applier, *, clock: Clock) -> None:
        self._store = store
        self._applier = applier
        self._clock = clock
        self._origins = Origins(store)

    async def keep(
        self, page: CopyPage, changes: Changes
    ) -> tuple[Changes, Changes | None] | Overtaken:
        """Return the changes with the entries that belong to them, and what does not fit with it.

        Values too large for an entry are stored before; the entries are part of the transaction
        that overwrites what they tell of.
        """
        if not changes.found:
            return changes, None
        state = self._applier.known or await self._applier.region()
        key = (self._applier.source, page.group)
        if key not in state.joins:
            return changes, None
        expectation = Expectation.of(state, key)
        strange = await unexpected(expectation, changes.found, self._origins)
        if not strange:
            return changes, None
        return await self._kept(page, changes, strange, expectation)

    async def _kept(
        self,
        page: CopyPage,
        changes: Changes,
        strange: frozenset[bytes],
        expectation: Expectation,
    ) -> tuple[Changes, Changes | None] | Overtaken:
        kept: dict[bytes, Put] = {}
        size, seen = 0, 0
        key_range = (min(strange), max(strange) + b"\x00")
        try:
            # Read as of when they were looked at: exactly what the guards then compare.
            async for stretch in stretches(self._store, key_range, revision=changes.revision):
                for item in stretch.items:
                    if item.key not in strange:
                        continue
                    if size > KEPT_BYTES_MAX or len(kept) >= KEPT_KEYS_MAX:
                        some, rest = changes.split_at(item.key)
                        return self._told(page, attrs.evolve(some, kept=kept)), rest
                    seen += 1
                    put = await self._put(self._entry(page, changes, item, expectation))
                    if put is not None:
                        kept[item.key] = put
                        size += len(put.value)
        except Compacted:
            return Overtaken()
        if seen < len(strange):
            return Overtaken()
        return self._told(page, attrs.evolve(changes, kept=kept)), None

    def _entry(
        self, page: CopyPage, changes: Changes, item: KeyValue, expectation: Expectation
    ) -> SetAside:
        write = changes.writes[item.key]
        there = write.value if isinstance(write, Put) else None
        entry = QuarantineEntry(
            group=page.group,
            epoch=expectation.epoch_of(item.mod_revision),
            sequence=Sequence(item.mod_revision),
            key=item.key,
            origin=Origin.REPLACED,
            divergence=classed(item.value, there),
            completeness=Completeness.STATE_ONLY,
            there_cluster=self._applier.source,
            there_sequence=page.cut,
            at_ms=self._clock.wall_ms(),
            why=_WHY,
        )
        return set_aside(entry, here=item.value, there=there)

    async def _put(self, one: SetAside) -> Put | None:
        """Return the put of an entry, its chunks stored; None if it was set aside before."""
        if await self._store.get(key_of(one.entry)) is not None:
            return None
        leader = self._applier.term_guard or _NOBODY
        return await Quarantine(regional=self._store, leader=leader).put_with(one)

    def _told(self, page: CopyPage, changes: Changes) -> Changes:
        if changes.kept:
            _log.warning(
                "copy.set_aside",
                group=page.group,
                source=self._applier.source,
                keys=len(changes.kept),
            )
        return changes
