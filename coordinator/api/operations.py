"""What the API does, without HTTP: reads, and changes that are single guarded transactions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from coordinator.api import beginning, rescuing, views
from coordinator.api.automating import Automating
from coordinator.api.bodies import FailoverRequest, cluster_of, group_of
from coordinator.api.problems import ChecksFailed
from coordinator.api.rescuing import Rescuing
from coordinator.api.steering import Steering
from coordinator.api.stream_views import streams_view
from coordinator.assess import Assessor, MeshReads
from coordinator.automatic.policy import check_policy
from coordinator.failover.past import PastFailovers
from coordinator.failover.record import Failover, FailoverKind
from coordinator.failover.repository import FailoverRepository, FailoverRunning, Loaded, Superseding
from coordinator.governance.audit import MESH_AUDIT, Act, tip_of, tip_read, verify
from coordinator.governance.preflight import Preview, Situation, preview, reports_late
from coordinator.governance.rescue_checks import rescue_preview
from coordinator.mesh import Mesh, read_at_once, read_mesh
from coordinator.registry import Registry
from fencing.timing import Timing
from meshkit.clock import Clock
from meshkit.errors import Conflict, RevisionConflict
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import ABSENT
from meshkit.peer import PeerIdentity
from meshkit.store.port import Commits, Store
from meshkit.store.txn import Get, prefix_range

Json = dict[str, Any]

AUDIT_ENTRIES_MAX = 500

REPORT_PATIENCE_MS = 2_000
"""How long a failover's beginning waits for the target to report about the present epoch."""
REPORT_AGAIN_MS = 100


@attrs.frozen(kw_only=True)
class Done:
    """A change that was made, or was not needed."""

    body: Json
    is_begun: bool = False
    """Whether something goes on after the answer."""


@attrs.define(kw_only=True, eq=False)
class Operations:
    """The operations of the API on one coordination etcd."""

    store: Store
    clock: Clock
    coordination_ttl_ms: int = Timing().coordination_ttl_ms
    """Of the regions' leases: no automatic failover can know sooner that writes have stopped."""
    commits: Commits = attrs.field()
    """What failovers are stored through; perhaps shared, so that many begin together."""
    _reads: MeshReads = attrs.field(init=False)

    @commits.default
    def _own_commits(self) -> Commits:
        return self.store

    @_reads.default
    def _reads_of_the_store(self) -> MeshReads:
        return MeshReads.of(self.store, self.clock)

    # --- reading -------------------------------------------------------------------------------

    async def clusters(self) -> Json:
        """Return every cluster."""
        mesh, now_ms = await read_mesh(self.store), self.clock.wall_ms()
        names = sorted(mesh.clusters)
        return {
            "clusters": [views.cluster_view(name, mesh, now_ms=now_ms) for name in names],
            "automation": views.automation_view(mesh.automation),
        }

    async def cluster(self, name: ClusterName) -> Json:
        """Return one cluster."""
        mesh = await read_mesh(self.store)
        return views.cluster_view(name, mesh, now_ms=self.clock.wall_ms())

    async def groups(self) -> Json:
        """Return every group in one line each."""
        mesh = await read_mesh(self.store)
        failovers = self._failovers()
        active = await failovers.find_all_active(list(mesh.groups))
        summaries = []
        for name, seen in sorted(mesh.groups.items()):
            loaded = await failovers.load(name, active[name]) if name in active else None
            running = loaded.record if loaded else None
            summaries.append(views.group_summary(seen.record, mesh, running))
        return {"groups": summaries, "automation": views.automation_view(mesh.automation)}

    async def group(self, name: GroupName) -> Json:
        """Return one group on one screen, with what a promotion of each member would mean."""
        mesh = await read_mesh(self.store)
        group = mesh.group(name)
        failovers = self._failovers()
        running = await failovers.find_active(name)
        latest = await self._past().latest(name)
        previews: dict[ClusterName, Preview] = {}
        seen = mesh.authorities.get(name)
        for member in group.members if seen else ():
            if seen and member != seen.record.active and member in mesh.clusters:
                situation = await self._assessor(failovers).situation(name, member, mesh=mesh)
                previews[member] = preview(situation)
        shown = views.group_view(
            group,
            mesh,
            running=running.record if running else None,
            last=views.failover_view(latest.record, latest.revision) if latest else None,
            previews=previews,
            now_ms=self.clock.wall_ms(),
        )
        return {**shown, "automatic": await self.automatic.standing(group, mesh)}

    @property
    def automatic(self) -> Automating:
        """What policies begin by themselves."""
        return Automating(
            store=self.store, clock=self.clock, coordination_ttl_ms=self.coordination_ttl_ms
        )

    async def failovers(self, group: GroupName | None) -> Json:
        """Return the failovers of a group, or of all, newest first."""
        mesh = await read_mesh(self.store)
        if group is not None:
            mesh.group(group)
        loaded = [
            each
            for name in ([group] if group else sorted(mesh.groups))
            for each in await self._past().all_of(name)
        ]
        loaded.sort(key=lambda each: each.record.began_ms, reverse=True)
        return {
            "failovers": [views.failover_view(e.record, e.revision) for e in loaded],
            "automation": views.automation_view(mesh.automation),
        }

    async def failover(self, failover: FailoverId) -> Loaded:
        """Return one failover.

        Raises:
            NotFound: there is none of that id.
        """
        return await self.steering.load(failover)

    @property
    def steering(self) -> Steering:
        """What may be asked of a failover that runs."""
        return Steering(store=self.store, clock=self.clock)

    async def streams(self, group: GroupName | None) -> Json:
        """Return every stream that should be there, with its lag."""
        mesh = await read_mesh(self.store)
        if group is not None:
            mesh.group(group)
        return {
            "streams": streams_view(mesh, group=group, now_ms=self.clock.wall_ms()),
            "pauses": [views.pause_view(pause) for pause in mesh.pauses],
            "automation": views.automation_view(mesh.automation),
        }

    async def audit(self, group: GroupName, *, after: int, limit: int) -> Json:
        """Return a part of a group's audit, or of the mesh's, oldest first."""
        if group != MESH_AUDIT:
            (await read_mesh(self.store)).group(group)
        _, end = prefix_range(Keys.audit(group, 0)[:-10])
        start = Keys.audit(group, after + 1)
        limit = min(max(1, limit), AUDIT_ENTRIES_MAX)
        result = await self.store.range((start, end), limit=limit)
        return {"group": group, "entries": [views.audit_view(item) for item in result.items]}

    async def verify_audit(self, group: GroupName) -> Json:
        """Return whether the audit's chain is whole."""
        if group != MESH_AUDIT:
            (await read_mesh(self.store)).group(group)
        prefix = Keys.audit(group, 0)[:-10]
        gets = (Get(*prefix_range(prefix)), tip_read(group))
        _, (entries, tip_items) = await read_at_once(self.store, gets)
        tip = tip_of(tip_items).tip
        problems = verify(entries, tip)
        return {
            "group": group,
            "ok": not problems,
            "entries": len(entries),
            "tip_hash": tip.hash or None,
            "problems": list(problems),
        }

    # --- changing ------------------------------------------------------------------------------

    async def put_cluster(
        self, name: ClusterName, body: Mapping[str, Any], peer: PeerIdentity, *, dry_run: bool
    ) -> Json:
        """Store a cluster as described; routing of its groups follows."""
        mesh = await read_mesh(self.store)
        seen = mesh.clusters.get(name)
        descriptor = cluster_of(name, body, before=seen.record if seen else None)
        registry = Registry(store=self.store, clock=self.clock)
        changed = await registry.put_cluster(
            descriptor, mesh=mesh, actor=str(peer), dry_run=dry_run
        )
        if dry_run:
            return {"changed": changed, "dry_run": True}
        if changed and seen is not None:
            await registry.reconcile()
        return {"changed": changed, "cluster": await self.cluster(name)}

    async def put_group(
        self, name: GroupName, body: Mapping[str, Any], peer: PeerIdentity, *, dry_run: bool
    ) -> Json:
        """Store a group as described; a new one gets its first epoch."""
        mesh = await read_mesh(self.store)
        seen = mesh.groups.get(name)
        group, active = group_of(name, body, before=seen.record if seen else None)
        check_policy(group.policy, coordination_ttl_ms=self.coordination_ttl_ms)
        registry = Registry(store=self.store, clock=self.clock)
        changed = await registry.put_group(
            group, mesh=mesh, active=active, actor=str(peer), dry_run=dry_run
        )
        if dry_run:
            return {"changed": changed, "dry_run": True}
        return {"changed": changed, "group": await self.group(name)}

    async def begin(self, group: GroupName, request: FailoverRequest, peer: PeerIdentity) -> Done:
        """Begin a planned failover, or say why there is none to begin.

        Raises:
            NotFound, InvalidInput: the request names what is not there.
            Conflict: another epoch than expected, or another failover is running.
            ChecksFailed: a check stands in the way; it is in the audit.
        """
        failover = beginning.failover_id_of(group, request.request_id)
        repeated = await self._repeated(group, failover, request, peer)
        if repeated is not None:
            return repeated
        mesh, situation = await self._situation(group, request)
        authority, target = mesh.authorities[group], situation.target.name
        failovers = self._failovers()
        if target == situation.authority.active:
            await self._check_not_leaving(group, target, failovers)
            return Done(body=beginning.nothing_to_do(group, situation.authority))
        beginning.check_epoch(group, request, situation.authority)
        if request.kind is FailoverKind.EMERGENCY:
            return await self._begin_emergency(failover, request, situation, mesh, peer)
        judged = preview(situation, waivers=request.waive)
        if request.dry_run:
            return Done(body=beginning.previewed(group, request, situation, judged))
        if situation.running is not None:
            raise FailoverRunning(group, situation.running)
        if judged.failed:
            await self._note_refusal(group, target, judged, peer)
            raise ChecksFailed(judged.failed)
        record = beginning.record(
            failover, request, situation, authority=authority, mesh=mesh, requested_by=peer.name
        )
        return await self._begin(record, request, peer, checked=situation)

    async def _begin(
        self,
        record: Failover,
        request: FailoverRequest,
        peer: PeerIdentity,
        *,
        superseding: Superseding | None = None,
        checked: Situation | None = None,
    ) -> Done:
        begun = beginning.begun(record, checked, now_ms=self.clock.wall_ms())
        try:
            loaded = await self._failovers().begin(
                begun.record,
                acts=[beginning.began(record, actor=str(peer))],
                superseding=superseding,
                beside=begun.beside,
                what=begun.what,
            )
        except RevisionConflict:
            repeated = await self._repeated(record.group, record.id, request, peer)
            if repeated is not None:
                return repeated
            if checked is None:
                raise
            return await self._begin(record, request, peer, superseding=superseding)
        view = views.failover_view(loaded.record, loaded.revision)
        return Done(body={"changed": True, "failover": view}, is_begun=True)

    async def _begin_emergency(
        self,
        failover: FailoverId,
        request: FailoverRequest,
        situation: Situation,
        mesh: Mesh,
        peer: PeerIdentity,
    ) -> Done:
        """Begin an emergency, in the place of whatever runs; or a planned failover before it."""
        group, helper = situation.group.name, Rescuing(store=self.store, clock=self.clock)
        if request.dry_run:
            foreseen = await helper.foreseen(mesh, situation, request)
            return Done(body=rescuing.previewed(group, request, situation, foreseen))
        record = beginning.record(
            failover,
            request,
            situation,
            authority=mesh.authorities[group],
            mesh=mesh,
            requested_by=peer.name,
        )
        running = await self._failovers().find_active(group)
        if request.planned_first and running is None:
            judged = preview(situation, waivers=request.waive)
            first = rescuing.planned_first(record, request, situation, judged)
            return await self._begin(
                first, request, peer, checked=None if judged.failed else situation
            )
        judged = rescue_preview(situation, waivers=request.waive)
        if judged.failed:
            await self._note_refusal(group, situation.target.name, judged, peer)
            raise ChecksFailed(judged.failed)
        seal = await self.store.get(Keys.seal(group))
        record = rescuing.with_emergency(
            record,
            request,
            situation,
            running=running.record if running else None,
            seal_revision=seal.mod_revision if seal else ABSENT,
        )
        superseding = helper.superseding(running, record)
        return await self._begin(record, request, peer, superseding=superseding)

    # --- parts ---------------------------------------------------------------------------------

    def _failovers(self) -> FailoverRepository:
        return FailoverRepository(store=self.store, clock=self.clock, commits=self.commits)

    def _past(self) -> PastFailovers:
        return PastFailovers(store=self.store)

    def _assessor(self, failovers: FailoverRepository) -> Assessor:
        return Assessor(store=self.store, failovers=failovers, clock=self.clock, reads=self._reads)

    async def situation(self, group: GroupName, target: ClusterName, mesh: Mesh) -> Situation:
        """Return what is known of moving a group there, in a mesh that has been read."""
        return await self._assessor(self._failovers()).situation(group, target, mesh=mesh)

    async def _situation(
        self, group: GroupName, request: FailoverRequest
    ) -> tuple[Mesh, Situation]:
        """Return what is known, once the target reports about the present epoch; not for ever."""
        deadline_ms = self.clock.now_ms() + REPORT_PATIENCE_MS
        while True:
            mesh = await self._reads.mesh.read()
            mesh.group(group)
            authority = mesh.authorities.get(group)
            target = beginning.target(group, request, authority.record if authority else None)
            assessor = self._assessor(self._failovers())
            situation = await assessor.situation(group, target, mesh=mesh)
            if not reports_late(situation) or self.clock.now_ms() >= deadline_ms:
                return mesh, situation
            await self.clock.sleep_ms(REPORT_AGAIN_MS)

    async def _repeated(
        self, group: GroupName, failover: FailoverId, request: FailoverRequest, peer: PeerIdentity
    ) -> Done | None:
        """Return the answer to a repeat of a request, or None if it is new."""
        loaded = await self._failovers().load(group, failover)
        if loaded is None or request.dry_run:
            return None
        record = loaded.record
        may_be = {record.kind} | ({FailoverKind.EMERGENCY} if record.fallback else set())
        if request.kind not in may_be or request.target not in {None, record.target}:
            raise Conflict(
                f"request id {request.request_id!r} was used for another failover: {failover}"
            )
        return Done(body=await self.steering.repeated(loaded, request.accept_loss, peer))

    async def _check_not_leaving(
        self, group: GroupName, target: ClusterName, failovers: FailoverRepository
    ) -> None:
        """Refuse to call a cluster active while a failover is taking its writes away."""
        running = await failovers.find_active(group)
        if running and running.record.source == target and not running.record.authority_moved:
            raise FailoverRunning(group, running.record.id)

    async def _note_refusal(
        self, group: GroupName, target: ClusterName, judged: Preview, peer: PeerIdentity
    ) -> None:
        facts = {"target": target, "checks": [check.name for check in judged.failed]}
        act = Act(actor=str(peer), action="failover.refused", facts=facts)
        await self._failovers().append_audit(group, act)
