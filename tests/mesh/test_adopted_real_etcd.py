"""S19 on a real coordination etcd: restored from a snapshot, recognised, adopted, written to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from cli.sandbox.etcd import EtcdProcess
from meshkit.etcd_binary import EtcdBinary
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from tests.conftest import EtcdStarter
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.losses import Coordination, permits, until, writes
from tests.replicator.real import QUICK
from tests.replicator.test_restored_etcd import restore, run

pytestmark = pytest.mark.etcd


class RealCoordination:
    """A real etcd in the place of a mesh's coordination etcd in memory."""

    def __init__(self, etcd: EtcdProcess) -> None:
        self._endpoint = etcd.endpoint
        self._opened: list[EtcdStore] = []
        self._own = self.connect()

    def connect(self) -> EtcdStore:
        store = EtcdStore.connect([self._endpoint], timeouts=QUICK)
        self._opened.append(store)
        return store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


async def test_s19_a_real_coordination_etcd_is_restored_and_adopted(
    etcd_binary: EtcdBinary, start_etcd: EtcdStarter, tmp_path: Path
) -> None:
    """S19: with plain `snapshot restore`, which lets the revision fall."""
    etcdctl = etcd_binary.etcdctl
    if etcdctl is None:
        pytest.skip("no etcdctl is installed beside this etcd")
    etcd = await asyncio.to_thread(start_etcd, etcd_binary)
    real, mesh = RealCoordination(etcd), MemoryMesh(clusters=("a", "b"))
    mesh.coordination = cast("MemoryStore", real)
    outside, snapshot = Coordination(mesh), tmp_path / "snapshot.db"
    async with running(mesh):
        await mesh.apply()
        active = await mesh.until_active()
        await asyncio.to_thread(
            run, str(etcdctl), f"--endpoints={etcd.client_url}", "snapshot", "save", str(snapshot)
        )
        await outside.moves_on()
        await writes(mesh, active, "1", "after the snapshot")
        await asyncio.to_thread(restore, etcd, snapshot, bump=0)
        await outside.suspends("a", "b")

        await outside.adopt()

        await outside.goes_on("a", "b")
        await writes(mesh, active, "2", "after the adoption")

        async def is_same() -> bool:
            return len(await mesh.content("a")) == len(await mesh.content("b")) == 2

        await until(is_same)
        ((where, permit),) = await permits(mesh, "a", "b")
        assert (where, permit.token.incarnation, permit.epoch) == (active, 2, 2)
    await real.close()
