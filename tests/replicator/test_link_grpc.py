"""Streams over gRPC with mutual TLS, between memory stores and between real etcds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import pytest

from cli.pki import CertificateAuthority, create_ca, issue
from cli.sandbox.etcd import EtcdProcess
from fencing import fence as fences
from fencing.fence_view import view_of, view_reads
from meshkit.clock import SystemClock
from meshkit.codec import encode
from meshkit.errors import NotAllowed, Unreachable
from meshkit.identity import IdentityFiles
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation
from meshkit.regional import Fence, FenceMode, SegmentOpened, SegmentScope
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Put, Txn, prefix_range
from replicator.inbound import Inbound
from replicator.limits import Limits
from replicator.link.grpc import GrpcDialer, GrpcServer
from replicator.link.port import LinkLost
from replicator.messages import Hello, Refusal, RefusalCode
from replicator.outbound import Outbound
from tests.conftest import EtcdStarter
from tests.replicator.mesh import ALWAYS, A, B, G

CLOCK = SystemClock()
LIMITS = Limits(redial_ms_min=20, redial_ms_max=200)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("pki"))


def identity(authority: CertificateAuthority, role: str, name: str) -> IdentityFiles:
    files = issue(authority, role, name)
    return IdentityFiles(ca=files.ca, cert=files.cert, key=files.key)


@attrs.define(eq=False)
class Side:
    """One region's streams over real links."""

    name: ClusterName
    store: Store
    authority: CertificateAuthority
    port: int = 0
    outbound: Outbound | None = None
    inbound: Inbound | None = None
    server: GrpcServer | None = None
    tasks: list[asyncio.Task[None]] = attrs.field(factory=list)

    async def start(self, sources: dict[ClusterName, tuple[str, ...]]) -> None:
        files = identity(self.authority, "cluster", self.name)
        self.outbound = Outbound(
            store=self.store,
            clock=CLOCK,
            cluster=self.name,
            incarnation=Incarnation(f"{self.name}-1"),
            limits=LIMITS,
        )
        self.inbound = Inbound(
            store=self.store,
            clock=CLOCK,
            cluster=self.name,
            dialer=GrpcDialer(identity=files, limits=LIMITS),
            limits=LIMITS,
        )
        self.inbound.set_sources(sources)
        self.server = GrpcServer(identity=files, serve=self.outbound.serve, limits=LIMITS)
        self.port = await self.server.start(f"127.0.0.1:{self.port}")
        loop = asyncio.get_running_loop()
        self.tasks = [
            loop.create_task(self.outbound.run()),
            loop.create_task(self.inbound.run()),
        ]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        if self.server is not None:
            await self.server.stop()


async def until(claim: Callable[[], bool], *, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def found(active: Store, passive: Store) -> None:
    """Open the group's first epoch at one store and join it at the other."""
    fence = Fence(group=G, epoch=Epoch(1), mode=FenceMode.OPEN, token=NO_TOKEN)
    opened = SegmentOpened(group=G, epoch=Epoch(1), token=NO_TOKEN)
    scope = SegmentScope(group=G, epoch=Epoch(1), prefixes=("/orders/",))
    operations = (
        Put(RegionalKeys.fence(G), encode(fence)),
        Put(RegionalKeys.segment_opened(G, Epoch(1)), encode(opened)),
        Put(RegionalKeys.segment_scope(G, Epoch(1)), encode(scope)),
    )
    await active.commit(Txn(operations=operations))
    outcome = await passive.commit(Txn(operations=view_reads(G)))
    assert isinstance(outcome, Committed)
    txn = fences.join(
        view_of(G, outcome.reads),
        source=A,
        epoch=Epoch(1),
        leader=ALWAYS,
        reason="new member",
    )
    await passive.commit(txn)


async def scope(store: Store) -> dict[bytes, bytes]:
    return {i.key: i.value for i in (await store.range(prefix_range(b"/orders/"))).items}


@contextlib.asynccontextmanager
async def two_regions(
    authority: CertificateAuthority, a: Store, b: Store
) -> AsyncIterator[tuple[Side, Side]]:
    one, other = Side(A, a, authority), Side(B, b, authority)
    await one.start({})
    await other.start({A: (f"127.0.0.1:{one.port}",)})
    try:
        yield one, other
    finally:
        await other.stop()
        await one.stop()


async def test_a_stream_runs_over_grpc_with_mutual_tls(authority: CertificateAuthority) -> None:
    """The whole way: handshake, copy, frames, acknowledgements, lag."""
    a, b = MemoryStore(clock=CLOCK), MemoryStore(clock=CLOCK)
    await a.commit(Txn(operations=(Put(b"/orders/0", b"x" * 5000),)))
    async with two_regions(authority, a, b) as (one, other):
        await found(a, b)
        for n in range(200):
            await a.commit(Txn(operations=(Put(b"/orders/%d" % (n % 50), b"%d" % n),)))
        assert other.inbound is not None
        await asyncio.wait_for(other.inbound.wait_follow(G, 1), 10)
        assert one.outbound is not None
        lag = await asyncio.wait_for(one.outbound.wait_caught_up(B, lag_ms_max=200), 10)

        assert await scope(b) == await scope(a)
        assert lag.lag_ms is not None


async def test_a_source_that_hangs_up_is_dialled_again(authority: CertificateAuthority) -> None:
    """A restarted replicator is found again without anybody's help."""
    a, b = MemoryStore(clock=CLOCK), MemoryStore(clock=CLOCK)
    async with two_regions(authority, a, b) as (one, other):
        await found(a, b)
        assert other.inbound is not None
        await asyncio.wait_for(other.inbound.wait_follow(G, 1), 10)
        for round_ in range(3):
            await one.stop()
            await a.commit(Txn(operations=(Put(b"/orders/%d" % round_, b"while away"),)))
            await one.start({})
            item = Put(b"/orders/%d-back" % round_, b"1")
            await a.commit(Txn(operations=(item,)))

        await until(lambda: b.server.history.lookup(item.key) is not None)
        assert await scope(b) == await scope(a)


async def refusal_of(
    authority: CertificateAuthority, *, certificate: str, target: str, source: str
) -> Refusal:
    outbound = Outbound(
        store=MemoryStore(clock=CLOCK), clock=CLOCK, cluster=A, incarnation=Incarnation("a-1")
    )
    running = asyncio.ensure_future(outbound.run())
    server = GrpcServer(identity=identity(authority, "cluster", A), serve=outbound.serve)
    port = await server.start("127.0.0.1:0")
    dialer = GrpcDialer(identity=identity(authority, "cluster", certificate))
    try:
        connection = await dialer.dial(A, f"127.0.0.1:{port}")
        hello = Hello(target=ClusterName(target), source=ClusterName(source), credit_bytes=1000)
        await connection.send(hello)
        message = await asyncio.wait_for(connection.receive(), 5)
        assert isinstance(message, Refusal)
        await connection.close()
        return message
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.stop()


async def test_a_target_must_be_who_its_certificate_says(authority: CertificateAuthority) -> None:
    """A cluster's certificate is good for that cluster only."""
    refusal = await refusal_of(authority, certificate="c", target="b", source="a")

    assert refusal.code is RefusalCode.WRONG_IDENTITY


async def test_a_target_that_looks_for_another_source_is_told_so(
    authority: CertificateAuthority,
) -> None:
    """A swapped endpoint in a descriptor must not join two logs."""
    refusal = await refusal_of(authority, certificate="b", target="b", source="c")

    assert refusal.code is RefusalCode.WRONG_SOURCE


async def _never(_connection: object, _peer: object) -> None:
    raise AssertionError("must not be served")


async def test_a_server_that_is_another_cluster_is_not_dialled(
    authority: CertificateAuthority,
) -> None:
    """Who answers must be who was looked for."""
    server = GrpcServer(identity=identity(authority, "cluster", "c"), serve=_never)
    port = await server.start("127.0.0.1:0")
    dialer = GrpcDialer(identity=identity(authority, "cluster", "b"))
    try:
        with pytest.raises(NotAllowed, match="cluster/c"):
            await dialer.dial(A, f"127.0.0.1:{port}")
    finally:
        await server.stop()


async def test_a_peer_that_is_no_cluster_is_refused(authority: CertificateAuthority) -> None:
    """An operator's certificate opens no stream."""
    server = GrpcServer(identity=identity(authority, "cluster", A), serve=_never)
    port = await server.start("127.0.0.1:0")
    dialer = GrpcDialer(identity=identity(authority, "operator", "eve"))
    connection = await dialer.dial(A, f"127.0.0.1:{port}")
    try:
        with pytest.raises((NotAllowed, LinkLost)):
            await asyncio.wait_for(connection.receive(), 5)
    finally:
        await connection.close()
        await server.stop()


async def test_a_stranger_is_refused_by_tls(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """A certificate of another authority is worth nothing."""
    stranger = create_ca(tmp_path)
    server = GrpcServer(identity=identity(authority, "cluster", A), serve=_never)
    port = await server.start("127.0.0.1:0")
    dialer = GrpcDialer(identity=identity(stranger, "cluster", "b"))
    try:
        with pytest.raises((NotAllowed, Unreachable)):
            await dialer.dial(A, f"127.0.0.1:{port}")
    finally:
        await server.stop()


async def _put_all(store: Store, count: int, *, at_once: int = 32) -> None:
    gate = asyncio.Semaphore(at_once)

    async def put(n: int) -> None:
        async with gate:
            await store.commit(Txn(operations=(Put(b"/orders/%05d" % n, b"v" * 200),)))

    await asyncio.gather(*(put(n) for n in range(count)))


@pytest.mark.etcd
async def test_five_thousand_keys_reach_a_real_etcd_through_broken_links(
    authority: CertificateAuthority, start_etcd: EtcdStarter, etcd_binary: object
) -> None:
    """Real stores, real links, a replicator killed twice on the way: equal in the end."""
    processes: list[EtcdProcess] = [start_etcd(etcd_binary), start_etcd(etcd_binary)]
    stores = [EtcdStore.connect([process.client_url]) for process in processes]
    a, b = stores
    try:
        async with two_regions(authority, a, b) as (one, other):
            await found(a, b)
            writing = asyncio.ensure_future(_put_all(a, 5_000))
            for _ in range(2):
                await asyncio.sleep(0.2)
                await one.stop()
                await one.start({})
            await writing
            assert other.inbound is not None
            await asyncio.wait_for(other.inbound.wait_follow(G, 1), 20)
            last = await a.get(b"/orders/04999")
            assert last is not None
            await asyncio.wait_for(
                other.inbound.wait_applied(A, Incarnation("a-1"), last.mod_revision),  # type: ignore[arg-type]
                20,
            )
            head = (await a.range((b"/orders/", b""), keys_only=True)).revision
            await asyncio.wait_for(
                other.inbound.wait_applied(A, Incarnation("a-1"), head),  # type: ignore[arg-type]
                20,
            )

            assert await scope(b) == await scope(a)
            assert len(await scope(b)) == 5_000
    finally:
        for store in stores:
            await store.close()
