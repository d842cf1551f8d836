"""Questions beside the streams: each crosses the network, is answered over there, and comes back.

The answer is worked out in the process that is asked, so it takes as long as that process is
stopped, and never comes if it is killed; whoever asks waits for so long and no longer.
"""

from __future__ import annotations

import asyncio

import attrs

from chaos.sim.loop import NS_PER_MS
from chaos.sim.network import Network, Serving, Site
from meshkit.asking import Answer, Question
from meshkit.errors import MeshError, Unreachable
from meshkit.names import ClusterName
from meshkit.peer import PeerIdentity
from replicator.link.port import LinkLost

PATIENCE_MS = 2_000


@attrs.frozen(kw_only=True)
class SimAsker:
    """Asks replicators as one peer. Satisfies `meshkit.asker.AskRegion`."""

    network: Network
    site: Site
    peer: PeerIdentity

    async def ask(self, cluster: ClusterName, endpoint: str, question: Question) -> Answer:
        """Return the answer of whoever serves at `endpoint`.

        Raises:
            LinkLost: nobody does, or the question or its answer got lost.
        """
        serving = await self.network.reach(self.site, endpoint)
        loop = self.network.loop
        future: asyncio.Future[Answer] = loop.create_future()
        loop.create_task(self._advise(serving, question, future), context=serving.domain.context)
        late = LinkLost(f"no answer from {cluster} at {endpoint}")
        timer = loop.call_at_ns(loop.now_ns + PATIENCE_MS * NS_PER_MS, _settle, future, late)
        try:
            return await future
        finally:
            timer.cancel()

    async def _advise(
        self, serving: Serving, question: Question, future: asyncio.Future[Answer]
    ) -> None:
        try:
            reply: Answer | MeshError = await serving.advise(question, self.peer)
        except MeshError as error:
            reply = Unreachable(f"the answer failed: {error}")
        way_ns = self.network.transit_ns(serving.site, self.site)
        if way_ns is not None:
            loop = self.network.loop
            loop.call_at_ns(loop.now_ns + way_ns, _settle, future, reply, context=loop.outside)


def _settle(future: asyncio.Future[Answer], reply: Answer | MeshError) -> None:
    if future.done():
        return
    if isinstance(reply, MeshError):
        future.set_exception(reply)
    else:
        future.set_result(reply)
