"""The link port: an ordered, reliable connection while it lasts, between a target and a source."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

from meshkit.asking import Answer, Question
from meshkit.errors import Unreachable
from meshkit.names import ClusterName
from meshkit.peer import PeerIdentity
from replicator.messages import ToSource, ToTarget
from replicator.verify_messages import ToVerifier, VerifyRequest

Out_contra = TypeVar("Out_contra", contravariant=True)
In_co = TypeVar("In_co", covariant=True)


class LinkLost(Unreachable):
    """The connection to the other replicator is over."""

    code = "link_lost"


class Connection(Protocol[Out_contra, In_co]):
    """One end of a connection. What was sent arrives in order, or the connection is over."""

    async def send(self, message: Out_contra) -> None:
        """Hand over a message; waits while the other end does not take any.

        Raises:
            LinkLost: the connection is over.
        """

    async def receive(self) -> In_co:
        """Return the next message.

        Raises:
            LinkLost: the connection is over.
        """

    async def close(self) -> None:
        """End the connection; messages handed over may still arrive."""


TargetEnd = Connection[ToSource, ToTarget]
SourceEnd = Connection[ToTarget, ToSource]


class Dialer(Protocol):
    """Opens connections from this target to sources."""

    async def dial(self, source: ClusterName, endpoint: str) -> TargetEnd:
        """Return a connection to the replicator of `source` at `endpoint`.

        Raises:
            Unreachable: nobody answered there.
            NotAllowed: the other side is not who it should be, or does not accept us.
        """

    def ask(
        self, source: ClusterName, endpoint: str, request: VerifyRequest
    ) -> AsyncGenerator[ToVerifier, None]:
        """Yield the answer of the replicator of `source` at `endpoint` to one request.

        Raises:
            Unreachable: nobody answered there, or not to the end.
            NotAllowed: the other side is not who it should be, or does not accept us.
        """


Serve = Callable[[SourceEnd, ClusterName | None], Awaitable[None]]
"""Serves one connection until it ends; told the peer's verified cluster, if the link knows it."""

AnswerVerify = Callable[[VerifyRequest, ClusterName | None], AsyncIterator[ToVerifier]]
"""Answers one request to compare; told the peer's verified cluster, if the link knows it."""

AnswerQuestion = Callable[[Question, PeerIdentity], Awaitable[Answer]]
"""Answers one question beside the streams; told who the link has verified the peer to be."""
