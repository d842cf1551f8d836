"""One connection to one member of an etcd. It decides nothing: see `etcd_pool`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import grpc
import grpc.aio

from meshkit.errors import InvalidConfig
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # etcd ends connections that are pinged more often than every 5 s, or without a call.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
)


@attrs.frozen(kw_only=True)
class EtcdTls:
    """How to recognise etcd, and what to show it. Files are read again when they change."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def stamp(self) -> tuple[int, ...]:
        """Return something that changes when one of the files does."""
        files = [path for path in (self.ca, self.cert, self.key) if path is not None]
        return tuple(path.stat().st_mtime_ns for path in files)

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            InvalidConfig: one of them cannot be read.
        """
        try:
            return grpc.ssl_channel_credentials(
                root_certificates=self.ca.read_bytes(),
                private_key=None if self.key is None else self.key.read_bytes(),
                certificate_chain=None if self.cert is None else self.cert.read_bytes(),
            )
        except OSError as error:
            raise InvalidConfig(f"the TLS files of etcd cannot be read: {error}") from error


@attrs.frozen(kw_only=True)
class Method:
    """One remote call of etcd's API."""

    path: str
    response: Any
    is_stream: bool = False


AUTHENTICATE = Method(path="/etcdserverpb.Auth/Authenticate", response=wire.AuthenticateResponse)
STATUS = Method(path="/etcdserverpb.Maintenance/Status", response=wire.StatusResponse)
TIME_TO_LIVE = Method(
    path="/etcdserverpb.Lease/LeaseTimeToLive", response=wire.LeaseTimeToLiveResponse
)


@attrs.define(kw_only=True, eq=False)
class Endpoint:
    """One member's address, and the connection to it for single requests.

    Invariant: `is_verified` only while the connection on which the member showed its cluster id
    has not been seen broken.
    """

    target: str
    tls: EtcdTls | None
    version: str = ""
    is_verified: bool = False
    _channel: grpc.aio.Channel | None = attrs.field(default=None, init=False)
    _stamp: tuple[int, ...] = attrs.field(default=(), init=False)

    def open_channel(self, *, received_bytes_max: int = -1) -> grpc.aio.Channel:
        """Return a new connection, which nothing else uses; it takes no larger message."""
        options: list[tuple[str, Any]] = [
            *_OPTIONS,
            ("grpc.max_receive_message_length", received_bytes_max),
        ]
        if self.tls is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        if self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.aio.secure_channel(self.target, self.tls.credentials(), options=options)

    async def channel(self) -> grpc.aio.Channel:
        """Return the connection for single requests; a new one if the TLS files have changed."""
        if self._channel is not None and self.tls is not None and not self.is_ready():
            with contextlib.suppress(OSError):
                if self.tls.stamp() != self._stamp:
                    await self.close()
        if self._channel is None:
            self._channel = self.open_channel()
            self._stamp = () if self.tls is None else self.tls.stamp()
        return self._channel

    def is_ready(self) -> bool:
        """Return whether the connection stands, as far as anyone can tell."""
        if self._channel is None:
            return False
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def begin_connecting(self) -> None:
        """Start connecting and return at once."""
        (await self.channel()).get_state(try_to_connect=True)

    async def connected(self, *, budget_ms: int) -> bool:
        """Connect, and return whether that worked within the budget."""
        channel = await self.channel()
        state = channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        self.is_verified = False
        try:
            async with asyncio.timeout(budget_ms / 1000):
                while state is not grpc.ChannelConnectivity.READY:
                    if state in _FAILED_STATES:
                        return False
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return True

    async def send(
        self, method: Method, request: Any, *, timeout_ms: int, metadata: Sequence[tuple[str, str]]
    ) -> Any:
        """Send one request and return its one answer.

        Raises:
            AioRpcError: what the member said, or that the connection was closed under the request.
        """
        channel = await self.channel()
        make = channel.stream_unary if method.is_stream else channel.unary_unary
        call = make(
            method.path,
            request_serializer=_serialize,
            response_deserializer=method.response.FromString,
        )
        payload = iter((request,)) if method.is_stream else request
        try:
            return await call(payload, timeout=max(1, timeout_ms) / 1000, metadata=tuple(metadata))
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            raise closed_under_us() from None

    async def close(self) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        self.is_verified = False
        if channel is not None:
            await channel.close()


_FAILED_STATES = (
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)


def is_being_cancelled() -> bool:
    """Return whether somebody asked for the current task to end.

    gRPC raises `CancelledError` also in those whose connection was closed, by anybody. Passed on,
    it would end a task that nobody cancelled, without a trace.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def closed_under_us() -> grpc.aio.AioRpcError:
    """Return the error of a call whose connection was closed: it may have had an effect."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(
        grpc.StatusCode.CANCELLED, nothing, nothing, details="the connection was closed"
    )


def _serialize(message: Any) -> bytes:
    payload: bytes = message.SerializeToString()
    return payload


def parse_endpoints(endpoints: Iterable[str], tls: EtcdTls | None) -> list[Endpoint]:
    """Return the endpoints named by `host:port` or by URL.

    Raises:
        InvalidConfig: there is none, or one wants TLS and there is no CA to check it by.
    """
    found: list[Endpoint] = []
    for name in endpoints:
        if name.startswith("https://") and tls is None:
            raise InvalidConfig(f"{name} needs TLS, and no CA is configured")
        target = name.removeprefix("https://").removeprefix("http://").rstrip("/")
        found.append(Endpoint(target=target, tls=tls))
    if not found:
        raise InvalidConfig("no etcd endpoint is configured")
    return found
