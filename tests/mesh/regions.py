"""What happens to whole regions of a mesh in memory: they die, somebody else is promoted."""

from __future__ import annotations

import asyncio

import attrs

from coordinator.failover.asking import lineage_of
from coordinator.failover.record import Phase
from coordinator.rejoin.record import Rejoin, RejoinPhase
from coordinator.rejoin.repository import RejoinRepository
from meshkit.codec import decode
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision
from meshkit.regional import Checkpoint, Fence, Permit, RegionIncarnation
from meshkit.store.txn import Committed, Delete, Operation, Put, Txn, ValueIs
from tests.mesh.emergencies import ANYTHING, begin, emergency, until
from tests.mesh.inmemory import MemoryMesh

GROUP = GroupName("orders")
DEADLINE_S = 30


@attrs.define
class Region:
    """One cluster of a mesh."""

    mesh: MemoryMesh
    name: str

    async def die(self) -> None:
        """Kill the replicator; its etcd stays as it is, as after a loss of power."""
        await self.mesh.processes[f"{self.name}-0"].kill()
        self.mesh.network.hang_up(f"{self.name}-0")

    def come_back(self) -> None:
        self.mesh.start_replicator(self.name, 0)

    async def write(self, key: str, value: str | None) -> Revision:
        """Write with the compare alone, as any client that knows the permit."""
        store = self.mesh.stores[self.name]
        permit = await store.get(RegionalKeys.permit(GROUP))
        assert permit is not None
        return await self._commit(key, value, ValueIs(permit.key, permit.value))

    async def write_rogue(self, key: str, value: str | None) -> Revision:
        """Write with no compare at all."""
        return await self._commit(key, value)

    async def _commit(self, key: str, value: str | None, *guards: ValueIs) -> Revision:
        raw = f"/orders/{key}".encode()
        operation: Operation = Delete(raw) if value is None else Put(raw, value.encode())
        outcome = await self.mesh.stores[self.name].commit(
            Txn(guards=guards, operations=(operation,))
        )
        assert isinstance(outcome, Committed)
        return outcome.revision

    async def content(self) -> dict[str, str]:
        found = await self.mesh.content(self.name)
        return {k.decode().removeprefix("/orders/"): v.decode() for k, v in found.items()}

    async def applied(self, source: str) -> Checkpoint:
        key = RegionalKeys.checkpoint(ClusterName(source))
        item = await self.mesh.stores[self.name].get(key)
        assert item is not None
        return decode(Checkpoint, item.value)


def cut_off(mesh: MemoryMesh, *pairs: tuple[str, str]) -> None:
    """Let the streams (target, source) be broken, and every other one be whole."""
    mesh.network.is_reachable = lambda target, source: (target, source) not in pairs
    mesh.network.break_all()


async def promote(mesh: MemoryMesh, to: str, request_id: str = "rescue") -> Lineage:
    """Have an emergency make a cluster active, whatever that loses."""
    request = emergency(to, request_id, accept_loss=ANYTHING, no_fence_wait=True)
    record = await until(mesh, await begin(mesh, request))
    assert record.phase is Phase.SUCCEEDED, record.problem
    await until_permit(mesh, to, record.epoch_after)
    return lineage_of(record)


async def until_permit(mesh: MemoryMesh, at: str, epoch: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            item = await mesh.stores[at].get(RegionalKeys.permit(GROUP))
            if item is not None and decode(Permit, item.value).epoch == epoch:
                return
            await asyncio.sleep(0.02)


async def until_rejoined(
    mesh: MemoryMesh, cluster: str, *phases: RejoinPhase, epoch: int = 0
) -> Rejoin:
    """Return the rejoin of a cluster once it has come to one of some phases (or has ended)."""
    wanted = phases or (RejoinPhase.SUCCEEDED,)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for loaded in await rejoins_of(mesh).all_of(GROUP):
                found = loaded.record
                if found.cluster == cluster and found.phase in wanted and found.epoch >= epoch:
                    return found
            await asyncio.sleep(0.02)


def rejoins_of(mesh: MemoryMesh) -> RejoinRepository:
    return RejoinRepository(store=mesh.coordination, clock=mesh.clock)


async def incarnation_of(mesh: MemoryMesh, cluster: str) -> str:
    item = await mesh.stores[cluster].get(RegionalKeys.incarnation)
    assert item is not None
    return decode(RegionIncarnation, item.value).incarnation


async def until_following(mesh: MemoryMesh, cluster: str, epoch: int) -> None:
    """Return once a cluster follows an epoch."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            item = await mesh.stores[cluster].get(RegionalKeys.fence(GROUP))
            if item is not None and decode(Fence, item.value).epoch >= epoch:
                return
            await asyncio.sleep(0.02)


async def until_content(region: Region, wanted: dict[str, str]) -> None:
    """Return once a region holds exactly this."""
    async with asyncio.timeout(DEADLINE_S):
        while await region.content() != wanted:
            await asyncio.sleep(0.02)


async def until_counted(mesh: MemoryMesh, cluster: str) -> dict[str, int]:
    """Return what `groups show` says of a cluster's quarantine, once it says anything."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            view = await mesh.operations().group(GROUP)
            counts = next(c["quarantined"] for c in view["clusters"] if c["cluster"] == cluster)
            if counts:
                return dict(counts)
            await asyncio.sleep(0.05)
