"""The API's handlers about rejoins: from a request to the operation and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from coordinator.api.bodies import Fields, flag_field, reason_of, text_field
from coordinator.api.rejoining import RejoinOperations
from meshkit.names import cluster_name, group_name
from meshkit.peer import PeerIdentity

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.frozen(kw_only=True)
class RejoinHandlers:
    """One handler for each route about rejoins, by the route's name."""

    operations: RejoinOperations
    read_body: Callable[[web.Request], Awaitable[dict[str, Any]]]
    peer_of: Callable[[web.Request], PeerIdentity]

    def by_name(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of their routes."""
        return {
            "list_rejoins": self._list,
            "show_rejoin": self._show,
            "begin_rejoin": self._begin,
            "approve_rejoin": self._approve,
            "resume_rejoin": self._resume,
        }

    async def _list(self, request: web.Request) -> web.StreamResponse:
        group = request.query.get("group")
        return web.json_response(
            await self.operations.rejoins(group_name(group) if group else None)
        )

    async def _show(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self.operations.rejoin(request.match_info["rejoin"]))

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        body = await self.read_body(request)
        readers = {"group": text_field, "reason": text_field, "dry_run": flag_field}
        given = Fields(body, readers).given
        group = given.get("group")
        done = await self.operations.begin(
            cluster_name(request.match_info["name"]),
            group_name(group) if group else None,
            given.get("reason", ""),
            self.peer_of(request),
            is_dry_run=given.get("dry_run", False),
        )
        return web.json_response(done)

    async def _approve(self, request: web.Request) -> web.StreamResponse:
        reason = reason_of(await self.read_body(request))
        name = request.match_info["rejoin"]
        return web.json_response(await self.operations.approve(name, reason, self.peer_of(request)))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        reason = reason_of(await self.read_body(request))
        name = request.match_info["rejoin"]
        return web.json_response(await self.operations.resume(name, reason, self.peer_of(request)))
