"""The chain, the election and the gate on real etcds: leader changes, kills and refreshed leases."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.sandbox.etcd import EtcdCluster, EtcdFlags, EtcdProcess, plan_cluster
from fencing.chain import Chain
from fencing.election import Election
from fencing.term import Term, commit_in_term
from fencing.timing import timing_of
from fencing.write_gate import GateClosed, WriteGate
from meshkit.clock import SystemClock
from meshkit.codec import encode
from meshkit.errors import TermEnded
from meshkit.etcd_binary import EtcdBinary
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority
from meshkit.names import GroupName
from meshkit.ordinals import Epoch
from meshkit.store.etcd import EtcdStore
from meshkit.store.txn import Committed, Put, Txn
from tests.conftest import etcd_params
from tests.fencing.region import A, G, permit_of, token_of

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

FLAGS = EtcdFlags(heartbeat_ms=50, election_ms=500, is_fsync_off=True)
TIMING = timing_of("fast")
CLOCK = SystemClock()


@pytest.fixture(params=etcd_params(newest_only=True))
def etcd_binary(request: pytest.FixtureRequest) -> EtcdBinary:
    assert isinstance(request.param, EtcdBinary)
    return request.param


@pytest.fixture
def region(etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]) -> EtcdProcess:
    return start_etcd(etcd_binary, flags=FLAGS)


@pytest.fixture
def coordination(etcd_binary: EtcdBinary, tmp_path: Path) -> Iterator[EtcdCluster]:
    cluster = plan_cluster(binary=etcd_binary, directory=tmp_path, name="coordination", flags=FLAGS)
    cluster.start()
    yield cluster
    for member in cluster.members:
        member.kill()


@asynccontextmanager
async def connected(*endpoints: str) -> AsyncIterator[EtcdStore]:
    store = EtcdStore.connect(tuple(f"http://{endpoint}" for endpoint in endpoints))
    try:
        yield store
    finally:
        await store.close()


async def leader_of(cluster: EtcdCluster) -> EtcdProcess:
    for member in cluster.members:
        async with connected(member.endpoint) as store:
            status = await store.status()
            if status.leader_id == status.member_id:
                return member
    raise AssertionError("nobody leads")


async def until(claim: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


async def elect(store: EtcdStore, name: str) -> Term:
    return await Election(
        store=store,
        key=RegionalKeys.replicator_leader,
        value=name.encode(),
        ttl_s=TIMING.leader_ttl_s,
        clock=CLOCK,
    ).campaign()


async def nothing(_: GroupName | None = None) -> None:
    return


def chain_of(coordination: EtcdStore, regional: EtcdStore, term: Term, name: str) -> Chain:
    return Chain(
        cluster=A,
        replicator=name,
        coordination=coordination,
        regional=regional,
        term=term,
        timing=TIMING,
        clock=CLOCK,
        obey=nothing,
        on_sealed=nothing,
    )


async def serve(coordination: EtcdStore, regional: EtcdStore, chain: Chain, term: Term) -> None:
    """Give the region authority over the group and put its permit."""
    authority = Authority(group=G, epoch=Epoch(1), token=token_of(1), active=A)
    outcome = await coordination.commit(
        Txn(operations=(Put(CoordinationKeys.authority(G), encode(authority)),))
    )
    assert isinstance(outcome, Committed)
    lease = await chain.permit_lease(authority, outcome.revision)
    put = Put(RegionalKeys.permit(G), permit_of(1), lease)
    await commit_in_term(regional, term, Txn(operations=(put,)))


async def write_until(gate: WriteGate, is_over: asyncio.Event) -> list[float]:
    """Write all the time; return the longest pauses between two accepted writes, in seconds."""
    pauses, before, number = [0.0], time.monotonic(), 0
    while not is_over.is_set():
        number += 1
        await gate.write((Put(b"/orders/%d" % number, b"v"),))
        now = time.monotonic()
        pauses.append(now - before)
        before = now
        await asyncio.sleep(0.01)
    return sorted(pauses, reverse=True)[:3]


async def test_the_death_of_the_coordination_leader_lapses_no_permit(
    coordination: EtcdCluster, region: EtcdProcess
) -> None:
    """S23: keepalives stall for 1.0 to 1.6 s; writes go on, and the permit is never made anew."""
    async with (
        connected(*coordination.endpoints) as store,
        connected(region.endpoint) as regional,
        connected(region.endpoint) as client,
    ):
        term = await elect(regional, "r1")
        chain = chain_of(store, regional, term, "r1")
        running = asyncio.ensure_future(chain.run())
        await serve(store, regional, chain, term)
        before = await regional.get(RegionalKeys.permit(G))
        is_over = asyncio.Event()
        async with WriteGate(G, members={A: client}) as gate:
            await gate.wait_open()
            writing = asyncio.ensure_future(write_until(gate, is_over))
            rounds = chain.state.rounds

            (await leader_of(coordination)).kill()
            await until(lambda: chain.state.rounds >= rounds + 12)
            is_over.set()
            pauses = await writing

        after = await regional.get(RegionalKeys.permit(G))
        assert before is not None
        assert after is not None
        assert after.create_revision == before.create_revision
        assert pauses[0] < 0.5, f"writes paused for {pauses} s"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await term.resign()


async def test_a_killed_etcd_that_comes_back_with_refreshed_leases_opens_no_gate(
    coordination: EtcdCluster, region: EtcdProcess
) -> None:
    """S21: SIGKILL and a start later, replicator dead: the permit is there, the gate stays shut."""
    async with (
        connected(*coordination.endpoints) as store,
        connected(region.endpoint) as regional,
        connected(region.endpoint) as client,
    ):
        term = await elect(regional, "r1")
        chain = chain_of(store, regional, term, "r1")
        running = asyncio.ensure_future(chain.run())
        await serve(store, regional, chain, term)
        async with WriteGate(G, members={A: client}) as gate:
            await gate.wait_open()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await term.abandon()
            await asyncio.to_thread(region.kill)
            died_at = time.monotonic()
            await until(lambda: gate.active is None)
            shut_after_s = time.monotonic() - died_at

            await asyncio.to_thread(region.restart)
            survived = await regional.get(RegionalKeys.permit(G))
            with pytest.raises(GateClosed):
                await gate.write((Put(b"/orders/late", b"v"),), deadline_ms=3_000)

        assert survived is not None, "this etcd did not refresh the lease; the test shows nothing"
        assert shut_after_s <= TIMING.regional_ttl_ms / 1000 + 0.1
        assert await regional.get(b"/orders/late") is None


async def test_a_successor_adopts_the_chain_and_writes_go_on(
    coordination: EtcdCluster, region: EtcdProcess
) -> None:
    async with (
        connected(*coordination.endpoints) as store,
        connected(region.endpoint) as regional,
        connected(region.endpoint) as client,
    ):
        first = await elect(regional, "r1")
        chain = chain_of(store, regional, first, "r1")
        running = asyncio.ensure_future(chain.run())
        await serve(store, regional, chain, first)
        before = await regional.get(RegionalKeys.permit(G))
        is_over = asyncio.Event()
        async with WriteGate(G, members={A: client}) as gate:
            await gate.wait_open()
            writing = asyncio.ensure_future(write_until(gate, is_over))

            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await first.resign()
            second = await elect(regional, "r2")
            successor = chain_of(store, regional, second, "r2")
            running = asyncio.ensure_future(successor.run())
            await until(lambda: successor.state.rounds >= 8)
            is_over.set()
            pauses = await writing

        after = await regional.get(RegionalKeys.permit(G))
        assert before is not None
        assert after is not None
        assert after.create_revision == before.create_revision
        assert (after.value, after.lease != before.lease) == (before.value, True)
        assert pauses[0] < 0.5, f"writes paused for {pauses} s"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await second.resign()


async def test_a_resignation_is_taken_up_at_once_and_the_old_term_writes_no_more(
    region: EtcdProcess,
) -> None:
    async with connected(region.endpoint) as one, connected(region.endpoint) as other:
        first = await elect(one, "same-name")
        waiting = asyncio.ensure_future(elect(other, "same-name"))
        await asyncio.sleep(0)
        began = time.monotonic()

        await first.resign()
        second = await waiting

        assert time.monotonic() - began < 1.0
        with pytest.raises(TermEnded):
            await commit_in_term(one, first, Txn(operations=(Put(b"/late", b"v"),)))
        await commit_in_term(other, second, Txn(operations=(Put(b"/mine", b"v"),)))
        await second.resign()


async def test_a_leader_that_died_is_succeeded_after_its_ttl(region: EtcdProcess) -> None:
    async with connected(region.endpoint) as one, connected(region.endpoint) as other:
        first = await elect(one, "r1")
        waiting = asyncio.ensure_future(elect(other, "r2"))
        await first.abandon()
        began = time.monotonic()

        second = await waiting

        assert time.monotonic() - began < TIMING.leader_ttl_s + 1.5
        assert second.created_at > first.created_at
        await second.resign()
