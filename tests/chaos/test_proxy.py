"""The fault proxy does to connections what a network does: nothing, delay, or swallow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable

import attrs
import pytest

from chaos.dialers import process_of
from chaos.proxy import FaultProxy, Link

DEADLINE_S = 10
NOT_SOON_S = 0.1
"""For how long something that must not come is waited for."""


@attrs.define
class Rig:
    """A server that answers everything with the same, and a proxy in front of it."""

    link: Link
    proxy: FaultProxy
    heard: bytearray = attrs.field(factory=bytearray)
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(64 * 1024):
                self.heard += chunk
                writer.write(chunk)
                await writer.drain()
        self.ended.set()
        writer.close()


@attrs.frozen
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, line: bytes) -> None:
        self.writer.write(line + b"\n")

    async def hear(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return (await self.reader.readline()).strip()

    async def hears_nothing(self) -> bool:
        """Return whether nothing comes, and the connection is not ended either."""
        try:
            async with asyncio.timeout(NOT_SOON_S):
                await self.reader.readline()
        except TimeoutError:
            return True
        return False


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    link = Link(name="outside to a")

    async def always(_port: int) -> Link:
        return link

    proxy = FaultProxy(port=0, target=0, link_of=always)
    made = Rig(link, proxy)
    server = await asyncio.start_server(made.echo, "127.0.0.1", 0)
    proxy.target = server.sockets[0].getsockname()[1]
    async with proxy:
        yield made
    server.close()


@contextlib.asynccontextmanager
async def connected(rig: Rig) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_true():
            await asyncio.sleep(0.001)


async def test_a_whole_link_passes_everything_on_and_counts_it(rig: Rig) -> None:
    """Otherwise no run through it means anything."""
    async with connected(rig) as client:
        client.say(b"one")
        answer = await client.hear()

    assert answer == b"one"
    assert rig.link.passed_bytes == 2 * len(b"one\n")
    assert rig.link.withheld == 0


async def test_a_cut_link_swallows_what_is_sent_and_the_connection_stays(rig: Rig) -> None:
    """A black hole: neither side is told, and what was sent arrives when the link heals."""
    async with connected(rig) as client:
        client.say(b"one")
        await client.hear()
        rig.link.cut()
        before = rig.link.passed_bytes
        client.say(b"two")
        is_silent = await client.hears_nothing()
        passed = rig.link.passed_bytes - before
        withheld = rig.link.withheld
        heard = bytes(rig.heard)

        rig.link.heal()
        answer = await client.hear()

    assert is_silent
    assert (passed, withheld) == (0, 1)
    assert heard == b"one\n"
    assert answer == b"two"


async def test_an_answer_under_way_is_swallowed_too(rig: Rig) -> None:
    """Both directions are cut: what the far side says does not arrive either."""
    rig.link.delay_ms = 20
    async with connected(rig) as client:
        client.say(b"one")
        await until(lambda: bool(rig.heard))
        rig.link.cut()

        assert await client.hears_nothing()

        rig.link.heal()
        assert await client.hear() == b"one"


async def test_dialling_over_a_cut_link_is_neither_refused_nor_answered(rig: Rig) -> None:
    """As when packets vanish: the far side learns of it once the link is whole."""
    rig.link.cut()
    async with connected(rig) as client:
        client.say(b"one")
        await until(lambda: rig.link.withheld > 0)
        is_silent = await client.hears_nothing()
        heard = bytes(rig.heard)

        rig.link.heal()
        answer = await client.hear()

    assert is_silent
    assert heard == b""
    assert answer == b"one"


async def test_who_hangs_up_over_a_cut_link_is_not_heard(rig: Rig) -> None:
    """The far side goes on believing in a connection that has ended, until the link heals."""
    async with connected(rig) as client:
        client.say(b"one")
        await client.hear()
        rig.link.cut()
    await until(lambda: rig.link.withheld > 0)
    believed = not rig.ended.is_set()

    rig.link.heal()

    assert believed
    async with asyncio.timeout(DEADLINE_S):
        await rig.ended.wait()


async def test_a_reset_breaks_connections_at_once(rig: Rig) -> None:
    """The other kind of fault; a new connection goes through."""
    async with connected(rig) as client:
        client.say(b"one")
        await client.hear()

        rig.link.reset()

        assert await client.hear() == b""
    async with connected(rig) as another:
        another.say(b"two")
        assert await another.hear() == b"two"


async def test_a_delay_holds_each_byte_and_keeps_the_order(rig: Rig) -> None:
    """Each way takes the delay; what follows is not held back by what is under way."""
    loop = asyncio.get_running_loop()
    rig.link.delay_ms = 50
    async with connected(rig) as client:
        began = loop.time()
        for number in range(20):
            client.say(b"%d" % number)
        answers = [await client.hear() for _ in range(20)]
        took = loop.time() - began

    assert answers == [b"%d" % number for number in range(20)]
    assert 0.1 <= took < 20 * 0.05


async def test_large_things_pass_whole(rig: Rig) -> None:
    """More than all buffers on the way hold, to a client that is slow to begin to read."""
    large = os.urandom(8 * 1024 * 1024)
    async with connected(rig) as client:
        client.writer.write(large)
        await until(lambda: len(rig.heard) > 1024 * 1024)

        async with asyncio.timeout(DEADLINE_S):
            answer = await client.reader.readexactly(len(large))

    assert answer == large


async def test_who_cannot_be_told_apart_is_not_let_through(rig: Rig) -> None:
    """A connection of which nobody knows whose it is would go round the fault."""

    async def unknown(port: int) -> Link:
        raise LookupError(port)

    rig.proxy.link_of = unknown
    async with connected(rig) as client:
        assert await client.hear() == b""

    assert rig.heard == b""


async def test_the_process_that_dialled_is_found(rig: Rig) -> None:
    """Otherwise a region's links could not be told from those of its neighbour."""
    dialled: list[int] = []

    async def noted(port: int) -> Link:
        dialled.append(port)
        return rig.link

    rig.proxy.link_of = noted
    script = (
        f"import socket; c=socket.create_connection(('127.0.0.1', {rig.proxy.port})); c.recv(1)"
    )
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    try:
        async with connected(rig):
            await until(lambda: len(dialled) == 2)
            among = (os.getpid(), other.pid)
            found = {process_of(port, dialled=rig.proxy.port, among=among) for port in dialled}
            strangers = [process_of(p, dialled=rig.proxy.port, among=()) for p in dialled]
    finally:
        other.kill()
        await other.wait()

    assert found == set(among)
    assert strangers == [None, None]
