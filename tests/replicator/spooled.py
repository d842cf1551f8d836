"""A mesh in memory whose sources spool to a directory of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from meshkit.codec import encode
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision
from meshkit.regional import RegionIncarnation
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from replicator.limits import Limits
from replicator.local_history import LocalHistory
from replicator.outbound import Outbound
from replicator.positions import Positions
from replicator.spool.spooler import SpoolSettings
from tests.replicator.mesh import SMALL, Mesh, Region

T = TypeVar("T")

LATE_MS = 2_000
SPOOLING = Limits(
    frame_bytes_max=SMALL.frame_bytes_max,
    frame_writes_max=SMALL.frame_writes_max,
    window_bytes_max=SMALL.window_bytes_max,
    side_window_bytes_max=SMALL.side_window_bytes_max,
    batch_writes_max=SMALL.batch_writes_max,
    batch_bytes_max=SMALL.batch_bytes_max,
    page_keys_max=SMALL.page_keys_max,
    page_bytes_max=SMALL.page_bytes_max,
    redial_ms_max=200,
    checkpoint_idle_ms=500,
    history_look_ms=500,
    spool_look_ms=200,
    spool_linger_ms=10,
    spool_block_bytes=2_000,
    spool_file_bytes_max=4_000,
)


async def inline(call: Callable[[], T]) -> T:
    """Wait for the disk here and now, so that manual time stands still meanwhile."""
    return call()


class SpooledMesh(Mesh):
    """Every source spools into a folder of its own, unless there is no directory."""

    def __init__(
        self,
        *names: ClusterName,
        directory: Path | None,
        bytes_max: int = 1_000_000,
        limits: Limits = SPOOLING,
    ) -> None:
        self.directory = directory
        self.bytes_max = bytes_max
        self.histories: dict[ClusterName, LocalHistory] = {}
        self.coordination: MemoryStore | None = None
        super().__init__(*names, limits=limits)

    def _region(self, name: ClusterName) -> Region:
        if self.coordination is None:
            self.coordination = MemoryStore(clock=self.clock)
        region = Region(name, MemoryStore(clock=self.clock), None)  # type: ignore[arg-type]
        self.renew(region)
        return region

    def renew(self, region: Region, process: str = "1") -> None:
        """Make the region's source anew, as another process with a spool of its own."""
        assert self.coordination is not None
        history = LocalHistory(
            cluster=region.name,
            regional=region.store.connect(),
            coordination=self.coordination.connect(),
            clock=self.clock,
            spool=self.settings(region.name, process),
            blocking=inline,
            limits=self.limits,
        )
        self.histories[region.name] = history
        region.outbound = Outbound(
            store=region.store.connect(),
            clock=self.clock,
            cluster=region.name,
            incarnation=Incarnation(f"{region.name}-1"),
            history=history,
            limits=self.limits,
        )

    def settings(self, name: ClusterName, process: str) -> SpoolSettings | None:
        if self.directory is None:
            return None
        return SpoolSettings(
            directory=self.directory / f"{name}-{process}",
            bytes_max=self.bytes_max,
            late_ms=LATE_MS,
        )

    async def start(self, *names: ClusterName) -> None:
        await super().start(*names)
        loop = asyncio.get_running_loop()
        for name in names or tuple(self.regions):
            region = self.regions[name]
            identity = RegionIncarnation(cluster=name, incarnation=Incarnation(f"{name}-1"))
            await region.store.commit(
                Txn(operations=(Put(RegionalKeys.incarnation, encode(identity)),))
            )
            region.outbound.set_targets(self.regions)
            region.tasks += [
                loop.create_task(self.histories[name].run()),
                loop.create_task(self._report(name)),
            ]

    async def _report(self, name: ClusterName) -> None:
        """Write the standbys' positions down, as a reporter does."""
        assert self.coordination is not None
        positions = Positions(self.clock, source=name, incarnation=Incarnation(f"{name}-1"))
        history = self.histories[name]
        while True:
            needs = self.regions[name].outbound.needs() or {}
            operations = positions.operations(needs, stored=history.positions_stored)
            if operations:
                await self.coordination.commit(Txn(operations=tuple(operations)))
            await self.clock.sleep_ms(500)

    async def compact(self, name: ClusterName) -> None:
        """Drop all history but the newest revision."""
        head = self[name].store.server.history.revision
        await self[name].store.compact(Revision(head))

    async def write_on(self, name: ClusterName, first: int, count: int) -> None:
        """Write for a while: each write is followed by 50 ms."""
        for n in range(first, first + count):
            await self.write(name, {f"/orders/{n % 17:02}": f"{n}" * 9, "/elsewhere": f"{n}"})
            await self.clock.advance_ms(50)
