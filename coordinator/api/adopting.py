"""Adopting a region's etcd that went back: the operator's word, put down once, with its reason.

The API changes nothing in the region. It stores the adoption; the region's replicator, which
refuses to lead until then, carries it out when it leads again.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from coordinator.api.adopt_bodies import AdoptAsked, adopt_of
from coordinator.api.suspension_views import suspension_view
from coordinator.governance.audit import MESH_AUDIT, Act, appending, tip_of, tip_read
from coordinator.mesh import Mesh, Seen, read_at_once, read_mesh
from meshkit.clock import Clock
from meshkit.codec import encode
from meshkit.errors import Conflict, OutcomeUnknown, Refused
from meshkit.incarnations import REPLACED_MAX, Adoption, SuspectStore, Suspension
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, cluster_name
from meshkit.ordinals import ABSENT, Incarnation
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store
from meshkit.store.txn import Committed, ModRevisionIs, Put, Txn

Json = dict[str, Any]

ATTEMPTS_MAX = 5
"""How often it is tried while the audit moves under it."""


@attrs.define(kw_only=True, eq=False)
class Adopting:
    """Adoptions, on one coordination etcd."""

    store: Store
    clock: Clock

    async def adopt(self, name: ClusterName, asked: AdoptAsked, peer: PeerIdentity) -> Json:
        """Store the adoption of a suspended region's etcd; repeating it changes nothing.

        Raises:
            NotFound: there is no such cluster.
            Refused: its etcd is not suspended, or another etcd is the one that went back.
            Conflict: it is suspended for something else than was shown.
        """
        for _ in range(ATTEMPTS_MAX):
            mesh = await read_mesh(self.store)
            mesh.cluster(name)
            seen, before = mesh.suspensions.get(name), mesh.adoptions.get(name)
            if before is not None and _answers(before, seen, asked):
                return self._answer(name, mesh, before.record.incarnation, changed=False)
            suspended = _adoptable(name, seen, asked)
            if asked.dry_run:
                return self._answer(name, mesh, None, changed=False)
            adoption = self._adoption(suspended, before, asked, peer)
            if await self._put(adoption, suspended, before):
                return self._answer(
                    name, await read_mesh(self.store), adoption.incarnation, changed=True
                )
        raise Conflict(f"the audit moves too fast to adopt {name}; try again")

    def _adoption(
        self,
        suspended: Seen[Suspension],
        before: Seen[Adoption] | None,
        asked: AdoptAsked,
        peer: PeerIdentity,
    ) -> Adoption:
        replaced = (*(before.record.replaced if before else ()), suspended.record.incarnation)
        return Adoption(
            cluster=suspended.record.cluster,
            incarnation=Incarnation(uuid.uuid4().hex[:12]),
            replaced=tuple(dict.fromkeys(replaced))[-REPLACED_MAX:],
            suspension=suspended.revision,
            requested_by=str(peer),
            reason=asked.reason,
            at_ms=self.clock.wall_ms(),
        )

    async def _put(
        self, adoption: Adoption, suspended: Seen[Suspension], before: Seen[Adoption] | None
    ) -> bool:
        """Store it with its audit entry; False if something moved meanwhile, or may have."""
        cluster = adoption.cluster
        _, (tip,) = await read_at_once(self.store, (tip_read(MESH_AUDIT),))
        act = Act(
            actor=adoption.requested_by,
            action="cluster.adopted",
            facts={
                "cluster": cluster,
                "incarnation": adoption.incarnation,
                "replaced": suspended.record.incarnation,
                "why_suspended": suspended.record.reason,
                "reason": adoption.reason,
            },
        )
        audit = appending(MESH_AUDIT, tip_of(tip), [act], now_ms=adoption.at_ms)
        guards = (
            audit.guard,
            ModRevisionIs(Keys.suspension(cluster), suspended.revision),
            ModRevisionIs(Keys.adoption(cluster), before.revision if before else ABSENT),
        )
        put = Put(Keys.adoption(cluster), encode(adoption))
        try:
            outcome = await self.store.commit(Txn(guards=guards, operations=(put, *audit.puts)))
        except OutcomeUnknown:
            # If it was stored, the next look finds it, and changes nothing.
            return False
        return isinstance(outcome, Committed)

    def _answer(
        self, name: ClusterName, mesh: Mesh, incarnation: Incarnation | None, *, changed: bool
    ) -> Json:
        return {
            "changed": changed,
            "incarnation": incarnation,
            "suspended": suspension_view(name, mesh, now_ms=self.clock.wall_ms()),
        }


def _answers(before: Seen[Adoption], seen: Seen[Suspension] | None, asked: AdoptAsked) -> bool:
    """Whether the adoption that there is answers what is asked: the request is a repeat."""
    if seen is not None:
        return before.record.suspension == seen.revision
    return before.record.suspension == asked.expect_suspension


def _adoptable(
    name: ClusterName, seen: Seen[Suspension] | None, asked: AdoptAsked
) -> Seen[Suspension]:
    if seen is None:
        raise Refused(
            f"{name} is not suspended: its etcd is the one it was, and there is nothing to adopt"
        )
    if seen.record.store is SuspectStore.COORDINATION:
        raise Refused(
            f"not the etcd of {name} went back but the coordination etcd: {seen.record.reason}",
            hint="mesh coordination adopt --reason WHY; adopting a region does not help",
        )
    if asked.expect_suspension not in (None, seen.revision):
        raise Conflict(
            f"{name} is suspended for something else than was shown: {seen.record.reason}",
            hint=f"mesh clusters show {name}",
        )
    return seen


@attrs.frozen(kw_only=True)
class AdoptHandlers:
    """The handler of the route about adopting, by the route's name."""

    adopting: Adopting
    read_body: Callable[[web.Request], Awaitable[dict[str, Any]]]
    peer_of: Callable[[web.Request], PeerIdentity]

    def by_name(self) -> Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """Return the handler by the name of its route."""
        return {"adopt_cluster": self._adopt}

    async def _adopt(self, request: web.Request) -> web.StreamResponse:
        name = cluster_name(request.match_info["name"])
        asked = adopt_of(await self.read_body(request))
        return web.json_response(await self.adopting.adopt(name, asked, self.peer_of(request)))
