"""What operators have paused of replication, as this region sees it; and groups that stand still.

A paused stream is stopped by its source, which sends nothing more; what was sent is applied. A
paused group is taken out of step at its copy, where it stands, so that the other groups of the
stream go on; resumed, it follows on a side stream until it meets the main one. Where the source's
history no longer reaches back that far, it is copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from fencing import fence as fences
from fencing.fence_view import FenceView, view_of, view_reads
from meshkit.clock import Clock
from meshkit.codec import decode, encode
from meshkit.errors import CorruptRecord, MeshError
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.mirror import PrefixMirror
from meshkit.model import Authority
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.pauses import ReplicationPause
from meshkit.regional import Checkpoint, FenceMode, GroupCheckpoint, JoinPhase
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Get, ModRevisionIs, Put, Txn
from replicator.agent_ports import Region
from replicator.region import RegionMirror

_log = structlog.get_logger()

LOOK_MS = 1_000
"""A group that could not be taken out of step is tried again after so long."""


class Pauses:
    """The pauses that are stored. Until they are known nobody knows whether one may go on."""

    def __init__(self, coordination: Store, clock: Clock) -> None:
        self._mirror = PrefixMirror(coordination, CoordinationKeys.pauses, clock=clock)
        self._known: tuple[ReplicationPause, ...] = ()
        self._mirror.on_change(lambda _keys: self._read())

    @property
    def ready(self) -> asyncio.Event:
        """Set once the pauses are known."""
        return self._mirror.ready

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change."""
        self._mirror.on_change(lambda _keys: listener())

    async def run(self) -> None:
        """Follow the pauses until cancelled."""
        await self._mirror.run()

    def of_stream(self, source: ClusterName, target: ClusterName) -> ReplicationPause | None:
        """Return what stops the stream, if anything does."""
        return next((p for p in self._known if p.stops_stream(source, target)), None)

    def groups(self) -> dict[GroupName, ReplicationPause]:
        """Return the groups that are to stand still."""
        return {p.group: p for p in self._known if p.group is not None}

    def _read(self) -> None:
        known = []
        for item in self._mirror.entries.values():
            try:
                known.append(decode(ReplicationPause, item.value))
            except CorruptRecord as error:
                _log.error("pause.unreadable", key=item.key.decode(), why=str(error))
        self._known = tuple(known)


class Standstill:
    """Takes the paused groups that are copied here out of step, where they stand."""

    def __init__(
        self,
        region: Region,
        pauses: Pauses,
        *,
        mirror: RegionMirror,
        authorities: PrefixMirror,
        on_join: Callable[[], None],
    ) -> None:
        self._region = region
        self._pauses = pauses
        self._mirror = mirror
        self._authorities = authorities
        self._on_join = on_join
        self._due = asyncio.Event()

    async def run(self) -> None:
        """Keep to the pauses until cancelled."""
        self._pauses.on_change(self._due.set)
        self._mirror.on_change(lambda _keys: self._due.set())
        self._authorities.on_change(lambda _keys: self._due.set())
        for ready in (self._pauses.ready, self._mirror.ready, self._authorities.ready):
            await ready.wait()
        while True:
            self._due.clear()
            for group, pause in self._pauses.groups().items():
                try:
                    await self._keep_still(group, pause)
                except MeshError as error:
                    _log.warning("pause.delayed", group=group, why=str(error))
                    await self._region.clock.sleep_ms(LOOK_MS)
                    self._due.set()
            await self._due.wait()

    async def _keep_still(self, group: GroupName, pause: ReplicationPause) -> None:
        fence = self._mirror.fence(group)
        item = self._authorities.entries.get(CoordinationKeys.authority(group))
        is_passive = fence is not None and fence.mode is FenceMode.SUPERSEDED
        if item is None or not is_passive or self._mirror.is_out_of_step(group):
            return
        authority = decode(Authority, item.value)
        if authority.active == self._region.cluster:
            return
        reads = (
            *view_reads(group),
            Get(RegionalKeys.fence_index),
            Get(RegionalKeys.checkpoint(authority.active)),
        )
        outcome = await self._region.regional.commit(Txn(operations=reads))
        assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
        *of_fence, index, checkpoints = outcome.reads
        view = view_of(group, tuple(of_fence))
        if not checkpoints or view.fence is None or view.fence.epoch != authority.epoch:
            return
        own = checkpoints[0]
        txn = self._txn(view, decode(Checkpoint, own.value), own.mod_revision, pause)
        moved = ModRevisionIs(RegionalKeys.fence_index, index[0].mod_revision if index else ABSENT)
        stilled = Txn(guards=(*txn.guards, moved), operations=txn.operations)
        if isinstance(await self._region.regional.commit(stilled), Committed):
            _log.info("group.stands_still", group=group, why=pause.reason, by=pause.by)
            self._on_join()

    def _txn(
        self, view: FenceView, own: Checkpoint, revision: Revision, pause: ReplicationPause
    ) -> Txn:
        """Return what takes the group out of step at exactly what the stream has applied."""
        assert view.fence is not None, "a copy has a fence"
        still = GroupCheckpoint(
            source=own.source,
            group=view.group,
            incarnation=own.incarnation,
            phase=JoinPhase.FOLLOWING,
            epoch=view.fence.epoch,
            sequence=own.sequence,
            reason=f"paused by {pause.by}" + (f": {pause.reason}" if pause.reason else ""),
        )
        key = RegionalKeys.group_checkpoint(own.source, view.group)
        txn = fences.fence_txn(
            view, view.fence, leader=self._region.leader, operations=(Put(key, encode(still)),)
        )
        at = ModRevisionIs(RegionalKeys.checkpoint(own.source), revision)
        return Txn(guards=(*txn.guards, at), operations=txn.operations)
