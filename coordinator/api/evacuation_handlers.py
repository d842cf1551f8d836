"""The API's handlers about evacuations: from a request to the operation and back."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from coordinator.api.bodies import failover_of
from coordinator.api.evacuating import Evacuating
from meshkit.errors import InvalidInput
from meshkit.names import cluster_name
from meshkit.peer import PeerIdentity

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class EvacuationHandlers:
    """One handler for each route about evacuations, by the route's name."""

    evacuating: Evacuating
    read_body: Callable[[web.Request], Awaitable[Json]]
    peer_of: Callable[[web.Request], PeerIdentity]

    def by_name(self) -> Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """Return the handlers by the names of their routes."""
        return {"begin_evacuation": self._begin, "show_evacuation": self._show}

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        cluster = cluster_name(request.match_info["name"])
        key = request.headers.get("Idempotency-Key", "") or uuid.uuid4().hex
        body = await self.read_body(request)
        if "expect_epoch" in body:
            raise InvalidInput("expect_epoch: each group has its own")
        asked = failover_of(body, idempotency_key=key)
        answer = await self.evacuating.evacuate(cluster, asked, self.peer_of(request))
        return web.json_response(answer, status=202 if answer["changed"] else 200)

    async def _show(self, request: web.Request) -> web.StreamResponse:
        cluster = cluster_name(request.match_info["name"])
        request_id = request.query.get("request_id", "")
        if not request_id:
            raise InvalidInput("request_id: which evacuation?")
        is_in_full = request.query.get("full", "") == "true"
        progress = await self.evacuating.progress(cluster, request_id, is_in_full=is_in_full)
        return web.json_response(progress)
