"""What only a real etcd can show: members lost and found, TLS, users, and its known traps."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cli.sandbox.etcd import EtcdCluster, EtcdProcess, EtcdServerTls, plan_cluster
from meshkit.errors import (
    InvalidConfig,
    NoSpace,
    NotAllowed,
    OutcomeUnknown,
    StoreReplaced,
    Unreachable,
)
from meshkit.etcd_binary import EtcdBinary
from meshkit.ordinals import Revision
from meshkit.store.etcd import EtcdStore, EtcdTimeouts, EtcdTls
from meshkit.store.etcd_errors import Judgement, judge
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.etcd_pool import EndpointPool
from meshkit.store.etcd_watch import EtcdWatch
from meshkit.store.port import Progress, RevisionChanges, WatchItem
from meshkit.store.txn import WHOLE_STORE, Committed, Put, Txn, prefix_range
from tests.conftest import FAST_FLAGS, etcd_params
from tests.contract.conftest import DEADLINE_S, soon

pytestmark = pytest.mark.etcd

QUICK = EtcdTimeouts(request_ms=3_000, connect_ms=500, watch_patience_ms=8_000)

newest = pytest.mark.parametrize("binary", etcd_params(newest_only=True))


def put(key: bytes, value: bytes = b"x") -> Txn:
    return Txn(operations=(Put(key, value),))


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., EtcdStore]]:
    """Connect to endpoints; every store is closed afterwards."""
    stores: list[EtcdStore] = []

    def connect(*endpoints: str, **options: Any) -> EtcdStore:
        store = EtcdStore.connect(endpoints, **{"timeouts": QUICK, **options})
        stores.append(store)
        return store

    yield connect
    for store in stores:
        await store.close()


# A member is lost


async def test_a_write_to_a_server_that_is_down_was_certainly_not_sent(
    fresh_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(fresh_etcd.endpoint)
    await store.commit(put(b"a"))
    fresh_etcd.kill()
    with pytest.raises(Unreachable):
        await store.get(b"a")

    with pytest.raises(Unreachable):
        await store.commit(put(b"b"))

    await asyncio.to_thread(fresh_etcd.restart)
    assert isinstance(await store.commit(put(b"b")), Committed)


async def test_a_write_whose_reply_is_lost_has_an_unknown_outcome(
    fresh_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    """The request is in a frozen server's socket: it will be applied when it thaws, or never."""
    store = connect(fresh_etcd.endpoint)
    await store.commit(put(b"a"))
    fresh_etcd.pause()

    with pytest.raises(OutcomeUnknown):
        await store.commit(put(b"b"), timeout_ms=200)

    fresh_etcd.resume()


async def test_a_server_killed_under_a_write_leaves_the_outcome_unknown(
    fresh_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(fresh_etcd.endpoint)
    await store.commit(put(b"a"))
    fresh_etcd.pause()
    writing = asyncio.ensure_future(store.commit(put(b"b")))
    await asyncio.wait({writing}, timeout=0.1)

    fresh_etcd.kill()

    with pytest.raises(OutcomeUnknown):
        await writing


async def test_closing_the_store_under_a_call_cancels_nobody(
    fresh_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(fresh_etcd.endpoint)
    await store.commit(put(b"a"))
    fresh_etcd.pause()
    writing = asyncio.ensure_future(store.commit(put(b"b")))
    reading = asyncio.ensure_future(store.get(b"b"))
    await asyncio.wait({writing, reading}, timeout=0.1)

    await store.close()

    with pytest.raises(OutcomeUnknown):
        await writing
    with pytest.raises(Unreachable):
        await reading


async def test_a_watch_goes_on_after_its_server_was_killed_and_came_back(
    fresh_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(fresh_etcd.endpoint)
    first = await store.commit(put(b"a"))

    async with store.watch(WHOLE_STORE, start=first.revision) as watch:
        seen = [(await soon(watch)).revision]
        fresh_etcd.kill()
        await asyncio.to_thread(fresh_etcd.restart)
        for _ in range(3):
            await store.commit(put(b"a"))
        seen += [(await soon(watch)).revision for _ in range(3)]

    assert seen == [first.revision + n for n in range(4)]


async def test_a_watch_gives_up_when_its_patience_is_over(
    fresh_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    timeouts = attrs.evolve(QUICK, connect_ms=100, watch_patience_ms=300)
    store = connect(fresh_etcd.endpoint, timeouts=timeouts)

    async with store.watch(WHOLE_STORE, start=Revision(1)) as watch:
        fresh_etcd.kill()
        with pytest.raises(Unreachable):
            await soon(watch)
        with pytest.raises(StopAsyncIteration):
            await soon(watch)


@pytest.fixture(params=etcd_params(newest_only=True))
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EtcdCluster]:
    cluster = plan_cluster(binary=request.param, directory=tmp_path, flags=FAST_FLAGS)
    cluster.start()
    yield cluster
    for member in cluster.members:
        member.kill()


async def test_calls_and_watches_move_to_another_member(
    cluster: EtcdCluster, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(*cluster.endpoints)
    first = await store.commit(put(b"a"))

    async with store.watch(WHOLE_STORE, start=first.revision) as watch:
        await soon(watch)
        cluster.members[0].kill()
        value = await store.get(b"a")
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    second = await store.commit(put(b"a", b"again"))
                    break
                except (OutcomeUnknown, Unreachable):
                    continue
        revisions = [(await soon(watch)).revision]

    assert value is not None
    assert revisions[0] == first.revision + 1
    assert second.revision >= revisions[0]


async def test_a_read_does_not_wait_for_a_frozen_member(
    cluster: EtcdCluster, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(*cluster.endpoints)
    await store.commit(put(b"a"))
    cluster.members[0].pause()

    async with asyncio.timeout(DEADLINE_S):
        found = await store.get(b"a")

    assert found is not None


async def test_a_cluster_without_a_quorum_refuses_reads_and_writes(
    cluster: EtcdCluster, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(*cluster.endpoints, timeouts=attrs.evolve(QUICK, request_ms=1_500))
    await store.commit(put(b"a"))
    for member in cluster.members[1:]:
        member.kill()

    with pytest.raises((OutcomeUnknown, Unreachable)):
        await store.commit(put(b"b"))
    with pytest.raises(Unreachable):
        await store.get(b"a")


async def test_a_member_with_an_older_raft_term_is_not_believed(
    shared_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    """After a long pause a member may answer from before the last election (etcd #20418)."""
    store = connect(shared_etcd.endpoint, timeouts=attrs.evolve(QUICK, request_ms=300))
    await store.get(b"a")

    store.pool.raft_term += 1

    with pytest.raises(Unreachable, match="lags behind"):
        await store.get(b"a")


async def fill(store: EtcdStore) -> None:
    while True:
        await store.commit(put(b"full", b"x" * 100_000))


@newest
async def test_a_full_etcd_refuses_puts_and_raises_its_alarm(
    binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess], connect: Any
) -> None:
    etcd = start_etcd(binary, flags=attrs.evolve(FAST_FLAGS, quota_bytes=200_000))
    store = connect(etcd.endpoint)

    with pytest.raises(NoSpace):
        await asyncio.wait_for(fill(store), DEADLINE_S)

    assert (await store.status()).alarms == ("NOSPACE",)


# The cluster is another one


async def test_a_cluster_that_took_the_place_of_ours_is_refused(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess], connect: Any
) -> None:
    """A store rebuilt at the same address has forgotten every fence."""
    ours = start_etcd(etcd_binary)
    store = connect(ours.endpoint)
    await store.commit(put(b"a"))
    ours.kill()
    start_etcd(etcd_binary, client_port=ours.client_port)

    with pytest.raises(StoreReplaced):
        await store.get(b"a")
    with pytest.raises(StoreReplaced):
        await store.commit(put(b"b"))

    other = connect(ours.endpoint)
    assert await other.get(b"b") is None


async def test_a_cluster_other_than_the_one_expected_is_refused(
    shared_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(shared_etcd.endpoint, cluster_id=1)

    with pytest.raises(StoreReplaced):
        await store.commit(put(b"a"))


# TLS and users


class Pki:
    """A test CA, and what it has signed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.ca = self._write("ca.pem", builder.sign(self._key, hashes.SHA256()))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternatives: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            self._builder(subject, key)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        key_file = self.directory / f"{name}.key"
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return self._write(f"{name}.pem", certificate), key_file

    def _builder(self, subject: x509.Name, key: Any) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        file = self.directory / name
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return file


@newest
async def test_tls_takes_the_right_ca_and_a_client_certificate(
    binary: EtcdBinary, tmp_path: Path, start_etcd: Callable[..., EtcdProcess], connect: Any
) -> None:
    ours, theirs = Pki(tmp_path / "ours"), Pki(tmp_path / "theirs")
    cert, key = ours.issue("server")
    tls = EtcdServerTls(cert=cert, key=key, trusted_ca=ours.ca, demands_client_cert=True)
    etcd = start_etcd(binary, flags=attrs.evolve(FAST_FLAGS, tls=tls))
    client_cert, client_key = ours.issue("client")
    rogue_cert, rogue_key = theirs.issue("rogue")
    good = EtcdTls(ca=ours.ca, cert=client_cert, key=client_key)

    store = connect(etcd.client_url, tls=good)
    outcome = await store.commit(put(b"a"))
    async with store.watch(WHOLE_STORE, start=outcome.revision) as watch:
        item = await soon(watch)

    assert isinstance(item, RevisionChanges)
    for bad in (
        EtcdTls(ca=ours.ca),
        EtcdTls(ca=theirs.ca, cert=client_cert, key=client_key),
        EtcdTls(ca=ours.ca, cert=rogue_cert, key=rogue_key),
        EtcdTls(ca=ours.ca, cert=client_cert, key=client_key, server_name="elsewhere"),
        None,
    ):
        endpoint = etcd.client_url if bad else etcd.endpoint
        with pytest.raises(Unreachable):
            await connect(endpoint, tls=bad).get(b"a")


async def test_an_endpoint_that_wants_tls_is_not_spoken_to_without() -> None:
    with pytest.raises(InvalidConfig):
        EtcdStore.connect(["https://127.0.0.1:2379"])
    with pytest.raises(InvalidConfig):
        EtcdStore.connect([])


async def enable_auth(etcd: EtcdProcess) -> None:
    """Make a root user, and one who may use the keys under `mine/` only."""
    for words in (
        ["user", "add", "root:pw"],
        ["user", "grant-role", "root", "root"],
        ["role", "add", "mine"],
        ["role", "grant-permission", "mine", "--prefix=true", "readwrite", "mine/"],
        ["user", "add", "me:secret"],
        ["user", "grant-role", "me", "mine"],
        ["auth", "enable"],
    ):
        process = await asyncio.create_subprocess_exec(
            str(etcd.binary.etcdctl),
            f"--endpoints={etcd.endpoint}",
            *words,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={"ETCDCTL_API": "3"},
        )
        _, errors = await process.communicate()
        assert process.returncode == 0, errors


async def test_a_user_may_do_what_its_role_allows_and_its_token_is_renewed(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess], connect: Any
) -> None:
    flags = attrs.evolve(FAST_FLAGS, extra=("--bcrypt-cost", "4"))
    etcd = start_etcd(etcd_binary, flags=flags)
    await connect(etcd.endpoint).commit(put(b"theirs"))
    await enable_auth(etcd)
    me = connect(etcd.endpoint, username="me", password="secret")
    mine = (b"mine/", b"mine0")

    outcome = await me.commit(put(b"mine/a"))
    assert (await me.status()).revision == outcome.revision
    with pytest.raises(NotAllowed):
        await me.commit(put(b"theirs"))
    with pytest.raises(NotAllowed):
        await me.get(b"theirs")
    with pytest.raises(NotAllowed):
        async with me.watch((b"theirs", b""), start=Revision(1)):
            pass
    for nobody in ({}, {"username": "me", "password": "wrong"}):
        with pytest.raises(NotAllowed):
            await connect(etcd.endpoint, **nobody).get(b"mine/a")

    # A restart forgets every simple token, as their expiry does.
    async with me.watch(mine, start=outcome.revision) as watch:
        await soon(watch)
        etcd.kill()
        await asyncio.to_thread(etcd.restart)
        second = await me.commit(put(b"mine/a"))
        item = await soon(watch)
    me.pool._token = "forged.1"
    async with me.watch(mine, start=outcome.revision) as watch:
        again = await soon(watch)

    assert item.revision == second.revision
    assert again.revision == outcome.revision


# Traps


async def test_a_watch_resumes_from_events_and_never_from_a_header(
    shared_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    """During catch-up the header runs ahead: resuming from it skips events in silence."""
    store = connect(shared_etcd.endpoint)
    first = await store.commit(put(b"resume/a"))
    for _ in range(5):
        last = await store.commit(put(b"resume/a"))

    async with store.watch((b"resume/", b"resume0"), start=first.revision) as watch:
        assert watch.resume_at == first.revision
        await watch._drop_stream()
        seen = [(await soon(watch)).revision]
        watch._ready.clear()
        watch.resume_at = Revision(first.revision + 1)
        await watch._drop_stream()
        seen += [(await soon(watch)).revision for _ in range(5)]

    assert seen == list(range(first.revision, last.revision + 1))


def a_watch(*, is_progress_sound: bool, resume_at: int = 5) -> EtcdWatch:
    pool = EndpointPool(endpoints=[], clock=Any, timeouts=QUICK)
    watch = EtcdWatch(pool=pool, key_range=WHOLE_STORE, resume_at=Revision(resume_at))
    watch._is_progress_sound = is_progress_sound
    return watch


def event(revision: int, key: bytes = b"k") -> wire.Event:
    return wire.Event(kv=wire.KeyValue(key=key, mod_revision=revision, version=1))


def header(revision: int) -> wire.ResponseHeader:
    return wire.ResponseHeader(revision=revision)


def test_progress_of_a_server_with_the_request_progress_bug_is_never_shown() -> None:
    """S28: before 3.5.8 a progress notification may run ahead of events still to come."""
    watch = a_watch(is_progress_sound=False)

    watch._take_in(wire.WatchResponse(header=header(99)))

    assert list(watch._ready) == []
    assert watch.resume_at == 5


def test_progress_of_a_sound_server_moves_the_resume_point() -> None:
    watch = a_watch(is_progress_sound=True)

    watch._take_in(wire.WatchResponse(header=header(99)))
    watch._take_in(wire.WatchResponse(header=header(98), events=[event(98)]))

    assert list(watch._ready) == [Progress(revision=Revision(99))]
    assert watch.resume_at == 100


def test_a_revision_is_put_together_from_fragments_before_it_is_delivered() -> None:
    """Those before it are whole, so that a long answer is never held as a whole."""
    watch = a_watch(is_progress_sound=True, resume_at=4)

    first = [event(4, b"a"), event(4, b"b"), event(5, b"a")]
    watch._take_in(wire.WatchResponse(header=header(9), fragment=True, events=first))
    early = [(item.revision, len(item.changes)) for item in watch._ready]
    watch._take_in(wire.WatchResponse(header=header(9), fragment=True, events=[event(5, b"b")]))
    watch._take_in(wire.WatchResponse(header=header(9), events=[event(5, b"c"), event(6)]))

    assert early == [(4, 2)]
    assert [(i.revision, len(i.changes)) for i in watch._ready] == [(4, 2), (5, 3), (6, 1)]


async def test_a_response_too_large_to_be_taken_whole_comes_in_fragments(
    shared_etcd: EtcdProcess, connect: Callable[..., EtcdStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only until it is past: etcd makes fragments slowly. Nothing is missed or repeated."""
    monkeypatch.setattr("meshkit.store.etcd_watch.WHOLE_BYTES_MAX", 100_000)
    store = connect(shared_etcd.endpoint)
    first = (await store.commit(put(b"large/before"))).revision
    large = Txn(operations=tuple(Put(b"large/%02d" % n, b"x" * 20_000) for n in range(60)))
    await store.commit(large)
    seen: list[tuple[int, int]] = []

    async with store.watch(prefix_range(b"large/"), start=first) as watch:
        await take(watch, seen, 2)
        await store.commit(large)
        await take(watch, seen, 1)
        await store.commit(put(b"large/after"))
        await take(watch, seen, 1)

        assert not watch._is_fragmented
    assert [count for _, count in seen] == [1, 60, 60, 1]
    assert [revision for revision, _ in seen] == sorted({revision for revision, _ in seen})


async def take(watch: AsyncIterator[WatchItem], seen: list[tuple[int, int]], count: int) -> None:
    async with asyncio.timeout(60):
        while count:
            item = await anext(watch)
            if isinstance(item, RevisionChanges):
                seen.append((item.revision, len(item.changes)))
                count -= 1


def test_events_that_were_delivered_before_are_dropped() -> None:
    watch = a_watch(is_progress_sound=True, resume_at=7)

    watch._take_in(wire.WatchResponse(header=header(9), events=[event(5), event(6), event(7)]))

    assert [item.revision for item in watch._ready] == [7]


async def test_progress_is_shown_only_by_sound_servers(
    shared_etcd: EtcdProcess, connect: Callable[..., EtcdStore]
) -> None:
    store = connect(shared_etcd.endpoint, progress_every_ms=30)
    outcome = await store.commit(put(b"progress/a"))

    async with store.watch((b"progress/b", b""), start=outcome.revision) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        if shared_etcd.binary.version_parts >= (3, 5, 13):
            async with asyncio.timeout(DEADLINE_S):
                item = await waiting
            assert isinstance(item, Progress)
            assert item.revision >= outcome.revision
        else:
            await asyncio.wait({waiting}, timeout=0.2)
            assert not waiting.done()
            waiting.cancel()


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        ("UNAVAILABLE", "etcdserver: no leader", Judgement.REFUSED_HERE),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Judgement.REFUSED_HERE),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Judgement.REFUSED),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", Judgement.REFUSED),
        ("NOT_FOUND", "etcdserver: requested lease not found", Judgement.REFUSED),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", Judgement.TOKEN_REFUSED),
        ("UNAVAILABLE", "etcdserver: request timed out", Judgement.AMBIGUOUS),
        ("UNAVAILABLE", "etcdserver: leader changed", Judgement.AMBIGUOUS),
        ("UNAVAILABLE", "etcdserver: server stopped", Judgement.AMBIGUOUS),
        ("UNAVAILABLE", "Socket closed", Judgement.AMBIGUOUS),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Judgement.AMBIGUOUS),
        ("CANCELLED", "", Judgement.AMBIGUOUS),
        ("UNKNOWN", "raft proposal dropped", Judgement.AMBIGUOUS),
        ("INTERNAL", "", Judgement.AMBIGUOUS),
    ],
)
def test_only_what_etcd_refused_by_name_counts_as_refused(
    code: str, details: str, expected: Judgement
) -> None:
    metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], metadata, metadata, details=details)

    assert judge(error) is expected
