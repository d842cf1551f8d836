"""Claims about the etcd client which a review once found untrue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import attrs
import grpc
import grpc.aio
import pytest

from meshkit.clock import SystemClock
from meshkit.errors import OutcomeUnknown, Unreachable
from meshkit.store.etcd_channel import Endpoint, Method
from meshkit.store.etcd_errors import Subject
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.etcd_pool import EndpointPool, EtcdTimeouts, Kind

_TXN = Method(path="/etcdserverpb.KV/Txn", response=wire.TxnResponse)


class Silent(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Takes every request and answers none."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def service(self, _: Any) -> Any:
        async def never(_request: bytes, _context: Any) -> bytes:
            self.asked.set()
            await asyncio.Event().wait()
            return b""

        return grpc.unary_unary_rpc_method_handler(never)


@attrs.frozen(kw_only=True)
class Member:
    """A member that never answers, and the pool that is connected to it."""

    silent: Silent
    endpoint: Endpoint
    pool: EndpointPool

    def begin(self, kind: Kind) -> asyncio.Future[Any]:
        request, subject = wire.TxnRequest(), Subject(operation="commit")
        return asyncio.ensure_future(
            self.pool.call(_TXN, request, kind=kind, subject=subject, timeout_ms=2_000)
        )


@pytest.fixture
async def member() -> AsyncIterator[Member]:
    silent = Silent()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((silent,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    endpoint = Endpoint(target=f"127.0.0.1:{port}", tls=None)
    pool = EndpointPool(endpoints=[endpoint], clock=SystemClock(), timeouts=EtcdTimeouts())
    assert await endpoint.connected(budget_ms=2_000)
    endpoint.is_verified = True
    yield Member(silent=silent, endpoint=endpoint, pool=pool)
    await pool.close()
    await server.stop(None)


async def test_a_write_whose_connection_is_replaced_is_unknown_and_cancels_nobody(
    member: Member,
) -> None:
    """New TLS files close the connection under the requests on it.

    `CancelledError` in a task that nobody cancelled ends it without a trace: a task group takes
    it for a normal end, and upkeep, agent or chain would be missing for the rest of the term.
    """
    writing = member.begin(Kind.WRITE)
    await member.silent.asked.wait()
    await member.endpoint.close()
    await asyncio.wait({writing})

    assert not writing.cancelled()
    with pytest.raises(OutcomeUnknown):
        writing.result()


async def test_a_read_whose_connection_is_replaced_is_asked_again(member: Member) -> None:
    reading = member.begin(Kind.READ)
    await member.silent.asked.wait()
    await member.endpoint.close()
    await asyncio.wait({reading})

    assert not reading.cancelled()
    with pytest.raises(Unreachable):
        reading.result()


async def test_a_request_that_somebody_cancels_is_cancelled(member: Member) -> None:
    """The term is over: nothing may turn that into an error of etcd and go on."""
    writing = member.begin(Kind.WRITE)
    await member.silent.asked.wait()
    writing.cancel()
    await asyncio.wait({writing})

    assert writing.cancelled()
