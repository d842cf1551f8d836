"""What happens to the coordination etcd of a mesh in memory, and what operators do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from coordinator.api.adopt_bodies import CoordinationAsked
from coordinator.api.coordination_adopting import CoordinationAdopting
from meshkit.codec import decode
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority
from meshkit.names import ClusterName, GroupName
from meshkit.peer import PeerIdentity
from meshkit.regional import Fence, FenceMode, Permit
from meshkit.store.memory import MemoryStore
from meshkit.store.memory_server import Snapshot
from meshkit.store.txn import prefix_range
from tests.mesh.inmemory import MemoryMesh
from tests.mesh.regions import Region

OPERATOR = PeerIdentity(role="operator", name="alice")
ORDERS = GroupName("orders")
WITHIN_S = 60.0


async def until(claim: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await claim():
            await asyncio.sleep(0.02)


@attrs.define
class Coordination:
    """The coordination etcd of a mesh, seen from outside."""

    mesh: MemoryMesh

    async def moves_on(self, *names: str) -> None:
        """Return once the regions have seen a later state of it than the present one.

        Of two reports that come after now, the second is sent after a look that saw the first.
        """
        for _ in range(2):
            now = (await self.mesh.coordination.range((CoordinationKeys.incarnation, b""))).revision
            for name in names or self.mesh.clusters:
                key = CoordinationKeys.health(ClusterName(name))

                async def has_reported(key: bytes = key, now: int = now) -> bool:
                    item = await self.mesh.coordination.get(key)
                    return item is not None and item.mod_revision > now

                await until(has_reported)

    def snapshot(self) -> Snapshot:
        return self.mesh.coordination.server.snapshot()

    def restore(self, snapshot: Snapshot, *, bump: int = 0) -> None:
        self.mesh.coordination.server.restore(snapshot, bump_revision=bump)

    def set_up_anew(self) -> None:
        """Put an empty etcd in its place."""
        fresh = MemoryStore(clock=self.mesh.clock, cluster_id=999)
        self.restore(fresh.server.snapshot())

    async def suspends(self, *names: str) -> None:
        """Return once the regions have stopped: suspended, no permit, no open fence."""
        for name in names:
            await until(lambda name=name: self.is_stopped(name))  # type: ignore[misc]

    async def is_stopped(self, name: str) -> bool:
        store = self.mesh.stores[name]
        if await store.get(RegionalKeys.suspended) is None or await permits(self.mesh, name):
            return False
        return all(fence.mode is not FenceMode.OPEN for fence in await fences(self.mesh, name))

    def adopting(self) -> CoordinationAdopting:
        asker = self.mesh.network.asker(PeerIdentity(role="coordinator", name="c1"))
        return CoordinationAdopting(
            store=self.mesh.coordination, clock=self.mesh.clock, asker=asker
        )

    async def preview(self, *waive: str) -> dict[str, Any]:
        return await self.adopting().adopt(asked(*waive, dry_run=True), OPERATOR)

    async def adopt(self, *waive: str) -> dict[str, Any]:
        """Adopt as soon as nothing is in the way: a region says late that it has stopped."""

        async def is_free() -> bool:
            return not (await self.preview(*waive))["problems"]

        await until(is_free)
        return await self.adopting().adopt(asked(*waive), OPERATOR)

    async def goes_on(self, *names: str) -> None:
        for name in names:
            store = self.mesh.stores[name]

            async def is_free(store: MemoryStore = store) -> bool:
                return await store.get(RegionalKeys.suspended) is None

            await until(is_free)

    async def authority(self, group: GroupName = ORDERS) -> Authority:
        item = await self.mesh.coordination.get(CoordinationKeys.authority(group))
        assert item is not None
        return decode(Authority, item.value)


def asked(*waive: str, dry_run: bool = False, expect_plan: str = "") -> CoordinationAsked:
    return CoordinationAsked(
        reason="all members lost",
        waive=tuple(ClusterName(name) for name in waive),
        dry_run=dry_run,
        expect_plan=expect_plan,
    )


async def permits(mesh: MemoryMesh, *names: str) -> list[tuple[str, Permit]]:
    """Return the permits that there are, with where."""
    found = []
    for name in names:
        items = await mesh.stores[name].range(prefix_range(RegionalKeys.permits))
        found += [(name, decode(Permit, item.value)) for item in items.items]
    return found


async def fences(mesh: MemoryMesh, name: str) -> list[Fence]:
    items = await mesh.stores[name].range(prefix_range(RegionalKeys.fences))
    return [decode(Fence, item.value) for item in items.items]


async def accepts(mesh: MemoryMesh, name: str) -> bool:
    return bool(await permits(mesh, name))


async def writes(mesh: MemoryMesh, name: str, key: str, value: str) -> None:
    """Write at a region once it has a permit."""
    await until(lambda: accepts(mesh, name))
    await Region(mesh, name).write(key, value)
