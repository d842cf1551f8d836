"""Comparing over gRPC with mutual TLS: messages survive, and identities count as for streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.pki import CertificateAuthority, create_ca
from meshkit.clock import SystemClock
from meshkit.errors import NotAllowed, Unreachable
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Incarnation, Sequence
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from replicator.digest import BUCKETS_COUNT, Digest
from replicator.examiner import Examiner
from replicator.link.grpc import GrpcDialer, GrpcServer
from replicator.verify_messages import (
    Entries,
    GroupDigest,
    ToVerifier,
    VerifyRefusal,
    VerifyRefusalCode,
    VerifyRequest,
)
from replicator.wire.convert import BadMessage
from replicator.wire.verify import answer_bytes, answer_message, request_bytes, request_message
from tests.replicator.mesh import A, B, G
from tests.replicator.test_link_grpc import found, identity

REQUEST = VerifyRequest(
    target=B,
    source=A,
    incarnation=Incarnation("a-1"),
    group=G,
    epoch=Epoch(1),
    sequence=Sequence(1),
)
ITEMS = {f"/orders/{number:04d}".encode(): b"x" * number for number in range(200)}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("pki"))


@given(st.one_of(st.none(), st.frozensets(st.integers(0, BUCKETS_COUNT - 1), min_size=1)))
def test_a_request_survives_its_bytes(buckets: frozenset[int] | None) -> None:
    request = attrs.evolve(REQUEST, buckets=buckets)
    assert request_message(request_bytes(request)) == request


@given(st.binary(max_size=64))
def test_what_is_no_message_is_refused_and_nothing_else_happens(raw: bytes) -> None:
    for read in (request_message, answer_message):
        try:
            read(raw)
        except BadMessage:
            continue


@asynccontextmanager
async def source(authority: CertificateAuthority) -> AsyncIterator[tuple[MemoryStore, str]]:
    """A source with a group of some keys, that answers at the endpoint."""
    store = MemoryStore(clock=SystemClock())
    await found(store, MemoryStore(clock=SystemClock()))
    for key, value in ITEMS.items():
        await store.commit(Txn(operations=(Put(key, value),)))
    examiner = Examiner(store=store, cluster=A, incarnation=Incarnation("a-1"))
    server = GrpcServer(
        identity=identity(authority, "cluster", A), serve=_never, answer=examiner.answer
    )
    port = await server.start("127.0.0.1:0")
    try:
        yield store, f"127.0.0.1:{port}"
    finally:
        await server.stop()


async def _never(_connection: object, _peer: object) -> None:
    raise AssertionError("must not be served")


async def answers(
    authority: CertificateAuthority,
    endpoint: str,
    request: VerifyRequest,
    *,
    certificate: tuple[str, str] = ("cluster", "b"),
    expected: ClusterName = A,
) -> list[ToVerifier]:
    dialer = GrpcDialer(identity=identity(authority, *certificate))
    async with aclosing(dialer.ask(expected, endpoint, request)) as messages:
        return [message async for message in messages]


async def test_a_source_answers_with_its_digest_and_with_entries(
    authority: CertificateAuthority,
) -> None:
    async with source(authority) as (store, endpoint):
        head = (await store.status()).revision
        request = attrs.evolve(REQUEST, sequence=Sequence(head))

        (digest,) = await answers(authority, endpoint, request)
        assert isinstance(digest, GroupDigest)
        assert digest.digest == Digest.of(ITEMS.items())
        assert digest.prefixes == (b"/orders/",)

        every = attrs.evolve(request, buckets=frozenset(range(BUCKETS_COUNT)))
        keys = []
        for message in await answers(authority, endpoint, every):
            assert isinstance(message, Entries)
            keys += [key for key, _ in message.entries]
        assert keys == sorted(ITEMS)


async def test_a_source_answers_only_about_what_it_was(authority: CertificateAuthority) -> None:
    async with source(authority) as (store, endpoint):
        head = Sequence((await store.status()).revision)
        for changed, code in (
            ({"target": "c"}, VerifyRefusalCode.NOT_ALLOWED),
            ({"source": "c"}, VerifyRefusalCode.WRONG_SOURCE),
            ({"incarnation": "a-0"}, VerifyRefusalCode.WRONG_SOURCE),
            ({"epoch": 2}, VerifyRefusalCode.NOT_COMPARABLE),
            ({"sequence": 1}, VerifyRefusalCode.NOT_COMPARABLE),
        ):
            request = attrs.evolve(REQUEST, **{"sequence": head, **changed})
            (refusal,) = await answers(authority, endpoint, request)
            assert isinstance(refusal, VerifyRefusal)
            assert refusal.code is code, changed

        await store.compact(head)
        request = attrs.evolve(REQUEST, sequence=Sequence(head - 1))
        (refusal,) = await answers(authority, endpoint, request)
        assert isinstance(refusal, VerifyRefusal)
        assert refusal.code is VerifyRefusalCode.FAILED


async def test_a_peer_that_is_no_cluster_learns_nothing(authority: CertificateAuthority) -> None:
    async with source(authority) as (_, endpoint):
        with pytest.raises(NotAllowed):
            await answers(authority, endpoint, REQUEST, certificate=("operator", "eve"))


async def test_a_server_that_is_another_cluster_is_not_asked(
    authority: CertificateAuthority,
) -> None:
    async with source(authority) as (_, endpoint):
        with pytest.raises(NotAllowed, match="cluster/a"):
            await answers(authority, endpoint, REQUEST, expected=ClusterName("c"))


async def test_a_stranger_is_refused_by_tls(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    async with source(authority) as (_, endpoint):
        with pytest.raises((NotAllowed, Unreachable)):
            await answers(create_ca(tmp_path), endpoint, REQUEST)


def test_an_answer_survives_its_bytes() -> None:
    refusal = VerifyRefusal(code=VerifyRefusalCode.FAILED, text="why")
    assert answer_message(answer_bytes(refusal)) == refusal
