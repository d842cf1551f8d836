"""Failovers by their history: the latest, the last that succeeded; the oldest are forgotten.

Records are found by their revisions alone, which come without their values; so what is not needed
is not read, however many there are.
"""

from __future__ import annotations

import attrs
import structlog

from coordinator.failover.record import ActiveFailover, Failover, FailoverEvent, Phase
from coordinator.failover.repository import Loaded, loaded_of
from coordinator.mesh import read_at_once
from coordinator.term import Term, commit_under
from meshkit.codec import decode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import last_part
from meshkit.names import FailoverId, GroupName
from meshkit.store.port import Commits, Store
from meshkit.store.txn import (
    Committed,
    Delete,
    Get,
    KeyValue,
    ModRevisionIs,
    Operation,
    Txn,
    prefix_range,
)

_log = structlog.get_logger()

ENDED_MAX = 100
"""How many failovers of a group are kept once they have ended."""

FORGOTTEN_AT_ONCE = 20
"""In one transaction."""

READ_AT_ONCE = 10


@attrs.frozen(kw_only=True)
class PastFailovers:
    """The failovers of groups in the order of time; with a `term`, forgets only while it lasts."""

    store: Store
    term: Term | None = None
    commits: Commits = attrs.field()
    """What reads go through that many may share."""

    @commits.default
    def _own_commits(self) -> Commits:
        return self.store

    async def all_of(self, group: GroupName) -> list[Loaded]:
        """Return every failover of a group that is kept, newest first."""
        result = await self.store.range(prefix_range(Keys.failover_records(group)))
        newest_first = sorted(result.items, key=_began, reverse=True)
        return [loaded_of(item) for item in newest_first]

    async def latest(self, group: GroupName) -> Loaded | None:
        """Return the failover of a group that began last, or None."""
        found = await self.store.range(prefix_range(Keys.failover_records(group)), keys_only=True)
        if not found.items:
            return None
        item = await self.store.get(max(found.items, key=_began).key)
        return loaded_of(item) if item else None

    async def last_succeeded(self, group: GroupName) -> Loaded | None:
        """Return the failover of a group that was the last to succeed, or None."""
        records = Get(*prefix_range(Keys.failover_records(group)), keys_only=True)
        _, (found,) = await read_at_once(self.commits, (records,))
        keys = [item.key for item in sorted(found, key=_changed, reverse=True)]
        for start in range(0, len(keys), READ_AT_ONCE):
            gets = tuple(Get(key) for key in keys[start : start + READ_AT_ONCE])
            _, reads = await read_at_once(self.commits, gets)
            for items in reads:
                if items and decode(Failover, items[0].value).phase is Phase.SUCCEEDED:
                    return loaded_of(items[0])
        return None

    async def events(self, record: Failover) -> list[FailoverEvent]:
        """Return every transition of a failover, oldest first."""
        result = await self.store.range(prefix_range(Keys.failover_events(record.group, record.id)))
        return [decode(FailoverEvent, item.value) for item in result.items]

    async def forget_oldest(self, group: GroupName) -> int:
        """Delete what ended before the newest `ENDED_MAX`, with its events; return how many.

        Never one that runs, nor the last that succeeded: the cool-down counts from it.

        Raises:
            TermEnded: another coordinator leads.
        """
        prefix = prefix_range(Keys.failover_records(group))
        gets = (Get(*prefix, keys_only=True), Get(Keys.failover_active(group)))
        _, (records, active) = await read_at_once(self.commits, gets)
        running = decode(ActiveFailover, active[0].value).id if active else ""
        ended = [each for each in sorted(records, key=_began) if last_part(each.key) != running]
        excess = ended[: max(0, len(ended) - ENDED_MAX)]
        if not excess:
            return 0
        kept = await self.last_succeeded(group)
        excess = [each for each in excess if kept is None or last_part(each.key) != kept.record.id]
        for start in range(0, len(excess), FORGOTTEN_AT_ONCE):
            txn = _forgetting(group, excess[start : start + FORGOTTEN_AT_ONCE])
            outcome = await commit_under(self.term, self.store, txn)
            if not isinstance(outcome, Committed):
                return start
        if excess:
            _log.info("failovers.forgotten", group=group, count=len(excess))
        return len(excess)


def _forgetting(group: GroupName, records: list[KeyValue]) -> Txn:
    """Return what deletes these records as they were seen, each with its events."""
    operations: list[Operation] = []
    for item in records:
        events = Keys.failover_events(group, FailoverId(last_part(item.key)))
        operations += [Delete(item.key), Delete(*prefix_range(events))]
    guards = tuple(ModRevisionIs(item.key, item.mod_revision) for item in records)
    return Txn(guards=guards, operations=tuple(operations))


def _began(item: KeyValue) -> int:
    return item.create_revision


def _changed(item: KeyValue) -> int:
    return item.mod_revision
