"""A fault proxy for TCP: passes on, delays or swallows what one place sends to another.

It knows nothing of what it carries, so TLS passes through it untouched, and it decides nothing: who
dialled is said by whoever made it (`dialers.py`), what is broken by whoever runs the fault.

A link that is cut is a black hole, not a closed door: connections stay open and new ones are
accepted, as by a host whose packets vanish, but not a byte goes through in either direction. What
was sent meanwhile is kept by the systems at both ends, which would send it again; so when the link
heals it arrives late, as it would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Self

import attrs

_LOOPBACK = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024
_CHUNKS_MAX = 64
"""Read from one side and not handed to the other yet; beyond that the sender has to wait."""
_CONNECTIONS_MAX = 2_000
"""At one proxy; what is dialled beyond is closed at once."""


@attrs.define(kw_only=True, eq=False)
class Link:
    """Everything that one place dials at another, in both directions, and what is wrong with it."""

    name: str
    delay_ms: float = 0.0
    """How long each byte is under way, either way."""
    passed_bytes: int = attrs.field(default=0, init=False)
    withheld: int = attrs.field(default=0, init=False)
    """What wanted to pass while the link was cut: the evidence that a cut took effect."""
    carrying: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    _whole: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._whole.set()

    @property
    def is_cut(self) -> bool:
        """Whether nothing goes through."""
        return not self._whole.is_set()

    def cut(self) -> None:
        """Let nothing through from now on; connections stay as they are."""
        self._whole.clear()

    def heal(self) -> None:
        """Let everything through again, beginning with what was sent meanwhile."""
        self._whole.set()

    def reset(self) -> None:
        """Break every connection there is."""
        for carrier in list(self.carrying):
            carrier.cancel()

    async def passable(self) -> None:
        """Wait until what has come may go on."""
        while self.is_cut:
            self.withheld += 1
            await self._whole.wait()


@attrs.define(kw_only=True, eq=False)
class FaultProxy:
    """Listens at one loopback port in front of another. Use as an async context manager.

    `link_of` is given the port of whoever dialled; `LookupError` closes the connection.
    """

    port: int
    target: int
    link_of: Callable[[int], Awaitable[Link]]
    _server: asyncio.Server | None = attrs.field(default=None, init=False)
    _carriers: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._serve, _LOOPBACK, self.port)
        if self.port == 0:
            self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop listening and break every connection."""
        assert self._server is not None, "it is entered before it is left"
        self._server.close()
        for carrier in list(self._carriers):
            carrier.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._carriers) >= _CONNECTIONS_MAX:
            writer.transport.abort()
            return
        carrier = asyncio.get_running_loop().create_task(self._admit(reader, writer))
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection over its link, once it is known which that is."""
        carrier = asyncio.current_task()
        assert carrier is not None, "it runs as a task"
        try:
            link = await self.link_of(int(writer.get_extra_info("peername")[1]))
        except LookupError:
            writer.transport.abort()
            return
        link.carrying.add(carrier)
        try:
            await self._carry(link, reader, writer)
        finally:
            link.carrying.discard(carrier)

    async def _carry(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ends = [writer]
        try:
            await link.passable()
            far_reader, far_writer = await asyncio.open_connection(_LOOPBACK, self.target)
            ends.append(far_writer)
            await _both(_pump(link, reader, far_writer), _pump(link, far_reader, writer))
        except OSError:
            # One side is gone. The other hears of it no sooner than of anything else.
            await link.passable()
        finally:
            for end in ends:
                end.transport.abort()


async def _both(*pumps: Coroutine[None, None, None]) -> None:
    """Run both directions; when one fails, so does the connection."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _ended(*tasks)


async def _pump(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one direction until it is ended from the near side.

    Raises:
        OSError: a side is gone.
    """
    # Nothing waits in here once it counts as passed: a cut would not reach it.
    writer.transport.set_write_buffer_limits(high=0)
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes | OSError]] = asyncio.Queue(_CHUNKS_MAX)
    reading = asyncio.ensure_future(_read(link, reader, queue))
    try:
        while True:
            due, chunk = await queue.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await link.passable()
            if isinstance(chunk, OSError):
                raise chunk
            if not chunk:
                writer.write_eof()
                return
            link.passed_bytes += len(chunk)
            writer.write(chunk)
            await writer.drain()
    finally:
        await _ended(reading)


async def _read(
    link: Link, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes | OSError]]
) -> None:
    """Queue what comes, each with the time at which it is due; nothing: the direction has ended."""
    loop = asyncio.get_running_loop()
    chunk: bytes | OSError = b"something"
    while chunk and not isinstance(chunk, OSError):
        try:
            chunk = await reader.read(_CHUNK_BYTES)
        except OSError as error:
            chunk = error
        await queue.put((loop.time() + link.delay_ms / 1000, chunk))


async def _ended(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
