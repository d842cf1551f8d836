"""Moving every group away from a cluster: one request, one failover for each group.

The groups share readings and transactions and nothing else. One that cannot move says why and does
not hold the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import attrs

from coordinator.api import beginning
from coordinator.api.bodies import FailoverRequest
from coordinator.api.evacuation_rows import begun_row, in_sum, progress_row, with_running
from coordinator.api.operations import Operations
from coordinator.failover.record import Failover, FailoverKind
from coordinator.failover.repository import FailoverRepository, loaded_of
from coordinator.governance.audit import MESH_AUDIT, Act
from coordinator.governance.preflight import preview
from coordinator.governance.rescue_checks import rescue_preview
from coordinator.mesh import Mesh, known_groups, read_at_once, read_mesh
from meshkit.clock import Clock
from meshkit.errors import InvalidInput, MeshError, NotFound
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store
from meshkit.store.shared import SharedCommits
from meshkit.store.txn import Get, KeyValue

Json = dict[str, Any]

AT_ONCE_MAX = 256
"""How many groups are assessed and begun side by side."""

GETS_MAX = 100
"""Reads in one transaction; below etcd's limit of 128."""

SHOWN_IN_FULL_MAX = 50
"""Of how many failovers that are under way the state is read, once there are no more."""


@attrs.define(kw_only=True, eq=False)
class Evacuating:
    """Evacuations, on one coordination etcd."""

    store: Store
    clock: Clock

    async def evacuate(
        self, cluster: ClusterName, request: FailoverRequest, peer: PeerIdentity
    ) -> Json:
        """Begin a failover of every group that is active there; repeating is harmless.

        `request` is what is asked for each group; without a target each goes to the first of its
        members that can take it.

        Raises:
            NotFound: there is no such cluster.
            InvalidInput: the groups are to go to where they are.
        """
        mesh = await read_mesh(self.store)
        mesh.cluster(cluster)
        if request.target is not None:
            mesh.cluster(request.target)
        if request.target == cluster:
            raise InvalidInput(f"target: {cluster} is the cluster to be left")
        groups = sorted(
            name for name, seen in mesh.authorities.items() if seen.record.active == cluster
        )
        async with _sharing(self.store) as commits:
            operations = Operations(store=self.store, clock=self.clock, commits=commits)
            if groups and not request.dry_run:
                await self._note(cluster, request, peer, count=len(groups))
            one = _OneByOne(
                mesh=mesh,
                request=request,
                peer=peer,
                operations=operations,
                begun_before=await self._begun_before(groups, request),
            )
            rows: list[Json] = await asyncio.gather(*(one.begin(group) for group in groups))
        rows = await self._with_running(rows)
        return {
            "cluster": cluster,
            "kind": request.kind.value,
            "request_id": request.request_id,
            "dry_run": request.dry_run,
            "changed": any(row["outcome"] == "begun" for row in rows),
            "loss": in_sum(row["loss"] for row in rows if row["loss"] is not None),
            "groups": rows,
        }

    async def progress(
        self, cluster: ClusterName, request_id: str, *, is_in_full: bool = False
    ) -> Json:
        """Return how far an evacuation is, group by group.

        Of many groups under way the state is read only if asked for: `waiting` is None without.

        Raises:
            NotFound: there is no such cluster.
        """
        mesh = await read_mesh(self.store)
        mesh.cluster(cluster)
        ids = {g: beginning.failover_id_of(g, request_id) for g in await known_groups(self.store)}
        failovers = FailoverRepository(store=self.store, clock=self.clock)
        running = await failovers.find_all_active(list(ids))
        begun = await self._begun(ids)
        under_way = [g for g in begun if running.get(g) == ids[g]]
        stopped = [g for g in begun if g not in under_way and not _has_moved(g, mesh, cluster)]
        is_known = is_in_full or len(under_way) <= SHOWN_IN_FULL_MAX
        shown = under_way if is_known else []
        records = await self._records({g: ids[g] for g in (*shown, *stopped)})
        rows = [
            progress_row(
                group,
                ids[group],
                has_moved=_has_moved(group, mesh, cluster),
                is_under_way=group in set(under_way),
                record=records.get(group),
            )
            for group in begun
        ]
        return {
            "cluster": cluster,
            "request_id": request_id,
            "under_way": len(under_way),
            "moved": sum(row["moved"] for row in rows),
            "waiting": sum(row["waits_for_consent"] for row in rows) if is_known else None,
            "loss": in_sum(row["loss"] for row in rows if row["waits_for_consent"]),
            "groups": rows,
        }

    async def _begun_before(
        self, groups: Sequence[GroupName], request: FailoverRequest
    ) -> frozenset[GroupName]:
        """Return the groups of which this is a repeat; each goes where it went then."""
        if request.dry_run:
            return frozenset()
        ids = {group: beginning.failover_id_of(group, request.request_id) for group in groups}
        return frozenset(await self._begun(ids))

    async def _with_running(self, rows: list[Json]) -> list[Json]:
        ids = {row["group"]: row["running"] for row in rows if row["running"]}
        records = await self._records(ids)
        return [
            with_running(row, records[row["group"]]) if row["group"] in records else row
            for row in rows
        ]

    async def _begun(self, ids: dict[GroupName, FailoverId]) -> list[GroupName]:
        keys = {Keys.failover(group, failover): group for group, failover in ids.items()}
        return sorted(keys[item.key] for item in await self._get(list(keys), keys_only=True))

    async def _records(self, ids: dict[GroupName, FailoverId]) -> dict[GroupName, Failover]:
        keys = [Keys.failover(group, failover) for group, failover in ids.items()]
        found = [loaded_of(item).record for item in await self._get(keys)]
        return {record.group: record for record in found}

    async def _get(self, keys: Sequence[bytes], *, keys_only: bool = False) -> list[KeyValue]:
        found: list[KeyValue] = []
        for start in range(0, len(keys), GETS_MAX):
            gets = tuple(Get(k, keys_only=keys_only) for k in keys[start : start + GETS_MAX])
            _, reads = await read_at_once(self.store, gets)
            found += [item for items in reads for item in items]
        return found

    async def _note(
        self, cluster: ClusterName, request: FailoverRequest, peer: PeerIdentity, *, count: int
    ) -> None:
        facts = {"cluster": cluster, "to": request.target or "", "groups": count}
        facts |= {"kind": request.kind.value, "reason": request.reason}
        facts |= {"change": request.change, "request": request.request_id}
        act = Act(actor=str(peer), action="cluster.evacuation_began", facts=facts)
        repository = FailoverRepository(store=self.store, clock=self.clock)
        await repository.append_audit(MESH_AUDIT, act)


@attrs.frozen(kw_only=True)
class _OneByOne:
    """Begins the failover of each group for itself."""

    mesh: Mesh
    request: FailoverRequest
    peer: PeerIdentity
    operations: Operations
    begun_before: frozenset[GroupName] = frozenset()
    turns: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(AT_ONCE_MAX))

    async def begin(self, group: GroupName) -> Json:
        """Begin the failover of one group and say what became of that; never raises for it."""
        async with self.turns:
            return await self._begin(group)

    async def _begin(self, group: GroupName) -> Json:
        target: ClusterName | None = None
        try:
            if group not in self.begun_before:
                target = self.request.target or await self._choose(group)
            request = attrs.evolve(self.request, target=target, expect_epoch=None)
            done = await self.operations.begin(group, request, self.peer)
        except MeshError as error:
            return begun_row(group, target=target, outcome="refused", reason=str(error))
        failover = done.body.get("failover")
        if failover is not None:
            outcome = "begun" if done.is_begun else "under_way"
            target = ClusterName(failover["target"])
            return begun_row(group, target=target, failover=failover["id"], outcome=outcome)
        preview_shown = done.body.get("preview")
        if preview_shown is None:
            return begun_row(group, target=target, outcome="moved", reason=done.body["message"])
        failed = [c for c in preview_shown["checks"] if not c["ok"] and not c["waived"]]
        return begun_row(
            group,
            target=target,
            outcome="refused" if failed else "would_move",
            reason="; ".join(f"{c['name']}: {c['detail']}" for c in failed),
            loss=preview_shown.get("loss"),
            running=preview_shown.get("supersedes"),
        )

    async def _choose(self, group: GroupName) -> ClusterName:
        """Return the first member, in the group's order, that can take it; else the first."""
        active = self.mesh.authorities[group].record.active
        candidates = [m for m in self.mesh.group(group).members if m != active]
        if not candidates:
            raise NotFound(f"group {group} has no other member")
        if len(candidates) == 1:
            return candidates[0]  # Whether it can is found out where the failover begins.
        is_emergency = self.request.kind is FailoverKind.EMERGENCY
        judge = rescue_preview if is_emergency else preview
        for target in candidates:
            situation = await self.operations.situation(group, target, self.mesh)
            if not judge(situation, waivers=self.request.waive).failed:
                return target
        return candidates[0]


@contextlib.asynccontextmanager
async def _sharing(store: Store) -> AsyncIterator[SharedCommits]:
    commits = SharedCommits(store=store)
    running = asyncio.ensure_future(commits.run())
    try:
        yield commits
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _has_moved(group: GroupName, mesh: Mesh, cluster: ClusterName) -> bool:
    seen = mesh.authorities.get(group)
    return seen is not None and seen.record.active != cluster
