"""Rejoins in the coordination etcd: one record for each group and cluster, the newest.

A transition is one transaction: the record under its own mod revision, the command that is due,
and the audit. It also compares that no failover has begun or ended for the group since it was
looked at, so that no command of a failover is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from coordinator.failover.record import ActiveFailover
from coordinator.failover.repository import FailoverRepository
from coordinator.governance.audit import Act, appending, tip_of, tip_read
from coordinator.mesh import read_at_once
from coordinator.rejoin.machine import command_to_put
from coordinator.rejoin.record import Rejoin, RejoinPhase, with_revision
from coordinator.term import Term, commit_under
from meshkit.clock import Clock
from meshkit.codec import decode, encode
from meshkit.commands import Answer
from meshkit.errors import OutcomeUnknown, RevisionConflict
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.store.port import Store
from meshkit.store.txn import (
    Committed,
    Get,
    Guard,
    KeyValue,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
    prefix_range,
)

ATTEMPTS_MAX = 5
"""How often one transition is tried while only the audit's tip moved under it."""


@attrs.frozen(kw_only=True)
class LoadedRejoin:
    """A record as stored at `revision`, with its command's token filled in."""

    record: Rejoin
    revision: Revision


@attrs.frozen(kw_only=True)
class Around:
    """What a rejoin depends on, read at one revision."""

    rejoin: LoadedRejoin | None
    answer: Answer | None
    command_revision: Revision
    """Of the newest command to the cluster for the group, whoever put it."""
    failover_revision: Revision
    """Of the key that names the group's running failover."""
    authority_revision: Revision
    involves: bool
    """Whether a running failover asks the cluster something."""


@attrs.define(kw_only=True, eq=False)
class RejoinRepository:
    """Loads and stores rejoins; with a `term`, only while it lasts."""

    store: Store
    clock: Clock
    term: Term | None = None

    async def all_of(self, group: GroupName | None = None) -> list[LoadedRejoin]:
        """Return the rejoins of a group, or all."""
        prefix = Keys.rejoins if group is None else Keys.rejoin(group, ClusterName(""))
        found = await self.store.range(prefix_range(prefix))
        return [loaded_of(item) for item in found.items]

    async def around(self, group: GroupName, cluster: ClusterName) -> Around:
        """Return a rejoin with what it depends on."""
        gets = (
            Get(Keys.rejoin(group, cluster)),
            Get(Keys.answer(cluster, group)),
            Get(Keys.command(cluster, group)),
            Get(Keys.failover_active(group)),
            Get(Keys.authority(group)),
        )
        _, (own, answer, command, active, authority) = await read_at_once(self.store, gets)
        return Around(
            rejoin=loaded_of(own[0]) if own else None,
            answer=decode(Answer, answer[0].value) if answer else None,
            command_revision=command[0].mod_revision if command else ABSENT,
            failover_revision=active[0].mod_revision if active else ABSENT,
            authority_revision=authority[0].mod_revision if authority else ABSENT,
            involves=await self._involves(group, cluster, active),
        )

    async def _involves(
        self, group: GroupName, cluster: ClusterName, active: Sequence[KeyValue]
    ) -> bool:
        if not active:
            return False
        failovers = FailoverRepository(store=self.store, clock=self.clock)
        loaded = await failovers.load(group, decode(ActiveFailover, active[0].value).id)
        return loaded is not None and cluster in {loaded.record.source, loaded.record.target}

    async def save(
        self, around: Around, after: Rejoin, *, acts: Sequence[Act] = ()
    ) -> LoadedRejoin:
        """Store `after` over what was read, with the command that is due.

        Raises:
            TermEnded: another coordinator leads.
            RevisionConflict: something it depends on moved: look again.
        """
        before = around.rejoin
        after = attrs.evolve(after, transitions=after.transitions + 1)
        key = Keys.rejoin(after.group, after.cluster)
        guards: list[Guard] = [
            ModRevisionIs(key, before.revision if before else ABSENT),
            ModRevisionIs(Keys.failover_active(after.group), around.failover_revision),
            ModRevisionIs(Keys.authority(after.group), around.authority_revision),
        ]
        operations: list[Operation] = [Put(key, encode(after))]
        command = command_to_put(after)
        if command is not None:
            command_key = Keys.command(after.cluster, after.group)
            guards.append(ModRevisionIs(command_key, around.command_revision))
            operations.append(Put(command_key, encode(command)))
        every = (*acts, *_acts(before.record if before else None, after))
        for _ in range(ATTEMPTS_MAX):
            _, reads = await read_at_once(self.store, (tip_read(after.group),))
            audit = appending(after.group, tip_of(reads[0]), every, now_ms=self.clock.wall_ms())
            txn = Txn(
                guards=(*guards, audit.guard) if every else tuple(guards),
                operations=(*operations, *audit.puts) if every else tuple(operations),
            )
            try:
                outcome = await commit_under(self.term, self.store, txn)
            except OutcomeUnknown:
                settled = await self._read_back(after)
                if settled is not None:
                    return settled
                raise
            if isinstance(outcome, Committed):
                stored = with_revision(after, outcome.revision)
                return LoadedRejoin(record=stored, revision=outcome.revision)
            if set(outcome.broken) != {audit.guard}:
                raise RevisionConflict(f"rejoin {after.id}, or what it stands on, moved")
        raise RevisionConflict(f"rejoin {after.id} could not be stored: its group is too busy")

    async def _read_back(self, after: Rejoin) -> LoadedRejoin | None:
        item = await self.store.get(Keys.rejoin(after.group, after.cluster))
        is_ours = item is not None and item.value == encode(after)
        return loaded_of(item) if item is not None and is_ours else None


def loaded_of(item: KeyValue) -> LoadedRejoin:
    """Return a stored record with the revision it was read at."""
    record = with_revision(decode(Rejoin, item.value), item.mod_revision)
    return LoadedRejoin(record=record, revision=item.mod_revision)


def _acts(before: Rejoin | None, after: Rejoin) -> tuple[Act, ...]:
    """Return what the audit has to say about a transition."""
    facts = {
        "rejoin": after.id,
        "cluster": after.cluster,
        "active": after.active,
        "epoch": after.epoch,
    }
    acts: list[Act] = []
    if before is None or before.id != after.id:
        began = {**facts, "reason": after.reason}
        acts.append(Act(actor=after.requested_by, action="rejoin.began", facts=began))
        before = None
    if after.completeness and (before is None or before.diverged != after.diverged):
        found = {**facts, "diverged": dict(after.diverged), "completeness": after.completeness}
        acts.append(Act(actor="coordinator", action="rejoin.diverged", facts=found))
    if before is not None and before.phase is not after.phase:
        is_worth = after.phase is not RejoinPhase.ADVANCING
        why = after.problem.happened if after.problem else ""
        action = f"rejoin.{after.phase.value}"
        if is_worth:
            acts.append(Act(actor="coordinator", action=action, facts={**facts, "why": why}))
    return tuple(acts)
