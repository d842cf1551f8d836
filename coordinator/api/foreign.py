"""What was written to passive copies beside MeshKit: asked of each region, stored nowhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from coordinator.mesh import read_mesh
from meshkit import asking
from meshkit.asker import AskRegion, ask_leader
from meshkit.errors import NotFound, Refused
from meshkit.names import ClusterName, GroupName, cluster_name, group_name
from meshkit.store.port import Store

Json = dict[str, Any]


@attrs.frozen(kw_only=True, eq=False)
class ForeignListing:
    """Lists foreign writes; what nobody answers is unknown, and says why."""

    store: Store
    asker: AskRegion

    def by_name(self) -> Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """Return the handler by the name of its route."""
        return {"list_foreign_writes": self._list}

    async def _list(self, request: web.Request) -> web.StreamResponse:
        cluster = request.query.get("cluster")
        found = await self.writes(
            group_name(request.match_info["group"]), cluster_name(cluster) if cluster else None
        )
        return web.json_response(found)

    async def writes(self, group: GroupName, cluster: ClusterName | None) -> Json:
        """Return what each passive copy of a group was found to have, or that of one cluster.

        Raises:
            NotFound: there is no such group, or the cluster is no member of it.
        """
        mesh = await read_mesh(self.store)
        members = mesh.group(group).members
        if cluster is not None and cluster not in members:
            raise NotFound(f"{cluster} is no member of {group}", hint=f"those are {members}")
        seen = mesh.authorities.get(group)
        active = seen.record.active if seen else None
        asked = [cluster] if cluster else [member for member in members if member != active]
        copies = []
        for member in asked:
            endpoints = mesh.cluster(member).replication_endpoints
            copies.append(await self._copy(group, member, endpoints))
        return {"group": group, "clusters": copies}

    async def _copy(
        self, group: GroupName, cluster: ClusterName, endpoints: tuple[str, ...]
    ) -> Json:
        question = asking.ReadForeign(group=group)
        try:
            listed = await ask_leader(
                self.asker, cluster, endpoints, question, asking.ForeignListed
            )
        except (Refused, NotFound) as error:
            return {"cluster": cluster, "count": None, "latest": [], "problem": str(error)}
        latest = [attrs.asdict(one) for one in listed.latest]
        return {"cluster": cluster, "count": listed.count, "latest": latest, "problem": ""}
