"""Claims about real etcds restored from snapshots: which marks really fall, and which do not."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.sandbox.etcd import EtcdProcess
from fencing.election import Election
from meshkit.clock import SystemClock
from meshkit.codec import decode, encode
from meshkit.errors import StoreReplaced
from meshkit.etcd_binary import EtcdBinary
from meshkit.incarnations import Suspension
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import ClusterName
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from replicator.identity import Identity
from tests.conftest import EtcdStarter
from tests.replicator.real import QUICK

A = ClusterName("a")
CLOCK = SystemClock()


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def restore(etcd: EtcdProcess, snapshot: Path, *, bump: int) -> None:
    """Put the snapshot in the etcd's place, with the names and addresses that it had."""
    program = etcd.binary.etcdutl or etcd.binary.etcdctl
    flags = etcd.arguments()
    same = ("--name", "--initial-advertise-peer-urls", "--initial-cluster")
    kept = [
        part
        for flag in (*same, "--initial-cluster-token")
        for part in (flag, flags[flags.index(flag) + 1])
    ]
    bumped = [f"--bump-revision={bump}", "--mark-compacted"] if bump else []
    etcd.stop(timeout_s=10)
    shutil.rmtree(etcd.data_dir)
    into = f"--data-dir={etcd.data_dir}"
    run(str(program), "snapshot", "restore", str(snapshot), into, *kept, *bumped)
    etcd.start()
    etcd.wait_ready()


@asynccontextmanager
async def identity(etcd: EtcdProcess, coordination: MemoryStore) -> AsyncIterator[Identity]:
    """A term in a region on this etcd."""
    store = EtcdStore.connect([etcd.endpoint], timeouts=QUICK)
    election = Election(
        store=store, key=RegionalKeys.replicator_leader, value=b"r", ttl_s=60, clock=CLOCK
    )
    async with election.lead() as term:
        yield Identity(
            cluster=A,
            replicator="r",
            regional=store,
            coordination=coordination,
            clock=CLOCK,
            term=term,
        )
    await store.close()


async def report(known: Identity) -> None:
    """Do what the reporter does with what is known."""
    await known.check()
    await known.raise_witness()
    await known.check()
    put = Put(CoordinationKeys.observation(A), encode(known.observation()))
    await known.coordination.commit(Txn(operations=(put,)))


@pytest.mark.parametrize("bump", [0, 1_000_000_000])
async def test_a_restored_etcd_is_recognised_while_a_replicator_leads_and_ever_after(
    etcd_binary: EtcdBinary, start_etcd: EtcdStarter, tmp_path: Path, bump: int
) -> None:
    """S25: with a bumped revision, ids and keys unchanged and the revision higher, all the same."""
    etcdctl = etcd_binary.etcdctl
    if etcdctl is None:
        pytest.skip("no etcdctl is installed beside this etcd")
    if bump and etcd_binary.version_parts < (3, 5, 10):
        pytest.skip(f"etcd {etcd_binary.version} cannot bump the revision of a snapshot")
    etcd = await asyncio.to_thread(start_etcd, etcd_binary)
    coordination = MemoryStore(clock=CLOCK)
    snapshot = tmp_path / "snapshot.db"
    async with identity(etcd, coordination) as known:
        await known.begin()
        await report(known)
        await asyncio.to_thread(
            run, str(etcdctl), f"--endpoints={etcd.client_url}", "snapshot", "save", str(snapshot)
        )
        for n in range(200):
            await known.regional.commit(Txn(operations=(Put(b"/orders/1", b"%d" % n),)))
        await report(known)
        await asyncio.to_thread(restore, etcd, snapshot, bump=bump)

        with pytest.raises(StoreReplaced, match="suspended: the etcd of a"):
            await known.check()

        stored = await coordination.get(CoordinationKeys.suspension(A))
        assert stored is not None
        assert "raft index" in decode(Suspension, stored.value).reason or not bump
        for n in range(500):
            await known.regional.commit(Txn(operations=(Put(b"/other", b"%d" % n),)))
    async with identity(etcd, coordination) as successor:
        with pytest.raises(StoreReplaced, match="suspended"):
            await successor.begin()


async def test_an_etcd_that_is_killed_and_started_again_is_the_one_it_was(
    etcd_binary: EtcdBinary, start_etcd: EtcdStarter
) -> None:
    """A false alarm would stop a healthy region: the raft index must be known when it is asked."""
    etcd = await asyncio.to_thread(start_etcd, etcd_binary)
    coordination = MemoryStore(clock=CLOCK)
    async with identity(etcd, coordination) as known:
        await known.begin()
        for _ in range(3):
            for n in range(50):
                await known.regional.commit(Txn(operations=(Put(b"/orders/1", b"%d" % n),)))
            await report(known)
            await asyncio.to_thread(etcd.kill)
            await asyncio.to_thread(etcd.start)
            await asyncio.to_thread(etcd.wait_ready)

            await known.check()
    assert await coordination.get(CoordinationKeys.suspension(A)) is None
