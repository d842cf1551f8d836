"""Claims about the spool on real etcds: what they compact away is streamed all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cli.sandbox.etcd import EtcdProcess
from meshkit.codec import encode
from meshkit.etcd_binary import EtcdBinary
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.ordinals import Incarnation, Revision
from meshkit.regional import RegionIncarnation
from meshkit.status import StandbyPosition
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from meshkit.store.port import RevisionChanges
from meshkit.store.txn import Delete, Put, Txn, prefix_range
from replicator.limits import Limits
from replicator.local_history import LocalHistory
from replicator.outbound import Outbound
from replicator.spool.spooler import SpoolSettings
from tests.conftest import EtcdStarter
from tests.replicator.mesh import A, B, G
from tests.replicator.real import QUICK, RealMesh

ONE = Incarnation("a-1")
LIMITS = Limits(history_look_ms=100, spool_look_ms=100, spool_linger_ms=10)


class SpooledPair(RealMesh):
    """A real source that spools, a real target, and what is written down of their positions."""

    def __init__(self, source: EtcdStore, target: EtcdStore, directory: Path) -> None:
        super().__init__(source, target, limits=LIMITS)
        self.coordination = MemoryStore(clock=self.clock)
        self.history = LocalHistory(
            cluster=A,
            regional=source,
            coordination=self.coordination,
            clock=self.clock,
            spool=SpoolSettings(directory=directory, bytes_max=10_000_000, late_ms=1_000),
            limits=LIMITS,
        )
        self[A].outbound = Outbound(
            store=source,
            clock=self.clock,
            cluster=A,
            incarnation=ONE,
            history=self.history,
            limits=LIMITS,
        )
        self[A].outbound.set_targets([B])

    async def note_position(self) -> None:
        """Write down what the target has stored, as the reporter does."""
        stored = await self.stored_checkpoint()
        assert stored is not None
        position = StandbyPosition(source=A, target=B, incarnation=ONE, sequence=stored.sequence)
        put = Put(CoordinationKeys.standby_position(A, B), encode(position))
        await self.coordination.commit(Txn(operations=(put,)))


def start_two(start_etcd: EtcdStarter, binary: EtcdBinary) -> tuple[EtcdProcess, EtcdProcess]:
    return start_etcd(binary), start_etcd(binary)


async def test_a_standby_that_was_away_past_a_real_compaction_is_not_copied(
    etcd_binary: EtcdBinary, start_etcd: EtcdStarter, tmp_path: Path
) -> None:
    """Every record arrives by the stream, deletes at the compacted revision included."""
    processes = await asyncio.to_thread(start_two, start_etcd, etcd_binary)
    stores = [EtcdStore.connect([each.endpoint], timeouts=QUICK) for each in processes]
    mesh = SpooledPair(stores[0], stores[1], tmp_path / "spool")
    identity = encode(RegionIncarnation(cluster=A, incarnation=ONE))
    await stores[0].commit(Txn(operations=(Put(RegionalKeys.incarnation, identity),)))
    keeping = asyncio.ensure_future(mesh.history.run())
    await mesh.start()
    await mesh.found(G, A)
    await mesh.copied(G)
    await mesh.applied(await mesh.write(A, {f"/orders/{n}": "old" for n in range(20)}))
    await mesh.note_position()
    await mesh.stop()

    for n in range(300):
        await mesh.write(A, {f"/orders/{n % 40}": f"{n}", f"/elsewhere/{n % 3}": "x"})
    last = await mesh.commit_at(A, Txn(operations=(Delete(b"/orders/7"),)))
    spool = mesh.history.spool(ONE)
    assert spool is not None
    await mesh.until(lambda: (spool.through or 0) >= last)
    await stores[0].compact(Revision(last))
    before = (await stores[1].status()).revision
    await mesh.start()
    await mesh.applied(await mesh.write(A, {"/orders/after": "1"}))

    assert await mesh.copy_of(B, b"/orders/") == await mesh.copy_of(A, b"/orders/")
    joins = prefix_range(RegionalKeys.checkpoints_of(A))
    async with stores[1].watch(joins, start=Revision(before + 1)) as items:
        await stores[1].commit(Txn(operations=(Put(RegionalKeys.group_checkpoint(A, G), b"x"),)))
        first = await anext(aiter(items))
    assert isinstance(first, RevisionChanges)
    assert first.changes[0].item.value == b"x", "no group has fallen out of step meanwhile"
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await mesh.close()
    await asyncio.gather(*(store.close() for store in stores))
