"""Gathers what is known about a failover, for the checks of `governance.preflight` to judge."""

from __future__ import annotations

from typing import Self

import attrs

from coordinator.comparison import Standing
from coordinator.failover.past import PastFailovers
from coordinator.failover.record import pause_ms
from coordinator.failover.repository import FailoverRepository
from coordinator.governance.preflight import Situation
from coordinator.mesh import Mesh, read_mesh
from coordinator.registry import require_members
from meshkit.clock import Clock
from meshkit.errors import Conflict, MeshError
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.shared_reads import SharedReads
from meshkit.store.port import Store, StoreStatus


@attrs.frozen(kw_only=True, eq=False)
class MeshReads:
    """What every failover's checks read of the coordination etcd, for many at once."""

    mesh: SharedReads[Mesh]
    status: SharedReads[StoreStatus | None]

    @classmethod
    def of(cls, store: Store, clock: Clock) -> Self:
        """Return the readings of one store."""

        async def mesh() -> Mesh:
            return await read_mesh(store)

        async def status() -> StoreStatus | None:
            try:
                return await store.status()
            except MeshError:
                return None

        return cls(mesh=SharedReads(mesh, clock=clock), status=SharedReads(status, clock=clock))


@attrs.define(kw_only=True, eq=False)
class Assessor:
    """Reads the mesh and past failovers, and puts together the situation of one failover."""

    store: Store
    failovers: FailoverRepository
    clock: Clock
    reads: MeshReads = attrs.field()

    @reads.default
    def _own_reads(self) -> MeshReads:
        return MeshReads.of(self.store, self.clock)

    async def situation(
        self,
        group: GroupName,
        target: ClusterName,
        *,
        mesh: Mesh | None = None,
        besides: FailoverId | None = None,
    ) -> Situation:
        """Return what is known now; `besides` is a running failover that does not count.

        Raises:
            NotFound: no such group or cluster, or the target is no member.
            Conflict: the group has no authority yet.
            Unreachable: the coordination etcd did not answer.
        """
        mesh = mesh or await self.reads.mesh.read()
        described = mesh.group(group)
        mesh.cluster(target)
        require_members(described, target)
        authority = mesh.authorities.get(group)
        if authority is None:
            raise Conflict(
                f"group {group} has no active cluster yet",
                hint="the leading coordinator founds it as soon as there is one",
            )
        source = authority.record.active
        # A failover of our own that runs is the only one there is.
        running = None if besides else await self.failovers.find_active(group)
        past = PastFailovers(store=self.store, commits=self.failovers.commits)
        succeeded = await past.last_succeeded(group)
        last = succeeded.record if succeeded else None
        return Situation(
            group=described,
            authority=authority.record,
            source=mesh.cluster(source),
            target=mesh.cluster(target),
            source_health=mesh.health.get(source),
            target_health=mesh.health.get(target),
            stream=mesh.streams.get((source, target)),
            coordination=await self.reads.status.read(),
            is_sealed=group in mesh.sealed,
            running=running.record.id if running else None,
            succeeded_at_ms=last.ended_ms if last else None,
            pause_ms_last=pause_ms(last) if last else None,
            automation=mesh.automation,
            pauses=mesh.pauses,
            pact=mesh.pacts.get(group),
            copy=Standing(
                request=mesh.verifies.get((target, group)),
                result=mesh.verified.get((target, group)),
            ),
            now_ms=self.clock.wall_ms(),
        )
