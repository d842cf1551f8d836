"""A link in memory, for tests and simulation: it breaks when told to, and repeats what it may.

Connections keep order while they last, as TCP does. Loss is therefore always the loss of a tail:
`cut` drops what is under way, `sever` also what has arrived and was not taken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

from meshkit.asking import Answer, Question
from meshkit.asking_codec import answer_of, message_bytes, question_of
from meshkit.names import ClusterName
from meshkit.peer import PeerIdentity
from replicator.link.port import AnswerQuestion, AnswerVerify, LinkLost, Serve, TargetEnd
from replicator.messages import ToSource, ToTarget
from replicator.pulse import Pulse
from replicator.verify_messages import ToVerifier, VerifyRequest

T = TypeVar("T")
Out = TypeVar("Out")
In = TypeVar("In")

QUEUE_MAX = 256


class _Pipe(Generic[T]):
    def __init__(self) -> None:
        self.messages: deque[T] = deque()
        self.is_over = False
        self.pulse = Pulse()

    async def put(self, message: T) -> None:
        while len(self.messages) >= QUEUE_MAX and not self.is_over:
            await self.pulse.wait()
        if self.is_over:
            raise LinkLost("the link was cut")
        self.messages.append(message)
        self.pulse.beat()

    async def take(self) -> T:
        while not self.messages:
            if self.is_over:
                raise LinkLost("the link was cut")
            await self.pulse.wait()
        message = self.messages.popleft()
        self.pulse.beat()
        return message

    def end(self, *, drop: bool) -> None:
        self.is_over = True
        if drop:
            self.messages.clear()
        self.pulse.beat()


class _End(Generic[Out, In]):
    def __init__(self, outgoing: _Pipe[Out], incoming: _Pipe[In]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, message: Out) -> None:
        await self._outgoing.put(message)

    async def receive(self) -> In:
        return await self._incoming.take()

    async def close(self) -> None:
        self._outgoing.end(drop=False)
        self._incoming.end(drop=False)


class MemoryConnection:
    """One connection as the network sees it."""

    def __init__(self, target: ClusterName, source: ClusterName) -> None:
        self.target = target
        self.source = source
        self.to_source: _Pipe[ToSource] = _Pipe()
        self.to_target: _Pipe[ToTarget] = _Pipe()
        self.task: asyncio.Task[None] | None = None

    def break_off(self, *, drop: bool = True) -> None:
        """End the connection; with `drop`, what has not been taken is lost."""
        self.to_source.end(drop=drop)
        self.to_target.end(drop=drop)


class MemoryNetwork:
    """Sources by endpoint, and every connection between them and targets."""

    def __init__(self) -> None:
        self.connections: list[MemoryConnection] = []
        self.is_reachable: Callable[[ClusterName, ClusterName], bool] = lambda _t, _s: True
        self._servers: dict[str, Serve] = {}
        self._answerers: dict[str, AnswerVerify] = {}
        self._advisers: dict[str, AnswerQuestion] = {}

    def listen(
        self,
        endpoint: str,
        serve: Serve,
        *,
        answer: AnswerVerify | None = None,
        advise: AnswerQuestion | None = None,
    ) -> None:
        """Serve connections dialled at `endpoint`, and answer those who compare or ask."""
        self._servers[endpoint] = serve
        if answer is not None:
            self._answerers[endpoint] = answer
        if advise is not None:
            self._advisers[endpoint] = advise

    def hang_up(self, endpoint: str) -> None:
        """No longer serve at `endpoint`."""
        self._servers.pop(endpoint, None)
        self._answerers.pop(endpoint, None)
        self._advisers.pop(endpoint, None)

    def dialer(self, target: ClusterName) -> MemoryDialer:
        """Return the dialer of one target."""
        return MemoryDialer(self, target)

    def asker(self, peer: PeerIdentity) -> MemoryAsker:
        """Return what asks replicators as a peer."""
        return MemoryAsker(self, peer)

    async def advise(
        self, peer: PeerIdentity, cluster: ClusterName, endpoint: str, question: Question
    ) -> Answer:
        """Return what is answered at `endpoint`, by way of the bytes that would be sent."""
        advise = self._advisers.get(endpoint)
        who = ClusterName(peer.name)
        if advise is None or (peer.role == "cluster" and not self.is_reachable(who, cluster)):
            raise LinkLost(f"nobody answers at {endpoint}")
        answer = await advise(question_of(message_bytes(question)), peer)
        return answer_of(message_bytes(answer))

    def connect(self, target: ClusterName, source: ClusterName, endpoint: str) -> TargetEnd:
        """Open a connection."""
        serve = self._servers.get(endpoint)
        if serve is None or not self.is_reachable(target, source):
            raise LinkLost(f"nobody answers at {endpoint}")
        connection = MemoryConnection(target, source)
        self.connections.append(connection)
        source_end: _End[ToTarget, ToSource] = _End(connection.to_target, connection.to_source)
        connection.task = asyncio.get_running_loop().create_task(
            self._serve(connection, serve, source_end)
        )
        return _End(connection.to_source, connection.to_target)

    async def ask(
        self, target: ClusterName, source: ClusterName, endpoint: str, request: VerifyRequest
    ) -> AsyncGenerator[ToVerifier, None]:
        """Yield what is answered at `endpoint`; breaks where the network does."""
        answer = self._answerers.get(endpoint)
        if answer is None or not self.is_reachable(target, source):
            raise LinkLost(f"nobody answers at {endpoint}")
        async for message in answer(request, target):
            if not self.is_reachable(target, source):
                raise LinkLost("the link was cut")
            yield message

    def break_all(self, *, drop: bool = True) -> None:
        """End every connection."""
        for connection in self.connections:
            connection.break_off(drop=drop)
        self.connections = [c for c in self.connections if c.task and not c.task.done()]

    async def close(self) -> None:
        """End every connection and wait for those who served them."""
        self._servers.clear()
        tasks = [c.task for c in self.connections if c.task is not None]
        self.break_all()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(
        self, connection: MemoryConnection, serve: Serve, end: _End[ToTarget, ToSource]
    ) -> None:
        try:
            await serve(end, connection.target)
        finally:
            connection.break_off(drop=False)


class MemoryDialer:
    """Dials as one target. Satisfies `Dialer`."""

    def __init__(self, network: MemoryNetwork, target: ClusterName) -> None:
        self._network = network
        self._target = target

    async def dial(self, source: ClusterName, endpoint: str) -> TargetEnd:
        """Return a connection to `source`, if anybody serves at `endpoint`."""
        return self._network.connect(self._target, source, endpoint)

    def ask(
        self, source: ClusterName, endpoint: str, request: VerifyRequest
    ) -> AsyncGenerator[ToVerifier, None]:
        """Yield the answer to one request, if anybody answers at `endpoint`."""
        return self._network.ask(self._target, source, endpoint, request)


class MemoryAsker:
    """Asks as one peer. Satisfies `AskRegion`."""

    def __init__(self, network: MemoryNetwork, peer: PeerIdentity) -> None:
        self._network = network
        self._peer = peer

    async def ask(self, cluster: ClusterName, endpoint: str, question: Question) -> Answer:
        """Return the answer, if anybody answers at `endpoint`."""
        return await self._network.advise(self._peer, cluster, endpoint, question)
