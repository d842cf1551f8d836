"""gRPC channels to a peer of whom we know who it has to be.

gRPC does not show the server's certificate, so a connection of its own looks at it first.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

import grpc

from meshkit.asking import Answer, Question
from meshkit.asking_codec import answer_of, message_bytes
from meshkit.errors import NotAllowed, Unreachable
from meshkit.identity import IdentityFiles, peer_of_der
from meshkit.names import ClusterName
from meshkit.peer import PeerIdentity

DIAL_MS_MAX = 3_000
ASK_MS_MAX = 15_000
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
ASK_METHOD = "/meshkit.replication.v1.Replication/Ask"
REPLICATOR_ROLE = "cluster"

_REFUSED_CODES = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


async def open_channel(
    identity: IdentityFiles,
    endpoint: str,
    expected: PeerIdentity,
    *,
    options: Sequence[tuple[str, int]] = (),
) -> grpc.aio.Channel:
    """Return a connected channel to the peer at `endpoint` (`host:port`); close it after use.

    Raises:
        Unreachable: nobody answered there.
        NotAllowed: it is somebody else.
    """
    try:
        await asyncio.wait_for(_check_server(identity, endpoint, expected), DIAL_MS_MAX / 1000)
    except (TimeoutError, OSError) as error:
        raise Unreachable(f"{endpoint} does not answer: {error}") from error
    channel = grpc.aio.secure_channel(
        endpoint, identity.grpc_channel_credentials(), options=list(options)
    )
    try:
        await asyncio.wait_for(channel.channel_ready(), DIAL_MS_MAX / 1000)
    except TimeoutError as error:
        await channel.close()
        raise Unreachable(f"{endpoint} does not answer") from error
    except asyncio.CancelledError:
        await channel.close()
        raise
    return channel


async def _check_server(identity: IdentityFiles, endpoint: str, expected: PeerIdentity) -> None:
    host, _, port = endpoint.rpartition(":")
    context = identity.client_context()
    context.set_alpn_protocols(["h2"])
    try:
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
    except ssl.SSLError as error:
        raise NotAllowed(f"{endpoint} is not to be trusted: {error}") from error
    try:
        secured = writer.get_extra_info("ssl_object")
        der = secured.getpeercert(binary_form=True)
    finally:
        writer.close()
    peer = peer_of_der(der, trust_domain=identity.trust_domain)
    if peer != expected:
        raise NotAllowed(f"{endpoint} is {peer}, not {expected}")


class GrpcAsker:
    """Asks replicators over gRPC with mutual TLS. Satisfies `AskRegion`.

    With `stands` a connection on which somebody answered is kept for the next question. gRPC may
    renew it without our seeing whose it is then, so that is only for answers that say who answers.
    """

    def __init__(self, identity: IdentityFiles, *, stands: bool = False) -> None:
        self._identity = identity
        self._stands = stands
        self._idle: dict[tuple[ClusterName, str], grpc.aio.Channel] = {}

    async def close(self) -> None:
        """Close whatever is kept."""
        idle, self._idle = self._idle, {}
        for channel in idle.values():
            await channel.close()

    async def ask(self, cluster: ClusterName, endpoint: str, question: Question) -> Answer:
        """Return the answer of the replicator of `cluster` at `endpoint`.

        Raises:
            Unreachable: nobody answered there. What was asked may have been done.
            NotAllowed: it is not a replicator of that cluster, or it does not accept us.
        """
        channel = self._idle.pop((cluster, endpoint), None) or await self._dial(cluster, endpoint)
        try:
            raw = await _asked(channel, endpoint, question)
        except BaseException:
            await channel.close()
            raise
        if self._stands and (cluster, endpoint) not in self._idle:
            self._idle[cluster, endpoint] = channel
        else:
            await channel.close()
        return answer_of(raw)

    async def _dial(self, cluster: ClusterName, endpoint: str) -> grpc.aio.Channel:
        options = (
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        )
        expected = PeerIdentity(role=REPLICATOR_ROLE, name=cluster)
        return await open_channel(self._identity, endpoint, expected, options=options)


async def _asked(channel: grpc.aio.Channel, endpoint: str, question: Question) -> bytes:
    try:
        raw: bytes = await channel.unary_unary(ASK_METHOD)(
            message_bytes(question), timeout=ASK_MS_MAX / 1000
        )
    except grpc.aio.AioRpcError as error:
        if error.code() in _REFUSED_CODES:
            text = error.details() or f"{endpoint} does not accept us"
            raise NotAllowed(text) from error
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            text = f"the replicator at {endpoint} is too old to be asked"
            raise Unreachable(text) from error
        raise Unreachable(f"{endpoint} did not answer: {error.details()}") from error
    return raw
