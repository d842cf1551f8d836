"""Counts what lies in the region's quarantine, anew whenever it changed.

Counted page by page, so that memory does not grow with it; at most so often, however fast it
changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from meshkit.errors import Compacted, MeshError
from meshkit.keys import RegionalKeys, parts_below
from meshkit.model import Group
from meshkit.names import GroupName
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges
from meshkit.store.txn import prefix_range
from replicator.agent_ports import Region
from replicator.quarantine import Quarantine
from replicator.together import together

_log = structlog.get_logger()

COUNT_INTERVAL_MS = 1_000
RETRY_MS = 500


class QuarantineCount:
    """How many entries wait in each group's quarantine here, by class."""

    def __init__(self, region: Region, member_groups: Callable[[], Iterable[Group]]) -> None:
        self.region = region
        self._member_groups = member_groups
        self._counts: dict[GroupName, Mapping[str, int]] = {}
        self._due: set[GroupName] = set()
        self._changed = asyncio.Event()

    def of(self, group: GroupName) -> Mapping[str, int]:
        """Return what was counted last, by class; nothing while the quarantine is empty."""
        return self._counts.get(group, {})

    async def run(self) -> None:
        """Count until cancelled; survives the store's absence."""
        await together(self._watch(), self._count())

    async def _watch(self) -> None:
        whole = prefix_range(RegionalKeys.quarantines)
        while True:
            try:
                seen = (await self.region.regional.range(whole, limit=1, keys_only=True)).revision
                self._note({group.name for group in self._member_groups()})
                start = Revision(seen + 1)
                async with self.region.regional.watch(whole, start=start) as items:
                    async for item in items:
                        if isinstance(item, RevisionChanges):
                            self._note(_groups_in(item))
            except Compacted as error:
                _log.info("quarantine_watch.began_anew", why=str(error))
            except MeshError as error:
                _log.warning("quarantine_watch.interrupted", why=str(error))
                await self.region.clock.sleep_ms(RETRY_MS)

    def _note(self, groups: Iterable[GroupName]) -> None:
        self._due.update(groups)
        self._changed.set()

    async def _count(self) -> None:
        quarantine = Quarantine(regional=self.region.regional, leader=self.region.leader)
        while True:
            await self._changed.wait()
            self._changed.clear()
            due, self._due = self._due, set()
            for group in sorted(due):
                try:
                    counts = await quarantine.counts(group)
                except MeshError as error:
                    _log.warning("quarantine.not_counted", group=group, why=str(error))
                    self._note({group})
                else:
                    self._counts[group] = {k.value: n for k, n in counts.waiting.items()}
            await self.region.clock.sleep_ms(COUNT_INTERVAL_MS)


def _groups_in(item: RevisionChanges) -> set[GroupName]:
    found = set()
    for change in item.changes:
        parts = parts_below(RegionalKeys.quarantines, change.key)
        if parts is not None:
            found.add(GroupName(parts[0]))
    return found
