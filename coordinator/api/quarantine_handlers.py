"""The API's handlers about quarantine: from a request to the operation and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from coordinator.api.quarantine_bodies import quarantine_act_of, quarantine_query_of
from coordinator.api.quarantining import Quarantining
from meshkit.names import group_name
from meshkit.peer import PeerIdentity

Json = dict[str, Any]
ReadBody = Callable[[web.Request], Awaitable[dict[str, Any]]]


@attrs.frozen(kw_only=True)
class QuarantineHandlers:
    """One handler for each route about quarantine, by the route's name."""

    quarantining: Quarantining
    read_body: ReadBody
    peer_of: Callable[[web.Request], PeerIdentity]

    def by_name(self) -> Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """Return the handlers by the names of their routes."""
        return {
            "list_quarantine": self._list,
            "show_quarantine": self._show,
            "replay_quarantine": self._replay,
            "discard_quarantine": self._discard,
        }

    async def _list(self, request: web.Request) -> web.StreamResponse:
        query = quarantine_query_of(request.query)
        found = await self.quarantining.entries(
            group_name(request.match_info["group"]),
            query.cluster,
            epoch=query.epoch,
            start=query.start,
            limit=query.limit,
        )
        return web.json_response(found)

    async def _show(self, request: web.Request) -> web.StreamResponse:
        group = group_name(request.match_info["group"])
        return web.json_response(await self.quarantining.entry(group, request.match_info["entry"]))

    async def _replay(self, request: web.Request) -> web.StreamResponse:
        group = group_name(request.match_info["group"])
        asked = quarantine_act_of(await self.read_body(request))
        return web.json_response(
            await self.quarantining.replay(group, asked, self.peer_of(request))
        )

    async def _discard(self, request: web.Request) -> web.StreamResponse:
        group = group_name(request.match_info["group"])
        asked = quarantine_act_of(await self.read_body(request))
        return web.json_response(
            await self.quarantining.discard(group, asked, self.peer_of(request))
        )
