"""Targets that refuse and transactions that are large, on real etcds, with the default limits."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from cli.sandbox.etcd import EtcdProcess, plan_cluster
from meshkit.etcd_binary import EtcdBinary
from meshkit.keys import RegionalKeys
from meshkit.ordinals import Revision
from meshkit.status import StreamState
from meshkit.store.port import Store
from meshkit.store.txn import Delete, Put, Txn, prefix_range
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.transaction import nested
from tests.conftest import FAST_FLAGS, etcd_params
from tests.replicator.mesh import A, B, G
from tests.replicator.real import RealMesh, real_mesh

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

LIMITS = Limits(redial_ms_max=400)
QUOTA_BYTES = 8 * 1024 * 1024
LARGE_BYTES = 1_468_006
"""1.4 MiB."""


@pytest.fixture(params=etcd_params(newest_only=True))
def etcd_binary(request: pytest.FixtureRequest) -> EtcdBinary:
    assert isinstance(request.param, EtcdBinary)
    return request.param


async def begin(mesh: RealMesh) -> None:
    await mesh.found(G, A)
    await mesh.copied(G)
    await mesh.until(lambda: mesh.status.lag.state is StreamState.STREAMING)


async def until_stalled(mesh: RealMesh, words: str) -> None:
    await mesh.until(
        lambda: mesh.status.lag.state is StreamState.STALLED and words in mesh.status.problem
    )


async def applied_or_stalled(mesh: RealMesh, revision: Revision) -> bool:
    """Wait for either; return whether it was applied."""
    await mesh.until(lambda: bool(mesh.status.problem) or (mesh.status.applied or 0) >= revision)
    return not mesh.status.problem


async def go_on(mesh: RealMesh) -> None:
    """Write once more, and wait until the copy is exact and nobody complains."""
    await mesh.applied(await mesh.write(A, {"/orders/last": "after"}))
    await mesh.until(lambda: mesh.status.lag.state is StreamState.STREAMING)
    assert mesh.status.problem == ""
    assert await mesh.copy_of(B, b"/orders/") == await mesh.copy_of(A, b"/orders/")


async def make_room(etcd: EtcdProcess, store: Store) -> None:
    """Do what an operator does about NOSPACE."""
    assert etcd.binary.etcdctl is not None
    revision = (await store.status()).revision
    for command in (("compact", "--physical", str(revision)), ("defrag",), ("alarm", "disarm")):
        arguments = [str(etcd.binary.etcdctl), "--endpoints", etcd.endpoint, *command]
        done = await asyncio.to_thread(
            subprocess.run, arguments, capture_output=True, check=False, env={"ETCDCTL_API": "3"}
        )
        assert done.returncode == 0, done.stderr


async def test_a_full_target_goes_on_once_there_is_space(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    """NOSPACE at the target: stalled with the reason, then compact, defragment, disarm."""
    source = start_etcd(etcd_binary)
    flags = attrs.evolve(FAST_FLAGS, quota_bytes=QUOTA_BYTES)
    target = start_etcd(etcd_binary, flags=flags)
    async with real_mesh(source.endpoint, target.endpoint, limits=LIMITS) as mesh:
        await begin(mesh)
        for n in range(40):
            # The same few keys again and again: history fills the etcd, and compaction helps.
            revision = await mesh.write(A, {f"/orders/{n % 3}": str(n % 10) * 700_000})
            if not await applied_or_stalled(mesh, revision):
                break
        await until_stalled(mesh, "NOSPACE")

        await make_room(target, mesh.stores[B])
        await go_on(mesh)


async def test_a_target_without_quorum_goes_on_once_it_has_one(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess], tmp_path: Path
) -> None:
    """Two of three members gone: nothing can be stored or read, and nothing is given up."""
    source = start_etcd(etcd_binary)
    target = plan_cluster(binary=etcd_binary, directory=tmp_path / "target", flags=FAST_FLAGS)
    try:
        await asyncio.to_thread(target.start)
        async with real_mesh(source.endpoint, *target.endpoints, limits=LIMITS) as mesh:
            await begin(mesh)
            for member in target.members[1:]:
                member.kill()
            for n in range(50):
                await mesh.write(A, {f"/orders/{n}": "while gone"})
            await until_stalled(mesh, "no quorum")

            for member in target.members[1:]:
                await asyncio.to_thread(member.start)
            await go_on(mesh)
    finally:
        for member in target.members:
            member.kill()


async def put_everywhere(mesh: RealMesh, keys: list[bytes]) -> None:
    for start in range(0, len(keys), 3_000):
        puts = Txn(operations=nested([Put(key, b"") for key in keys[start : start + 3_000]]))
        await asyncio.gather(
            *(store.commit(puts, timeout_ms=30_000) for store in mesh.stores.values())
        )


async def revisions_of(mesh: RealMesh, prefix: bytes, after: Revision) -> set[Revision]:
    """Return the revisions at which the target's keys under a prefix were last changed."""
    found = await mesh.stores[B].range(prefix_range(prefix), keys_only=True)
    return {item.mod_revision for item in found.items if item.mod_revision > after}


async def test_a_value_of_almost_a_request_arrives_whole(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    """1.4 MiB leaves little of etcd's 1.5 MiB for guards and checkpoint: it is enough."""
    source, target = start_etcd(etcd_binary), start_etcd(etcd_binary)
    async with real_mesh(source.endpoint, target.endpoint) as mesh:
        await begin(mesh)
        value = ("0123456789abcdef" * (LARGE_BYTES // 16 + 1))[:LARGE_BYTES]

        await mesh.applied(await mesh.write(A, {"/orders/large": value, "/orders/small": "1"}))

        copy = await mesh.copy_of(B, b"/orders/")
        assert copy == {b"/orders/large": value.encode(), b"/orders/small": b"1"}
        assert await mesh.stores[B].get(RegionalKeys.parts(A)) is None
        assert len(await revisions_of(mesh, b"/orders/", Revision(0))) == 1


async def test_a_value_that_only_the_source_accepts_parks_its_group(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    """The source's etcd has a larger --max-request-bytes: told by name, healed by a new value."""
    roomy = attrs.evolve(FAST_FLAGS, extra=("--max-request-bytes", str(4 * 1024 * 1024)))
    source, target = start_etcd(etcd_binary, flags=roomy), start_etcd(etcd_binary)
    async with real_mesh(source.endpoint, target.endpoint) as mesh:
        await begin(mesh)
        inbound = mesh[B].inbound
        assert inbound is not None

        async def parked() -> bool:
            return await mesh.stores[B].get(RegionalKeys.parked(G)) is not None

        await mesh.write(A, {"/orders/huge": "x" * 2_000_000, "/orders/1": "1"})
        await mesh.until_async(parked)
        assert not inbound.in_step(G)
        await mesh.until(lambda: "/orders/huge" in inbound.problems().get(A, ""))

        await mesh.write(A, {"/orders/huge": "small again"})
        await mesh.copied(G)

        assert not await parked()
        assert await mesh.copy_of(B, b"/orders/") == await mesh.copy_of(A, b"/orders/")


@pytest.mark.timeout(300)
async def test_a_hundred_thousand_keys_deleted_by_one_range_delete(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    """One small request at the source; at the target parts, and no copy. Neighbours stay.

    The record travels in pieces, none larger than a frame.
    """
    source, target = start_etcd(etcd_binary), start_etcd(etcd_binary)
    limits = attrs.evolve(DEFAULT_LIMITS, record_whole_bytes_max=512 * 1024)
    async with real_mesh(source.endpoint, target.endpoint, limits=limits) as mesh:
        keys = [b"/orders/%06d/with/some/more/of/a/path" % n for n in range(100_000)]
        await put_everywhere(mesh, keys)
        await begin(mesh)
        near = {"/order": "1", "/orders": "2", "/orders0": "3", "/orders2/1": "4"}
        for store in (mesh.stores[A], mesh.stores[B]):
            puts = tuple(Put(key.encode(), value.encode()) for key, value in near.items())
            await store.commit(Txn(operations=puts))
        await mesh.applied(await mesh.write(A, {"/orders/kept": "1"}))
        mesh.network.largest_bytes = 0
        joins = len(mesh.network.connections)

        cut = Txn(operations=(Delete(b"/orders/0", end=b"/orders/9"),))
        revision = await mesh.commit_at(A, cut)
        await mesh.applied(revision)

        assert await mesh.copy_of(B, b"/orders/") == {b"/orders/kept": b"1"}
        around = await mesh.copy_of(B, b"/order")
        del around[b"/orders/kept"]
        assert {k.decode(): v.decode() for k, v in around.items()} == near
        assert await mesh.stores[B].get(RegionalKeys.parts(A)) is None
        assert 0 < mesh.network.largest_bytes < 2 * DEFAULT_LIMITS.frame_bytes_max
        assert len(mesh.network.connections) == joins
        checkpoint = await mesh.stored_checkpoint()
        assert checkpoint is not None
        assert checkpoint.sequence >= revision
