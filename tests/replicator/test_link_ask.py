"""Asking a replicator over gRPC with mutual TLS: who it is and who may are both verified."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.pki import CertificateAuthority, create_ca
from meshkit.asker import RegionSilent, ask_leader
from meshkit.asking import (
    Answer,
    Change,
    DeclineCode,
    Declined,
    EntriesPage,
    ListEntries,
    Question,
    ReplayChanges,
)
from meshkit.asking_codec import answer_of, message_bytes, question_of
from meshkit.errors import InvalidInput, NotAllowed, NotFound, Refused, Unreachable
from meshkit.names import ClusterName, GroupName
from meshkit.peer import PeerIdentity
from meshkit.peer_channel import GrpcAsker
from replicator.link.grpc import GrpcServer
from tests.replicator.mesh import A, G
from tests.replicator.test_link_grpc import identity

QUESTION = ListEntries(group=G, limit=5)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("pki"))


@given(st.binary(), st.none() | st.binary(), st.none() | st.binary())
def test_a_change_survives_its_bytes(key: bytes, here: bytes | None, there: bytes | None) -> None:
    change = Change(key=key, here=here, there=there)
    question = ReplayChanges(group=GroupName("g"), changes=(change,))

    assert question_of(message_bytes(question)) == question


@given(st.binary(max_size=64) | st.sampled_from([b'{"kind":"ListEntries"}', b'{"kind":"None"}']))
def test_what_is_no_message_is_refused_and_nothing_else_happens(raw: bytes) -> None:
    for read in (question_of, answer_of):
        with pytest.raises(InvalidInput):
            read(raw)


@asynccontextmanager
async def answering(
    authority: CertificateAuthority, answer: Answer
) -> AsyncIterator[tuple[str, list[PeerIdentity]]]:
    peers: list[PeerIdentity] = []

    async def advise(question: Question, peer: PeerIdentity) -> Answer:
        assert question == QUESTION
        peers.append(peer)
        return answer

    server = GrpcServer(identity=identity(authority, "cluster", A), serve=_never, advise=advise)
    port = await server.start("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{port}", peers
    finally:
        await server.stop()


async def _never(_connection: object, _peer: ClusterName | None) -> None:
    raise AssertionError("nobody streams here")


async def test_a_coordinator_is_answered_and_known_by_its_certificate(
    authority: CertificateAuthority,
) -> None:
    asker = GrpcAsker(identity(authority, "coordinator", "c1"))
    async with answering(authority, EntriesPage()) as (endpoint, peers):
        assert await asker.ask(A, endpoint, QUESTION) == EntriesPage()

    assert peers == [PeerIdentity(role="coordinator", name="c1")]


async def test_nothing_is_asked_of_somebody_else(authority: CertificateAuthority) -> None:
    """Application data goes to the cluster that was meant, or nowhere."""
    asker = GrpcAsker(identity(authority, "coordinator", "c1"))
    async with answering(authority, EntriesPage()) as (endpoint, peers):
        with pytest.raises(NotAllowed):
            await asker.ask(ClusterName("another"), endpoint, QUESTION)

    assert not peers


async def test_a_stranger_is_not_answered(authority: CertificateAuthority, tmp_path: Path) -> None:
    stranger = GrpcAsker(identity(create_ca(tmp_path), "coordinator", "c1"))
    async with answering(authority, EntriesPage()) as (endpoint, peers):
        with pytest.raises((NotAllowed, Unreachable)):
            await stranger.ask(A, endpoint, QUESTION)

    assert not peers


async def test_the_leader_is_found_at_whichever_endpoint_it_is(
    authority: CertificateAuthority,
) -> None:
    asker = GrpcAsker(identity(authority, "coordinator", "c1"))
    standby = Declined(code=DeclineCode.NOT_LEADING, text="stands by")
    async with (
        answering(authority, standby) as (first, _),
        answering(authority, EntriesPage()) as (second, _),
    ):
        found = await ask_leader(asker, A, (first, second), QUESTION, EntriesPage)
        with pytest.raises(RegionSilent, match="stands by"):
            await ask_leader(asker, A, (first,), QUESTION, EntriesPage)

    assert found == EntriesPage()


@pytest.mark.parametrize(
    ("code", "error"), [(DeclineCode.NOT_FOUND, NotFound), (DeclineCode.NOT_ALLOWED, Refused)]
)
async def test_what_the_leader_declines_is_not_asked_elsewhere(
    authority: CertificateAuthority, code: DeclineCode, error: type[Refused]
) -> None:
    asker = GrpcAsker(identity(authority, "coordinator", "c1"))
    declined = Declined(code=code, text="no")
    async with (
        answering(authority, declined) as (first, _),
        answering(authority, EntriesPage()) as (second, peers),
    ):
        with pytest.raises(error, match="no"):
            await ask_leader(asker, A, (first, second), QUESTION, EntriesPage)

    assert not peers


async def test_a_standing_connection_is_used_again_and_dialled_anew_when_it_broke(
    authority: CertificateAuthority,
) -> None:
    """Promises are asked for every second: not with two handshakes each time."""
    asker = GrpcAsker(identity(authority, "cluster", "b"), stands=True)
    try:
        async with answering(authority, EntriesPage()) as (endpoint, peers):
            for _ in range(3):
                assert await asker.ask(A, endpoint, QUESTION) == EntriesPage()
            assert len(asker._idle) == 1
        with pytest.raises(Unreachable):
            await asker.ask(A, endpoint, QUESTION)
        assert not asker._idle
    finally:
        await asker.close()

    assert peers == [PeerIdentity(role="cluster", name="b")] * 3
