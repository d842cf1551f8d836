"""The API's handler about automatic failovers: from a request to the operation and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from coordinator.api.automating import Automating
from coordinator.api.bodies import Fields, text_field
from meshkit.names import failover_id, group_name
from meshkit.peer import PeerIdentity

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.frozen(kw_only=True)
class AutomaticHandlers:
    """The handlers by the names of their routes."""

    automating: Automating
    read_body: Callable[[web.Request], Awaitable[dict[str, Any]]]
    peer_of: Callable[[web.Request], PeerIdentity]

    def by_name(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of their routes."""
        return {"acknowledge_automatic": self._acknowledge}

    async def _acknowledge(self, request: web.Request) -> web.StreamResponse:
        body = await self.read_body(request)
        given = Fields(body, {"failover": text_field, "reason": text_field}).given
        failover = given.get("failover")
        done = await self.automating.acknowledge(
            group_name(request.match_info["group"]),
            failover_id(failover) if failover else None,
            given.get("reason", ""),
            self.peer_of(request),
        )
        return web.json_response(done)
