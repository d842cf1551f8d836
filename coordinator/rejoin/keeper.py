"""Begins rejoins of clusters that come back superseded, and drives every one that runs.

Level-triggered: looks at what the clusters report and at what is stored, and does the next thing.
Of two looks nothing is remembered but which reports looked like a return, so a successor simply
goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import attrs
import structlog

from coordinator.failover.asking import lineage_of
from coordinator.failover.past import PastFailovers
from coordinator.mesh import Mesh, read_mesh
from coordinator.rejoin import machine
from coordinator.rejoin.record import Rejoin, RejoinPhase, rejoin_id
from coordinator.rejoin.repository import Around, LoadedRejoin, RejoinRepository
from coordinator.term import Term
from meshkit.clock import Clock
from meshkit.commands import Answer, CommandStep, Standing
from meshkit.errors import MeshError, RevisionConflict, TermEnded
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority, Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.regional import FenceMode
from meshkit.status import GroupHealth
from meshkit.store.port import Store

_log = structlog.get_logger()

LOOK_MS = 1_000
BUSY_LOOK_MS = 100
"""While a rejoin runs."""
AUTOMATION = "coordinator"

_LEFT_BEHIND = frozenset({FenceMode.OPEN.value, FenceMode.DRAINED.value, FenceMode.HELD.value})

Member = tuple[GroupName, ClusterName]


REPORTS_MIN = 3
"""So many of a cluster must say that it came back. The first was made, and the second may have been
read, before a failover that has just ended had the cluster follow; the third was begun after that.
"""


class Suspicion(NamedTuple):
    """What looks like a return: the authority it was seen under, and the reports that say so."""

    authority: Revision
    newest: Revision
    reports: int = 1


def must_rejoin(known: GroupHealth, authority: Authority) -> bool:
    """Return whether a member that is not active has to rejoin, by what it reports.

    One whose drained epoch is the parent of the present one is a source that a failover will ask
    to follow; only if none runs any more it is for a rejoin. So it is with one that is frozen: the
    failover that froze it was given up or left behind, and nobody else lets it go.
    """
    if known.ahead:
        return True
    return known.mode in _LEFT_BEHIND and known.epoch < authority.epoch


def may_begin(mesh: Mesh, cluster: ClusterName, known: LoadedRejoin | None) -> bool:
    """Return whether the present report of a cluster may begin a rejoin, given its newest one.

    That one is the answer to what was lost: it makes room for another only if that is needed.
    """
    if known is None:
        return True
    return known.record.phase.is_final and mesh.reported[cluster] > known.revision


@attrs.define(kw_only=True, eq=False)
class Keeper:
    """Keeps every superseded cluster on its way back, while a term lasts."""

    store: Store
    clock: Clock
    term: Term | None = None
    _suspected: dict[Member, Suspicion] = attrs.field(factory=dict, init=False)
    """The clusters that look superseded, while no failover of the group runs."""

    @property
    def _rejoins(self) -> RejoinRepository:
        return RejoinRepository(store=self.store, clock=self.clock, term=self.term)

    async def run(self) -> None:
        """Look again and again, until cancelled.

        Raises:
            TermEnded: another coordinator leads.
        """
        while True:
            is_busy = False
            try:
                is_busy = await self.look()
            except TermEnded:
                raise
            except MeshError as error:
                _log.warning("rejoins.delayed", why=str(error))
            await self.clock.sleep_ms(BUSY_LOOK_MS if is_busy else LOOK_MS)

    async def look(self) -> bool:
        """Do what is due once; return whether any rejoin runs and waits for nobody."""
        mesh = await read_mesh(self.store)
        stored = {(e.record.group, e.record.cluster): e for e in await self._rejoins.all_of()}
        is_paused = await self.store.get(Keys.automation_pause) is not None
        returned = () if is_paused else await self._confirmed(mesh, stored)
        for group, cluster in returned:
            await self._begin(group, cluster, mesh)
        is_busy = False
        for loaded in await self._rejoins.all_of():
            if not loaded.record.phase.is_final:
                await self._drive(loaded, mesh)
                is_busy |= loaded.record.phase is RejoinPhase.ADVANCING
        return is_busy

    async def _confirmed(self, mesh: Mesh, stored: Mapping[Member, LoadedRejoin]) -> list[Member]:
        """Return the members that came back superseded, as report after report of them says.

        That another one came says that the region is there: no wall clock does. A failover that
        runs may be about to have the cluster follow, so what is reported meanwhile says nothing;
        nor does what was reported before a rejoin of it ended.
        """
        suspected = self._suspected
        self._suspected = {}
        for group, cluster in _returned(mesh):
            if not may_begin(mesh, cluster, stored.get((group, cluster))):
                continue
            if (await self._rejoins.around(group, cluster)).failover_revision != ABSENT:
                continue
            seen = Suspicion(mesh.authorities[group].revision, mesh.reported[cluster])
            before = suspected.get((group, cluster))
            if before is not None and before.authority == seen.authority:
                is_news = before.newest < seen.newest
                seen = seen._replace(reports=before.reports + is_news)
            self._suspected[group, cluster] = seen
        return [each for each, seen in self._suspected.items() if seen.reports >= REPORTS_MIN]

    # --- beginning -----------------------------------------------------------------------------

    async def _begin(self, group: GroupName, cluster: ClusterName, mesh: Mesh) -> None:
        try:
            await self.begin(group, cluster, mesh, requested_by=AUTOMATION, reason="it came back")
        except RevisionConflict as error:
            _log.info("rejoin.not_begun", group=group, cluster=cluster, why=str(error))

    async def begin(
        self,
        group: GroupName,
        cluster: ClusterName,
        mesh: Mesh,
        *,
        requested_by: str,
        reason: str,
    ) -> LoadedRejoin | None:
        """Begin a rejoin and return it; None while a failover of the group runs.

        Raises:
            RevisionConflict: something moved meanwhile; look again.
        """
        around = await self._rejoins.around(group, cluster)
        authority = mesh.authorities[group]
        if around.failover_revision != ABSENT or around.authority_revision != authority.revision:
            return None
        now_ms = self.clock.wall_ms()
        record = Rejoin(
            id=rejoin_id(group, cluster, authority.record.epoch, now_ms),
            group=group,
            cluster=cluster,
            active=authority.record.active,
            epoch=authority.record.epoch,
            incarnation=mesh.incarnation.number,
            requested_by=requested_by,
            reason=reason,
        )
        begun = await self._rejoins.save(around, machine.begin(record, now_ms=now_ms))
        _log.info("rejoin.began", group=group, cluster=cluster, rejoin=record.id)
        return begun

    async def _lineage(self, answer: Answer, authority: Authority) -> Lineage | None:
        """Return what the first epoch that counts past the cluster's own stands on, if known.

        By what the cluster itself says of its fence; a report of it may be older than its fence.
        An epoch counts if the present one stands on it: one that never opened may lie between.
        """
        own = answer.own_epoch
        if answer.standing is not Standing.ENDED or own is None:
            return answer.stands_on
        on = authority.lineage
        if on is None or on.parent_epoch <= own:
            return on
        past = await PastFailovers(store=self.store).all_of(authority.group)
        moved = {e.record.epoch_after: e.record for e in past if e.record.authority_moved}
        while on is not None and on.parent_epoch > own:
            before = moved.get(on.parent_epoch)
            on = lineage_of(before) if before is not None else None
        return on

    async def _answered(self, answer: Answer, authority: Authority) -> machine.Answered:
        is_first = answer.step is CommandStep.FENCE
        lineage = await self._lineage(answer, authority) if is_first else None
        return machine.Answered(answer=answer, lineage=lineage)

    # --- driving -------------------------------------------------------------------------------

    async def _drive(self, loaded: LoadedRejoin, mesh: Mesh) -> None:
        record = loaded.record
        try:
            around = await self._rejoins.around(record.group, record.cluster)
            if around.rejoin is None or around.rejoin.revision != loaded.revision:
                return
            event = await self._event(record, around, mesh)
            if event is None:
                return
            after = machine.advance(record, event, now_ms=self.clock.wall_ms())
            if after is record or (around.involves and machine.command_to_put(after)):
                return
            stored = (await self._rejoins.save(around, after)).record
        except RevisionConflict as error:
            _log.info("rejoin.overtaken", rejoin=record.id, why=str(error))
            return
        log = _log.bind(rejoin=record.id, group=record.group, cluster=record.cluster)
        log.info("rejoin.went_on", step=stored.step.name, phase=stored.phase.value)
        if stored.problem is not None:
            log.warning("rejoin.has_problem", happened=stored.problem.happened)

    async def _event(self, record: Rejoin, around: Around, mesh: Mesh) -> machine.Event | None:
        """Return what happened to a rejoin, or nothing."""
        moved = _moved(record, mesh)
        if moved:
            return machine.Moved(why=moved)
        if record.awaiting is None:
            return None
        if around.answer is not None and around.answer.token == machine.token_of(record):
            return await self._answered(around.answer, mesh.authorities[record.group].record)
        if around.command_revision != record.awaiting:
            return machine.Overtaken(awaiting=record.awaiting)
        if machine.is_overdue(record, now_ms=self.clock.wall_ms()):
            return machine.TimedOut(awaiting=record.awaiting)
        return None


def _returned(mesh: Mesh) -> Iterator[Member]:
    """Yield every group and member that came back superseded, by its report."""
    for group, seen in mesh.groups.items():
        authority = mesh.authorities.get(group)
        if authority is None or group in mesh.sealed:
            continue
        for member in seen.record.members:
            health = mesh.health.get(member)
            known = health.groups.get(group) if health else None
            is_passive = member != authority.record.active
            if is_passive and known is not None and must_rejoin(known, authority.record):
                yield group, member


def _moved(record: Rejoin, mesh: Mesh) -> str:
    """Return in what way authority is not what a rejoin was begun on, or nothing."""
    seen = mesh.authorities.get(record.group)
    group = mesh.groups.get(record.group)
    if seen is None or group is None or record.cluster not in group.record.members:
        return f"{record.cluster} is no member of {record.group} any more"
    if (seen.record.epoch, seen.record.active) != (record.epoch, record.active):
        return f"{seen.record.active} is active in epoch {seen.record.epoch} by now"
    if mesh.incarnation.number != record.incarnation:
        return "the coordination etcd was adopted anew"
    return ""
