"""Rejoins through the API: who is on the way back, and what a person may do about it."""

from __future__ import annotations

from typing import Any

import attrs

from coordinator.failover.record import Problem
from coordinator.governance.audit import Act
from coordinator.governance.preflight import fresh_health
from coordinator.mesh import Mesh, read_mesh
from coordinator.rejoin import machine
from coordinator.rejoin.keeper import Keeper, may_begin, must_rejoin
from coordinator.rejoin.record import STEPS, Rejoin
from coordinator.rejoin.repository import LoadedRejoin, RejoinRepository
from meshkit.clock import Clock
from meshkit.codec import to_plain
from meshkit.errors import Conflict, NotFound, Refused, RevisionConflict
from meshkit.names import ClusterName, GroupName
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store

Json = dict[str, Any]

ATTEMPTS_MAX = 5
"""How often a request is tried while the record moves under it."""


@attrs.define(kw_only=True, eq=False)
class RejoinOperations:
    """The operations about rejoins on one coordination etcd."""

    store: Store
    clock: Clock

    async def rejoins(self, group: GroupName | None) -> Json:
        """Return the newest rejoin of each cluster for each group, newest first."""
        if group is not None:
            (await read_mesh(self.store)).group(group)
        loaded = await self._repository().all_of(group)
        loaded.sort(key=lambda each: each.record.began_ms, reverse=True)
        return {"rejoins": [rejoin_view(each.record) for each in loaded]}

    async def rejoin(self, name: str) -> Json:
        """Return one rejoin.

        Raises:
            NotFound: there is none of that id.
        """
        return rejoin_view((await self._found(name)).record)

    async def begin(
        self,
        cluster: ClusterName,
        group: GroupName | None,
        reason: str,
        peer: PeerIdentity,
        *,
        is_dry_run: bool = False,
    ) -> Json:
        """Begin the rejoins that a cluster needs, or say why there is nothing to begin.

        As a dry run only say which are needed.

        Raises:
            NotFound: there is no such cluster or group.
            Refused: the cluster does not report, so nobody knows what it needs.
        """
        mesh = await read_mesh(self.store)
        mesh.cluster(cluster)
        if group is not None:
            mesh.group(group)
        health = fresh_health(mesh.health.get(cluster), now_ms=self.clock.wall_ms())
        if health is None:
            raise Refused(
                f"{cluster} does not report: nobody knows how it stands",
                hint=f"start its replicators; see mesh clusters show {cluster}",
            )
        groups = [group] if group else sorted(mesh.groups)
        results = [
            await self._begin(name, cluster, mesh, reason, peer, is_dry_run=is_dry_run)
            for name in groups
            if cluster in mesh.groups[name].record.members
        ]
        return {"cluster": cluster, "results": results}

    async def _begin(
        self,
        group: GroupName,
        cluster: ClusterName,
        mesh: Mesh,
        reason: str,
        peer: PeerIdentity,
        *,
        is_dry_run: bool,
    ) -> Json:
        seen = mesh.authorities.get(group)
        health = mesh.health[cluster].groups.get(group)
        loaded = await self._newest(group, cluster)
        if loaded is not None and not loaded.record.phase.is_final:
            return _result(group, "runs already", loaded.record, is_needed=True)
        if seen is None or seen.record.active == cluster:
            return _result(group, "it is active itself, or nobody is")
        is_needed = health is not None and must_rejoin(health, seen.record)
        if not is_needed or not may_begin(mesh, cluster, loaded):
            return _result(group, "nothing to do: it is a standby, or becomes one by itself")
        if is_dry_run:
            return _result(group, "would begin", is_needed=True)
        keeper = Keeper(store=self.store, clock=self.clock)
        try:
            begun = await keeper.begin(group, cluster, mesh, requested_by=str(peer), reason=reason)
        except RevisionConflict as error:
            return _result(group, f"not begun: {error}", is_needed=True)
        message = "begun" if begun else "a failover of the group runs: it comes first"
        return _result(group, message, begun.record if begun else None, is_needed=True)

    async def _newest(self, group: GroupName, cluster: ClusterName) -> LoadedRejoin | None:
        every = await self._repository().all_of(group)
        return next((each for each in every if each.record.cluster == cluster), None)

    async def approve(self, name: str, reason: str, peer: PeerIdentity) -> Json:
        """Agree that what is not in quarantine is given up, so that the copy may begin.

        Raises:
            Refused: it waits for no approval.
        """
        event = machine.Approved(actor=str(peer), reason=reason)
        return await self._ask(name, event, peer)

    async def resume(self, name: str, reason: str, peer: PeerIdentity) -> Json:
        """Try what holds again.

        Raises:
            Refused: it is not held, or waits for an approval.
        """
        event = machine.Resumed(actor=str(peer), reason=reason)
        return await self._ask(name, event, peer)

    async def _ask(
        self, name: str, event: machine.Approved | machine.Resumed, peer: PeerIdentity
    ) -> Json:
        is_approval = isinstance(event, machine.Approved)
        verb = "approved" if is_approval else "resume_requested"
        for _ in range(ATTEMPTS_MAX):
            loaded = await self._found(name)
            record = loaded.record
            if is_approval and record.approved_by:
                return {"changed": False, "rejoin": rejoin_view(record)}
            (machine.check_approve if is_approval else machine.check_resume)(record)
            around = await self._repository().around(record.group, record.cluster)
            if around.rejoin is None or around.rejoin.revision != loaded.revision:
                continue
            if around.involves:
                raise Conflict(
                    f"a failover of {record.group} asks {record.cluster} something: it comes first",
                    hint=f"mesh failovers list --group {record.group}",
                )
            after = machine.advance(record, event, now_ms=self.clock.wall_ms())
            facts = {"rejoin": record.id, "cluster": record.cluster, "reason": event.reason}
            act = Act(actor=str(peer), action=f"rejoin.{verb}", facts=facts)
            try:
                stored = await self._repository().save(around, after, acts=[act])
            except RevisionConflict:
                continue
            return {"changed": True, "rejoin": rejoin_view(stored.record)}
        raise Conflict(f"rejoin {name} moves too fast; try again")

    async def _found(self, name: str) -> LoadedRejoin:
        for loaded in await self._repository().all_of():
            if loaded.record.id == name:
                return loaded
        raise NotFound(f"there is no rejoin {name!r}", hint="see them: mesh rejoins list")

    def _repository(self) -> RejoinRepository:
        return RejoinRepository(store=self.store, clock=self.clock)


def rejoin_view(record: Rejoin) -> Json:
    """Return a rejoin as the API shows it."""
    return {
        "id": record.id,
        "group": record.group,
        "cluster": record.cluster,
        "active": record.active,
        "epoch": record.epoch,
        "plan": record.plan,
        "phase": record.phase.value,
        "exit_code": record.phase.exit_code,
        "step": record.step.name,
        "step_number": record.cursor + 1,
        "steps_total": len(STEPS),
        "requested_by": record.requested_by,
        "reason": record.reason,
        "began_ms": record.began_ms,
        "ended_ms": record.ended_ms,
        "cut": record.cut,
        "lineage": to_plain(record.lineage) if record.lineage else None,
        "diverged": dict(record.diverged),
        "completeness": record.completeness,
        "needs_approval": record.needs_approval,
        "approved_by": record.approved_by,
        "problem": _problem_view(record.problem),
        "steps": [to_plain(step) for step in record.history],
    }


def _problem_view(problem: Problem | None) -> Json | None:
    return to_plain(problem) if problem else None


def _result(
    group: GroupName, message: str, record: Rejoin | None = None, *, is_needed: bool = False
) -> Json:
    shown = rejoin_view(record) if record else None
    return {"group": group, "message": message, "needed": is_needed, "rejoin": shown}
