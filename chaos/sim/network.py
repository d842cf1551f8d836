"""The network between sites: delays, losses, one-way partitions; and the links between replicators.

A message is on its way in the world outside of the processes: it arrives although its sender has
been killed or stopped since, and it waits where its receiver is stopped.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

import attrs

from chaos.sim.loop import NS_PER_MS, Domain, VirtualLoop
from meshkit.names import ClusterName
from replicator.link.port import AnswerQuestion, AnswerVerify, LinkLost, Serve, TargetEnd
from replicator.messages import ToSource, ToTarget
from replicator.pulse import Pulse
from replicator.verify_messages import ToVerifier, VerifyRequest

T = TypeVar("T")
Out = TypeVar("Out")
In = TypeVar("In")

Site = str

IN_FLIGHT_MAX = 64
"""Messages in one direction of a link, sent and not yet taken."""

BREAKS_AFTER_MS_MAX = 2_500
"""A link that lost a message is over for both ends, each within this."""


@attrs.frozen(kw_only=True)
class Weather:
    """How bad the network is as such, beside partitions."""

    near_ms: float = 0.5
    far_ms: float = 5.0
    jitter: float = 0.5
    """A delay is drawn up to so much longer, as a part of itself."""
    spike: float = 0.0
    """Chance that a message takes `spike_ms` more."""
    spike_ms: float = 400.0
    loss: float = 0.0
    """Chance that a message is lost."""


@attrs.define(kw_only=True, eq=False)
class Network:
    """Who reaches whom, and how long it takes."""

    loop: VirtualLoop
    rng: random.Random
    weather: Weather
    _cut: set[tuple[Site, Site]] = attrs.field(factory=set)
    _links: list[Link] = attrs.field(factory=list)
    _serving: dict[str, Serving] = attrs.field(factory=dict)
    lost: int = 0

    def cut(self, here: Site, there: Site) -> None:
        """Lose everything on its way from here to there, until healed."""
        self._cut.add((here, there))

    def heal(self, here: Site, there: Site) -> None:
        """Undo `cut`."""
        self._cut.discard((here, there))

    def calm(self) -> None:
        """End every partition and all bad weather."""
        self._cut.clear()
        self.weather = attrs.evolve(self.weather, loss=0.0, spike=0.0)

    def is_cut(self, here: Site, there: Site) -> bool:
        """Return whether nothing gets from here to there."""
        return (here, there) in self._cut

    def transit_ns(self, here: Site, there: Site) -> int | None:
        """Return how long one message takes that is sent now, or None if it gets lost."""
        weather, rng = self.weather, self.rng
        if (here, there) in self._cut or (weather.loss and rng.random() < weather.loss):
            self.lost += 1
            return None
        delay_ms = weather.near_ms if here == there else weather.far_ms
        delay_ms *= 1 + weather.jitter * rng.random()
        if weather.spike and rng.random() < weather.spike:
            delay_ms += weather.spike_ms * rng.random()
        return int(delay_ms * NS_PER_MS)

    # --- links between replicators -------------------------------------------------------------

    def listen(self, endpoint: str, serving: Serving) -> None:
        """Serve connections that are dialled at `endpoint`, and questions that are asked there."""
        self._serving[endpoint] = serving

    def hang_up(self, endpoint: str, *, domain: Domain) -> None:
        """The process that served there is gone, and with it every link it had."""
        self._serving.pop(endpoint, None)
        for link in self._links:
            if domain in (link.target_domain, link.source_domain):
                link.doom()

    def dialer(self, cluster: ClusterName, *, site: Site, domain: Domain) -> SimDialer:
        """Return the dialer of one process."""
        return SimDialer(network=self, cluster=cluster, site=site, domain=domain)

    async def connect(self, dialer: SimDialer, endpoint: str) -> TargetEnd:
        """Open a link, if somebody serves there and a message and its answer get through."""
        serving = await self.reach(dialer.site, endpoint)
        link = Link(
            network=self,
            target=dialer.site,
            source=serving.site,
            target_domain=dialer.domain,
            source_domain=serving.domain,
        )
        self._links = [other for other in self._links if not other.is_over]
        self._links.append(link)
        self.loop.create_task(
            link.serve(serving.serve, dialer.cluster), context=serving.domain.context
        )
        return link.target_end

    async def reach(self, site: Site, endpoint: str) -> Serving:
        """Return who serves at `endpoint`, after a round trip.

        Raises:
            LinkLost: nobody, or the network is cut.
        """
        serving = self._serving.get(endpoint)
        there = site if serving is None else serving.site
        ways = (self.transit_ns(site, there), self.transit_ns(there, site))
        lost_ns = BREAKS_AFTER_MS_MAX * NS_PER_MS // 2
        await sleep_ns(self.loop, sum(lost_ns if way is None else way for way in ways))
        if serving is None or None in ways or self._serving.get(endpoint) is not serving:
            raise LinkLost(f"nobody answers at {endpoint}")
        return serving

    def break_links(self) -> None:
        """End every link, losing what is on its way."""
        for link in self._links:
            link.doom()


@attrs.frozen(kw_only=True, eq=False)
class Serving:
    """A replicator that can be dialled."""

    site: Site
    domain: Domain
    serve: Serve
    answer: AnswerVerify
    advise: AnswerQuestion


@attrs.frozen(kw_only=True)
class SimDialer:
    """Dials as one process. Satisfies `replicator.link.port.Dialer`."""

    network: Network
    cluster: ClusterName
    site: Site
    domain: Domain

    async def dial(self, source: ClusterName, endpoint: str) -> TargetEnd:
        """Return a link to whoever serves at `endpoint`."""
        return await self.network.connect(self, endpoint)

    async def ask(
        self, source: ClusterName, endpoint: str, request: VerifyRequest
    ) -> AsyncGenerator[ToVerifier, None]:
        """Yield the answer to one request to compare; lost with any message of it."""
        serving = await self.network.reach(self.site, endpoint)
        async for message in serving.answer(request, self.cluster):
            way_ns = self.network.transit_ns(serving.site, self.site)
            if way_ns is None:
                raise LinkLost("the link was cut")
            await sleep_ns(self.network.loop, way_ns)
            yield message


class Pipe(Generic[T]):
    """One direction of a link: messages arrive in order, or the link is over."""

    def __init__(self, network: Network, here: Site, there: Site, doom: Callable[[], None]) -> None:
        self.is_over = False
        self._network = network
        self._here, self._there = here, there
        self._doom = doom
        self._arrived: deque[T] = deque()
        self._in_flight = 0
        self._last_ns = 0
        self._pulse = Pulse()

    async def put(self, message: T) -> None:
        """Send, once the other end has taken enough."""
        while self._in_flight + len(self._arrived) >= IN_FLIGHT_MAX and not self.is_over:
            await self._pulse.wait()
        if self.is_over:
            raise LinkLost("the link was cut")
        loop = self._network.loop
        way_ns = self._network.transit_ns(self._here, self._there)
        if way_ns is None:
            self._doom()
            return
        self._in_flight += 1
        self._last_ns = max(self._last_ns, loop.now_ns + way_ns)
        loop.call_at_ns(self._last_ns, self._arrive, message, context=loop.outside)

    async def take(self) -> T:
        """Return the next message."""
        while not self._arrived:
            if self.is_over:
                raise LinkLost("the link was cut")
            await self._pulse.wait()
        message = self._arrived.popleft()
        self._pulse.beat()
        return message

    def end(self) -> None:
        """Take nothing more in."""
        self.is_over = True
        self._pulse.beat()

    def _arrive(self, message: T) -> None:
        self._in_flight -= 1
        if not self.is_over:
            self._arrived.append(message)
            self._pulse.beat()


class Link:
    """One connection between two replicators."""

    def __init__(
        self,
        *,
        network: Network,
        target: Site,
        source: Site,
        target_domain: Domain,
        source_domain: Domain,
    ) -> None:
        self.target_domain = target_domain
        self.source_domain = source_domain
        self._network = network
        self._is_doomed = False
        self._to_source: Pipe[ToSource] = Pipe(network, target, source, self.doom)
        self._to_target: Pipe[ToTarget] = Pipe(network, source, target, self.doom)
        self.target_end: TargetEnd = End(self._to_source, self._to_target)
        self.source_end: End[ToTarget, ToSource] = End(self._to_target, self._to_source)

    @property
    def is_over(self) -> bool:
        """Whether neither direction lives."""
        return self._to_source.is_over and self._to_target.is_over

    async def serve(self, serve: Serve, peer: ClusterName) -> None:
        """Run the source's side."""
        try:
            await serve(self.source_end, peer)
        finally:
            await self.source_end.close()

    def doom(self) -> None:
        """End it soon: each end notices at a time of its own, and until then hears nothing new."""
        if self._is_doomed:
            return
        self._is_doomed = True
        loop = self._network.loop
        for pipe in (self._to_source, self._to_target):
            after_ms = self._network.rng.uniform(0, BREAKS_AFTER_MS_MAX)
            due_ns = loop.now_ns + int(after_ms * NS_PER_MS)
            loop.call_at_ns(due_ns, pipe.end, context=loop.outside)


class End(Generic[Out, In]):
    """One end of a link. Satisfies `replicator.link.port.Connection`."""

    def __init__(self, outgoing: Pipe[Out], incoming: Pipe[In]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, message: Out) -> None:
        """Hand over a message."""
        await self._outgoing.put(message)

    async def receive(self) -> In:
        """Return the next message."""
        return await self._incoming.take()

    async def close(self) -> None:
        """End the link."""
        self._outgoing.end()
        self._incoming.end()


async def sleep_ns(loop: VirtualLoop, duration_ns: int) -> None:
    """Return after so much true time."""
    future: asyncio.Future[None] = loop.create_future()
    timer = loop.call_at_ns(loop.now_ns + duration_ns, _wake, future)
    try:
        await future
    finally:
        timer.cancel()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
