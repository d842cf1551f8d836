"""Puts to etcd for a fraction of what a gRPC library costs: one connection, frames made by hand.

A benchmark shares its machine with what it measures. At 2,000 writes a second a client of
`grpc.aio` takes half a core; this one a tenth. It knows just enough of HTTP/2 (RFC 9113) to send
`Put` to an etcd and to see that it was answered, and is of no use for anything else.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

from meshkit.config import EtcdConfig
from meshkit.protobuf_bytes import delimited

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_HEAD_BYTES = 9
_WINDOW_BYTES = 65_535
"""What a connection may have sent before it was given more (RFC 9113, 6.9.2)."""
_RECEIVED_MAX = (1 << 31) - 1 - _WINDOW_BYTES

_STREAMS_MAX = 200
"""Puts under way: an etcd with TLS takes 250 of a connection, and refuses more."""
_NO_TABLE, _NO_PUSH = (1, 0), (2, 0)


class PutFailed(Exception):
    """etcd did not answer a put as it should; a benchmark cannot go on."""


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    size = len(content)
    return struct.pack(">BHBBI", size >> 16, size & 0xFFFF, kind, flags, stream) + content


def _settings(*pairs: tuple[int, int]) -> bytes:
    return _frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def _headers(authority: str) -> bytes:
    """Return the header block of every request, with nothing remembered between them (HPACK)."""

    def text(value: str) -> bytes:
        raw = value.encode()
        assert len(raw) < 127, "lengths of one byte"
        return bytes((len(raw),)) + raw

    return b"".join(
        (
            b"\x83\x87",  # :method POST, :scheme https
            b"\x04" + text("/etcdserverpb.KV/Put"),
            b"\x01" + text(authority),
            b"\x0f\x10" + text("application/grpc"),
            b"\x00" + text("te") + text("trailers"),
        )
    )


class Puts(asyncio.Protocol):
    """One connection to an etcd. `put` calls back when the put is acknowledged."""

    def __init__(self, authority: str) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._block = _headers(authority)
        self._transport: asyncio.Transport | None = None
        self._stream = 1
        self._window = _WINDOW_BYTES
        self._waiting: deque[tuple[bytes, Callable[[], None]]] = deque()
        self._done: dict[int, Callable[[], None]] = {}
        self._answered: set[int] = set()
        self._read = bytearray()

    @classmethod
    async def connect(cls, config: EtcdConfig) -> Puts:
        """Return a connection to the first endpoint."""
        url = urlsplit(config.endpoints[0])
        assert url.hostname is not None, "an endpoint names its host"
        assert url.port is not None, "and its port"
        context = ssl.create_default_context(cafile=str(config.ca))
        context.check_hostname = False
        if config.cert is not None and config.key is not None:
            context.load_cert_chain(config.cert, config.key)
        context.set_alpn_protocols(["h2"])
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(
            lambda: cls(url.netloc), url.hostname, url.port, ssl=context
        )
        return made

    def put(self, key: bytes, value: bytes, done: Callable[[], None]) -> None:
        """Send a put; `done` is called once etcd has committed it."""
        message = delimited(b"\x0a", key) + delimited(b"\x12", value)
        self._waiting.append((b"\x00" + struct.pack(">I", len(message)) + message, done))
        self._send()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    # --- what asyncio tells --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to speak HTTP/2."""
        self._transport = cast("asyncio.Transport", transport)
        more = _frame(_WINDOW, 0, 0, struct.pack(">I", _RECEIVED_MAX))
        self._transport.write(_PREFACE + _settings(_NO_TABLE, _NO_PUSH) + more)

    def data_received(self, data: bytes) -> None:
        """Take in what has arrived, frame by frame."""
        read = self._read
        read += data
        at = 0
        while len(read) - at >= _HEAD_BYTES:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", read, at)
            end = at + _HEAD_BYTES + (high << 16 | low)
            if len(read) < end:
                break
            self._take(kind, flags, stream, bytes(read[at + _HEAD_BYTES : end]))
            at = end
        del read[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will be answered."""
        if not self.ended.done():
            self.ended.set_result(None)

    # --- frames --------------------------------------------------------------------------------

    def _send(self) -> None:
        assert self._transport is not None
        out: list[bytes] = []
        while self._waiting and len(self._done) < _STREAMS_MAX:
            if len(self._waiting[0][0]) > self._window:
                break
            body, done = self._waiting.popleft()
            self._window -= len(body)
            self._done[self._stream] = done
            out.append(_frame(_HEADERS, _END_HEADERS, self._stream, self._block))
            out.append(_frame(_DATA, _END_STREAM, self._stream, body))
            self._stream += 2
        if out:
            self._transport.write(b"".join(out))

    def _take(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        assert self._transport is not None
        if kind == _DATA and content:
            self._answered.add(stream)
        elif kind == _WINDOW and stream == 0:
            self._window += struct.unpack(">I", content)[0]
            self._send()
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, content))
        elif kind in (_RESET, _GOAWAY):
            self._fail(f"frame {kind} on stream {stream}: {content!r}")
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            if stream not in self._answered:
                # An error is told in the headers alone (gRPC over HTTP/2, "Trailers-Only").
                self._fail(f"no answer on stream {stream}: {content!r}")
                return
            self._answered.discard(stream)
            self._done.pop(stream)()
            self._send()

    def _fail(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(PutFailed(why))
        self.close()
