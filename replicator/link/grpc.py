"""The link over gRPC: a bidirectional stream for each pair and a method to compare, mutual TLS.

The server accepts only peers whose certificate names them as `cluster/<name>`; whether that is
the cluster that says hello is checked by `Outbound`. The client looks at the server's certificate
on a connection of its own before it dials, since gRPC does not show it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NoReturn

import grpc
import structlog

from meshkit.asking import DeclineCode, Declined
from meshkit.asking_codec import message_bytes, question_of
from meshkit.errors import InvalidInput, NotAllowed, Unreachable
from meshkit.identity import IdentityFiles, peer_of_pem
from meshkit.names import ClusterName
from meshkit.peer import PeerIdentity
from meshkit.peer_channel import ASK_METHOD, REPLICATOR_ROLE, open_channel
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.link.port import AnswerQuestion, AnswerVerify, LinkLost, Serve, TargetEnd
from replicator.messages import ToSource, ToTarget
from replicator.verify_messages import ToVerifier, VerifyRequest
from replicator.wire.convert import (
    BadMessage,
    source_bytes,
    source_message,
    target_bytes,
    target_message,
)
from replicator.wire.verify import answer_bytes, answer_message, request_bytes, request_message

_log = structlog.get_logger()

METHOD = "/meshkit.replication.v1.Replication/Stream"
VERIFY_METHOD = "/meshkit.replication.v1.Replication/Verify"
ROLE = REPLICATOR_ROLE
CONNECTION_AGE_MS_MAX = 30 * 60 * 1000
"""Connections are renewed so often, so that renewed and revoked certificates count."""
KEEPALIVE_MS = 10_000
STOP_GRACE_MS = 200

_REFUSED_CODES = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.max_send_message_length", limits.message_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", limits.silence_ms_max),
        ("grpc.http2.max_pings_without_data", 0),
    ]


class GrpcServer:
    """Listens for targets; hands each connection to `serve` and each comparison to `answer`.

    It lives as long as the process; both say NotLeading while the process does not lead.
    """

    def __init__(
        self,
        *,
        identity: IdentityFiles,
        serve: Serve,
        answer: AnswerVerify | None = None,
        advise: AnswerQuestion | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._identity = identity
        self._serve = serve
        self._answer = answer
        self._advise = advise
        self._limits = limits
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> int:
        """Listen on `address` (`host:port`; port 0 takes any free one) and return the port.

        Raises:
            Unreachable: the address cannot be listened on.
        """
        options = [
            *_options(self._limits),
            ("grpc.max_connection_age_ms", CONNECTION_AGE_MS_MAX),
            ("grpc.max_connection_age_grace_ms", KEEPALIVE_MS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
            ("grpc.so_reuseport", 0),
        ]
        server = grpc.aio.server(options=options)
        handlers = {METHOD: grpc.stream_stream_rpc_method_handler(self._accept)}
        if self._answer is not None:
            handlers[VERIFY_METHOD] = grpc.unary_stream_rpc_method_handler(self._verify)
        if self._advise is not None:
            handlers[ASK_METHOD] = grpc.unary_unary_rpc_method_handler(self._ask)
        server.add_generic_rpc_handlers((_Handler(handlers),))
        try:
            port = server.add_secure_port(address, self._identity.grpc_server_credentials())
        except RuntimeError as error:
            raise Unreachable(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._server = server
        return int(port)

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            await self._server.stop(STOP_GRACE_MS / 1000)
            self._server = None

    async def _accept(self, _requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        peer = await self._admitted(context)
        await self._serve(_SourceConnection(context), peer)

    async def _verify(self, raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        assert self._answer is not None, "served only with it"
        peer = await self._admitted(context)
        try:
            request = request_message(raw)
        except BadMessage as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        async for message in self._answer(request, peer):
            await context.write(answer_bytes(message))

    async def _ask(self, raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        assert self._advise is not None, "served only with it"
        peer = await self._verified(context)
        try:
            question = question_of(raw)
        except InvalidInput as error:
            return message_bytes(Declined(code=DeclineCode.UNKNOWN_QUESTION, text=str(error)))
        return message_bytes(await self._advise(question, peer))

    async def _admitted(self, context: grpc.aio.ServicerContext[Any, Any]) -> ClusterName:
        peer = await self._verified(context)
        if peer.role != ROLE:
            await self._refuse(context, f"{peer} is not a cluster")
        return ClusterName(peer.name)

    async def _verified(self, context: grpc.aio.ServicerContext[Any, Any]) -> PeerIdentity:
        certificates = context.auth_context().get("x509_pem_cert", [])
        if len(certificates) != 1:
            return await self._refuse(context, "the peer showed no certificate")
        try:
            return peer_of_pem(certificates[0], trust_domain=self._identity.trust_domain)
        except NotAllowed as error:
            return await self._refuse(context, str(error))

    async def _refuse(self, context: grpc.aio.ServicerContext[Any, Any], why: str) -> NoReturn:
        _log.warning("peer.refused", why=why, peer=context.peer())
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        raise NotAllowed(why)


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves the methods there are."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method, or None."""
        return self._handlers.get(handler_call_details.method)


class _SourceConnection:
    """The source's end, over a server's call."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    async def send(self, message: ToTarget) -> None:
        try:
            await self._context.write(target_bytes(message))
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise LinkLost(f"the target has gone: {error}") from error

    async def receive(self) -> ToSource:
        try:
            raw = await self._context.read()
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise LinkLost(f"the target has gone: {error}") from error
        if raw is grpc.aio.EOF:
            raise LinkLost("the target hung up")
        return source_message(raw)

    async def close(self) -> None:
        """Nothing to do: the call ends when it is no longer served."""


class GrpcDialer:
    """Dials sources as the cluster that the identity names. Satisfies `Dialer`."""

    def __init__(self, *, identity: IdentityFiles, limits: Limits = DEFAULT_LIMITS) -> None:
        self._identity = identity
        self._limits = limits

    async def dial(self, source: ClusterName, endpoint: str) -> TargetEnd:
        """Return a connection to the replicator of `source` at `endpoint` (`host:port`).

        Raises:
            Unreachable: nobody answered there.
            NotAllowed: it is not a replicator of `source`, or it does not accept us.
        """
        channel = await self._channel(source, endpoint)
        return _TargetConnection(channel, channel.stream_stream(METHOD)())

    async def ask(
        self, source: ClusterName, endpoint: str, request: VerifyRequest
    ) -> AsyncGenerator[ToVerifier, None]:
        """Yield the answer of the replicator of `source` at `endpoint` to one request.

        Raises:
            Unreachable: nobody answered there, or not to the end.
            NotAllowed: it is not a replicator of `source`, or it does not accept us.
        """
        channel = await self._channel(source, endpoint)
        call = channel.unary_stream(VERIFY_METHOD)(request_bytes(request))
        try:
            while True:
                try:
                    raw = await call.read()
                except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
                    raise _lost(error) from error
                if raw is grpc.aio.EOF:
                    return
                yield answer_message(raw)
        finally:
            call.cancel()
            await channel.close()

    async def _channel(self, source: ClusterName, endpoint: str) -> grpc.aio.Channel:
        expected = PeerIdentity(role=ROLE, name=source)
        try:
            return await open_channel(
                self._identity, endpoint, expected, options=_options(self._limits)
            )
        except Unreachable as error:
            raise LinkLost(str(error)) from error

    async def close(self) -> None:
        """Nothing is kept between connections; each closes its own channel."""


class _TargetConnection:
    """The target's end, over a client's call."""

    def __init__(
        self, channel: grpc.aio.Channel, call: grpc.aio.StreamStreamCall[Any, Any]
    ) -> None:
        self._channel = channel
        self._call = call

    async def send(self, message: ToSource) -> None:
        try:
            await self._call.write(source_bytes(message))
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise _lost(error) from error

    async def receive(self) -> ToTarget:
        try:
            raw = await self._call.read()
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise _lost(error) from error
        if raw is grpc.aio.EOF:
            raise LinkLost("the source hung up")
        return target_message(raw)

    async def close(self) -> None:
        """End the call and the channel under it."""
        self._call.cancel()
        await self._channel.close()


def _lost(error: BaseException) -> NotAllowed | LinkLost:
    if isinstance(error, grpc.aio.AioRpcError) and error.code() in _REFUSED_CODES:
        return NotAllowed(error.details() or "the source does not accept us")
    return LinkLost(f"the source has gone: {error}")
