"""Automatic failovers in the coordination etcd: what is known of each group, and what is stored.

Everything that a decision goes by is read, and compared again in the transaction that acts on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from coordinator.automatic.facts import Known
from coordinator.automatic.record import AutomaticRecord
from coordinator.failover.record import ActiveFailover, Failover
from coordinator.failover.repository import loaded_of
from coordinator.governance.audit import Act, appending, tip_of, tip_read
from coordinator.mesh import read_at_once
from coordinator.rejoin.record import Rejoin
from coordinator.rejoin.repository import loaded_of as rejoin_of
from coordinator.term import Term, commit_under
from meshkit.clock import Clock
from meshkit.codec import decode, encode
from meshkit.errors import OutcomeUnknown, RevisionConflict
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.store.port import Commits, Store
from meshkit.store.txn import Committed, Get, KeyValue, ModRevisionIs, Put, Txn, prefix_range

GROUPS_AT_ONCE = 20
"""Read in one transaction; each takes several reads."""


@attrs.define(kw_only=True, eq=False)
class AutomaticRepository:
    """Reads and stores; with a `term`, only while it lasts."""

    store: Store
    clock: Clock
    term: Term | None = None
    commits: Commits = attrs.field()
    """What is stored through it may go together with what others store."""
    _latest: dict[bytes, tuple[Revision, Failover]] = attrs.field(factory=dict, init=False)

    @commits.default
    def _own_commits(self) -> Commits:
        return self.store

    async def known(self, groups: Sequence[GroupName]) -> dict[GroupName, Known]:
        """Return what is known of each of these groups."""
        found: dict[GroupName, Known] = {}
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            some = groups[start : start + GROUPS_AT_ONCE]
            gets = [get for group in some for get in _gets(group)]
            _, reads = await read_at_once(self.store, tuple(gets))
            size = len(reads) // len(some)
            parts = {group: reads[n * size : (n + 1) * size] for n, group in enumerate(some)}
            newest = {group: _newest(part[_RECORDS]) for group, part in parts.items()}
            await self._load([item for item in newest.values() if item is not None])
            for group, part in parts.items():
                found[group] = self._known(group, part, newest[group])
        return found

    async def rejoins(self) -> tuple[Rejoin, ...]:
        """Return the newest rejoin of every group and cluster."""
        result = await self.store.range(prefix_range(Keys.rejoins))
        return tuple(rejoin_of(item).record for item in result.items)

    async def save(
        self, known: Known, after: AutomaticRecord, *, acts: Sequence[Act]
    ) -> AutomaticRecord:
        """Store `after` over what is known, with what the audit says of it.

        Raises:
            TermEnded: another coordinator leads.
            RevisionConflict: it moved, or something else was entered into the group's audit.
            OutcomeUnknown: it may have been stored; to be looked at again.
        """
        key = Keys.automatic(after.group)
        audit = appending(after.group, known.tip, acts, now_ms=self.clock.wall_ms())
        guards = (ModRevisionIs(key, known.record_revision), audit.guard)
        txn = Txn(guards=guards, operations=(Put(key, encode(after)), *audit.puts))
        outcome = await commit_under(self.term, self.commits, txn)
        if not isinstance(outcome, Committed):
            raise RevisionConflict(f"group {after.group} moved on")
        return after

    async def acknowledge(
        self, known: Known, after: AutomaticRecord, *, act: Act
    ) -> AutomaticRecord | None:
        """Store an acknowledgement; None if something moved, so that one has to look again."""
        try:
            return await self.save(known, after, acts=[act])
        except (RevisionConflict, OutcomeUnknown):
            item = await self.store.get(Keys.automatic(after.group))
            is_ours = item is not None and item.value == encode(after)
            return after if is_ours else None

    async def _load(self, items: Sequence[KeyValue]) -> None:
        """Read the records that are not known as they are now."""
        wanted = [
            item
            for item in items
            if item.key not in self._latest or self._latest[item.key][0] != item.mod_revision
        ]
        if not wanted:
            return
        _, reads = await read_at_once(self.store, tuple(Get(item.key) for item in wanted))
        for found in reads:
            for item in found:
                self._latest[item.key] = (item.mod_revision, loaded_of(item).record)

    def _known(
        self, group: GroupName, part: Sequence[Sequence[KeyValue]], newest: KeyValue | None
    ) -> Known:
        own, active, holder, tip, records = part
        for item in records:
            if newest is None or item.key != newest.key:
                self._latest.pop(item.key, None)
        latest = self._latest.get(newest.key) if newest is not None else None
        return Known(
            group=group,
            record=decode(AutomaticRecord, own[0].value) if own else AutomaticRecord(group=group),
            record_revision=own[0].mod_revision if own else ABSENT,
            running=decode(ActiveFailover, active[0].value).id if active else None,
            latest=latest[1] if latest else None,
            holder=bool(holder),
            tip=tip_of(tip),
        )


_RECORDS = 4


def _gets(group: GroupName) -> tuple[Get, ...]:
    return (
        Get(Keys.automatic(group)),
        Get(Keys.failover_active(group)),
        Get(Keys.holder(group)),
        tip_read(group),
        Get(*prefix_range(Keys.failover_records(group)), keys_only=True),
    )


def _newest(records: Sequence[KeyValue]) -> KeyValue | None:
    return max(records, key=lambda item: item.mod_revision, default=None)
