"""Failover records in the coordination etcd: loading them, and storing transitions.

Each transition is one transaction: the record under its own mod revision, its event, the command
that is due, the audit, and at the pivot authority and routing. A leader's transactions also
compare its term. So two coordinators never both store a successor of one record, and whatever was
lost on the way is settled by reading the record back.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from coordinator.failover.record import ActiveFailover, Failover, FailoverEvent, with_revision
from coordinator.failover.transition import (
    AuthorityMovedElsewhere,
    Beside,
    Loaded,
    Superseding,
    Surroundings,
    acts_of,
    transition,
)
from coordinator.governance.audit import Act, Appending, Tip, appending, tip_of, tip_read
from coordinator.mesh import read_at_once
from coordinator.term import Term, commit_under
from meshkit.clock import Clock
from meshkit.codec import decode, encode
from meshkit.errors import Conflict, MeshError, OutcomeUnknown, RevisionConflict
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import FailoverId, GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.store.port import Commits, Store
from meshkit.store.shape import guard_range
from meshkit.store.txn import (
    Committed,
    Get,
    KeyValue,
    Rejected,
    Txn,
)

__all__ = [
    "AuthorityMovedElsewhere",
    "Beside",
    "FailoverRepository",
    "FailoverRunning",
    "Loaded",
    "Superseding",
    "loaded_of",
]

ATTEMPTS_MAX = 8
"""How often one transition is tried while only the audit's tip or the routing moved under it."""

RETRY_MS = 200
NOTHING_AROUND = Surroundings(tip=Tip(), authority=None, routing=None)
"""For a transition that neither moves authority nor has anything to say to the audit."""

GETS_MAX = 100
"""Reads in one transaction; below etcd's limit of 128."""


@attrs.define(kw_only=True, eq=False)
class FailoverRepository:
    """Loads and stores failovers; with a `term`, only while it lasts."""

    store: Store
    clock: Clock
    term: Term | None = None
    commits: Commits = attrs.field()
    """What transitions are stored through; perhaps shared, so that many go together."""
    _around: dict[GroupName, Surroundings] = attrs.field(factory=dict, init=False)

    @commits.default
    def _own_commits(self) -> Commits:
        return self.store

    # --- reading -------------------------------------------------------------------------------

    async def load(self, group: GroupName, failover: FailoverId) -> Loaded | None:
        """Return a failover of a group, or None."""
        _, (found,) = await read_at_once(self.commits, (Get(Keys.failover(group, failover)),))
        return loaded_of(found[0]) if found else None

    async def find_active(self, group: GroupName) -> Loaded | None:
        """Return the failover that runs for the group, or None."""
        _, (active,) = await read_at_once(self.commits, (Get(Keys.failover_active(group)),))
        if not active:
            return None
        return await self.load(group, decode(ActiveFailover, active[0].value).id)

    async def find_all_active(self, groups: Sequence[GroupName]) -> dict[GroupName, FailoverId]:
        """Return the ids of all failovers that run, by group."""
        found: dict[GroupName, FailoverId] = {}
        keys = {Keys.failover_active(group): group for group in groups}
        for item in await self._get_many(list(keys)):
            found[keys[item.key]] = decode(ActiveFailover, item.value).id
        return found

    async def find(self, failover: FailoverId, groups: Sequence[GroupName]) -> Loaded | None:
        """Return a failover of any of `groups`, or None."""
        items = await self._get_many([Keys.failover(group, failover) for group in groups])
        return loaded_of(items[0]) if items else None

    async def _get_many(self, keys: Sequence[bytes]) -> list[KeyValue]:
        found: list[KeyValue] = []
        for start in range(0, len(keys), GETS_MAX):
            gets = tuple(Get(key) for key in keys[start : start + GETS_MAX])
            _, reads = await read_at_once(self.store, gets)
            found += [item for items in reads for item in items]
        return found

    # --- writing -------------------------------------------------------------------------------

    async def begin(
        self,
        record: Failover,
        *,
        acts: Sequence[Act] = (),
        superseding: Superseding | None = None,
        beside: Beside | None = None,
        what: str = "began",
    ) -> Loaded:
        """Store a new failover as the one that runs for its group, or in place of the one that did.

        Raises:
            Conflict: another one runs, or authority is not what `authority_revision` says.
            RevisionConflict: what `beside` compares moved.
        """
        nothing = Loaded(record=attrs.evolve(record, transitions=0), revision=ABSENT)
        if superseding is None:
            return await self._store(nothing, record, what=what, acts=acts, beside=beside)
        before = superseding.before
        ended = attrs.evolve(superseding.ended, transitions=before.record.transitions + 1)
        superseding = Superseding(before=before, ended=ended)
        all_acts = [*acts, *acts_of(before, ended)]
        return await self._store(
            nothing, record, what="began", acts=all_acts, superseding=superseding
        )

    async def save(
        self, before: Loaded, after: Failover, *, what: str, acts: Sequence[Act] = ()
    ) -> Loaded:
        """Store `after` over `before`, moving authority if it crosses the pivot.

        Raises:
            TermEnded: another coordinator leads.
            RevisionConflict: the record moved under us: load it again.
            AuthorityMovedElsewhere: the pivot is not possible any more.
        """
        return await self._store(before, after, what=what, acts=(*acts, *acts_of(before, after)))

    async def append_audit(self, group: GroupName, act: Act) -> None:
        """Enter an act that changes nothing else, such as a refusal."""
        for _ in range(ATTEMPTS_MAX):
            item = await self.store.get(Keys.audit_tip(group))
            entry = appending(
                group, tip_of([item] if item else []), [act], now_ms=self.clock.wall_ms()
            )
            outcome = await self.store.commit(Txn(guards=(entry.guard,), operations=entry.puts))
            if isinstance(outcome, Committed):
                return
        raise RevisionConflict(f"the audit of group {group} moves too fast")

    async def _store(
        self,
        before: Loaded,
        after: Failover,
        *,
        what: str,
        acts: Sequence[Act],
        superseding: Superseding | None = None,
        beside: Beside | None = None,
    ) -> Loaded:
        after = attrs.evolve(after, transitions=before.record.transitions + 1)
        group, now_ms = after.group, self.clock.wall_ms()
        event = FailoverEvent(number=after.transitions, at_ms=now_ms, what=what, record=after)
        for _ in range(ATTEMPTS_MAX):
            around = await self._surroundings(before, after, is_audited=bool(acts))
            audit = appending(group, around.tip, acts, now_ms=now_ms) if acts else None
            txn = transition(
                before,
                after,
                around,
                what=what,
                audit=audit,
                now_ms=now_ms,
                superseding=superseding,
                beside=beside,
            )
            try:
                outcome = await commit_under(self.term, self.commits, txn)
            except OutcomeUnknown:
                settled = await self._read_back(event)
                self._around.pop(group, None)
                if settled is not None:
                    return settled
                continue
            if isinstance(outcome, Committed):
                self._keep(group, around, audit, outcome.revision, before=before, after=after)
                stored = with_revision(after, outcome.revision)
                return Loaded(record=stored, revision=outcome.revision)
            self._around.pop(group, None)
            settled = await self._explain(event, outcome)
            if settled is not None:
                return settled
            if beside is not None and set(outcome.broken) & set(beside.guards):
                raise RevisionConflict(f"what failover {after.id} was to begin on has moved")
        raise RevisionConflict(f"failover {after.id} could not be stored: its group is too busy")

    async def _explain(self, event: FailoverEvent, outcome: Rejected) -> Loaded | None:
        """Return the stored transition if it was ours after all; None to try once more."""
        broken = {guard_range(guard)[0] for guard in outcome.broken}
        after, group = event.record, event.record.group
        if Keys.failover(group, after.id) in broken:
            settled = await self._read_back(event)
            if settled is None:
                raise RevisionConflict(f"failover {after.id} moved under us")
            return settled
        if Keys.failover_active(group) in broken:
            other = await self.find_active(group)
            which = other.record.id if other else "one that has just ended"
            raise FailoverRunning(group, which)
        if Keys.holder(group) in broken:
            raise AuthorityMovedElsewhere(
                f"{after.source} is not fenced: its proof of life is there"
            )
        if broken & {Keys.authority(group), Keys.seal(group)}:
            raise AuthorityMovedElsewhere(f"the authority of group {group} changed meanwhile")
        if any(key.startswith(Keys.failover_records(group)) for key in broken):
            raise RevisionConflict(f"the failover of group {group} to be superseded moved on")
        return None

    async def _read_back(self, event: FailoverEvent) -> Loaded | None:
        """Return our transition if it was stored; waits for the etcd to be there again.

        Its event tells, because it stays when others have gone on from our record meanwhile. If it
        is not there, storing it once more is safe: of two transactions that compare the same
        revision at most one is applied, however late it arrives.
        """
        raw, after = encode(event), event.record
        while True:
            try:
                key = Keys.failover_event(after.group, after.id, event.number)
                item = await self.store.get(key)
            except MeshError:
                await self.clock.sleep_ms(RETRY_MS)
                continue
            if item is None or item.value != raw:
                return None
            stored = with_revision(after, item.mod_revision)
            return Loaded(record=stored, revision=item.mod_revision)

    async def _surroundings(
        self, before: Loaded, after: Failover, *, is_audited: bool
    ) -> Surroundings:
        """Return what this transition writes beside the record; most need nothing of it."""
        kept = self._around.get(after.group)
        moves = after.authority_moved and not before.record.authority_moved
        if moves and (kept is None or not kept.shows(after.authority_revision)):
            return await self._read_surroundings(after.group)
        if kept is None and is_audited:
            return await self._read_surroundings(after.group)
        return kept or NOTHING_AROUND

    async def _read_surroundings(self, group: GroupName) -> Surroundings:
        gets = (tip_read(group), Get(Keys.authority(group)), Get(Keys.routing(group)))
        _, (tip, authority, routing) = await read_at_once(self.commits, gets)
        return Surroundings(
            tip=tip_of(tip),
            authority=authority[0] if authority else None,
            routing=routing[0] if routing else None,
        )

    def _keep(
        self,
        group: GroupName,
        around: Surroundings,
        audit: Appending | None,
        revision: Revision,
        *,
        before: Loaded,
        after: Failover,
    ) -> None:
        """Remember the tip we have just written; from the pivot on nothing else is needed."""
        if after.phase.is_final:
            self._around.pop(group, None)
        elif audit is not None:
            tip = Tip(tip=audit.tip, revision=revision)
            kept = NOTHING_AROUND if after.authority_moved else around
            self._around[group] = attrs.evolve(kept, tip=tip)
        elif around is not NOTHING_AROUND:
            self._around[group] = around


class FailoverRunning(Conflict):
    """Another failover of the group is running; there is one at a time."""

    def __init__(self, group: GroupName, failover: str) -> None:
        super().__init__(
            f"another failover of group {group} is running: {failover}",
            hint=f"mesh failovers watch {failover}",
        )
        self.failover_id = failover


def loaded_of(item: KeyValue) -> Loaded:
    """Return a stored record with the revision it was read at."""
    record = with_revision(decode(Failover, item.value), item.mod_revision)
    return Loaded(record=record, revision=item.mod_revision)
