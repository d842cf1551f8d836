"""Tells the coordination etcd how this region stands: health, streams, what its etcd looks like.

Health and streams hang on the coordination lease, so that silence is seen as absence. What was
last observed of the region's etcd and the last head of its log are stored without a lease: they
are needed exactly when the region is gone (architecture 4.1 rule 5, 5.1 rule 8).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Ordered
from types import MappingProxyType
from typing import Protocol

import structlog

from meshkit.codec import decode, encode
from meshkit.errors import MeshError, StoreReplaced
from meshkit.keys import CoordinationKeys, RegionalKeys, last_part
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, LeaseId, Sequence
from meshkit.promises import Promise
from meshkit.regional import Checkpoint, Fence, FenceMode, GroupCheckpoint, JoinPhase, ParkedWrite
from meshkit.status import (
    Applied,
    ClusterHealth,
    GroupHead,
    GroupHealth,
    LogHead,
    StreamStatus,
    TargetHead,
)
from meshkit.store.port import StoreStatus
from meshkit.store.txn import Delete, KeyValue, Put, Txn
from replicator.agent_ports import Region
from replicator.foreign_watch import ForeignWatch
from replicator.identity import Identity
from replicator.local_history import LocalHistory
from replicator.metrics import Reading
from replicator.positions import Positions
from replicator.region_state import torn_groups
from replicator.upkeep import Upkeep, is_group_checkpoint

_log = structlog.get_logger()

REPORT_INTERVAL_MS = 500


class Streams(Protocol):
    """Where the statuses of the streams that leave this region come from."""

    def statuses(self) -> list[StreamStatus]:
        """Return one status per target, lag evaluated now."""

    def needs(self) -> Mapping[ClusterName, Sequence | None] | None:
        """Return from where each target may have to be served; None where it is not known.

        None altogether while nobody knows who the targets are.
        """


class Leases(Protocol):
    """Where the coordination lease comes from."""

    def coordination_lease(self) -> LeaseId | None:
        """Return the live coordination lease, or None while there is none."""

    def problem(self) -> str:
        """Return what is wrong with the chain of leases, or nothing."""

    @property
    def kept(self) -> tuple[GroupName, ...]:
        """The groups whose writes go on by promise now."""


class Reporter:
    """Reports every half second while the region's term lasts."""

    def __init__(
        self,
        region: Region,
        upkeep: Upkeep,
        *,
        streams: Streams,
        leases: Leases,
        inbound_problems: Callable[[], Mapping[ClusterName, str]],
        foreign: ForeignWatch,
        identity: Identity,
        obstacles: Mapping[GroupName, str] = MappingProxyType({}),
        quarantined: Callable[[GroupName], Mapping[str, int]] = lambda _: {},
        history: LocalHistory | None = None,
        certificate_not_after_ms: int | None = None,
    ) -> None:
        self._history = history
        self._identity = identity
        self._positions = Positions(
            region.clock, source=region.cluster, incarnation=region.incarnation
        )
        self.region = region
        self._upkeep = upkeep
        self._streams = streams
        self._leases = leases
        self._inbound_problems = inbound_problems
        self._foreign = foreign
        self._obstacles = obstacles
        self._quarantined = quarantined
        self._not_after_ms = certificate_not_after_ms

    async def run(self) -> None:
        """Report until cancelled.

        Raises:
            StoreReplaced: an etcd is not the one it was; the region is suspended.
        """
        while True:
            try:
                await self._report()
            except StoreReplaced:
                raise
            except MeshError as error:
                self._positions.forget()
                _log.warning("report.failed", why=str(error))
            await self.region.clock.sleep_ms(REPORT_INTERVAL_MS)

    async def _report(self) -> None:
        asked_at_ms = self.region.clock.wall_ms()
        status = await self._identity.check()
        await self._identity.check_outside()
        lease = self._leases.coordination_lease()
        if lease is None:
            return
        await self._identity.raise_witness()
        cluster = self.region.cluster
        health = self._health(status)
        puts = [Put(CoordinationKeys.health(cluster), encode(health), lease=lease)]
        streams = self._streams.statuses()
        for stream in streams:
            key = CoordinationKeys.stream_status(cluster, stream.target)
            puts.append(Put(key, encode(stream), lease=lease))
        puts.append(
            Put(CoordinationKeys.observation(cluster), encode(self._identity.observation()))
        )
        head = self._head(status, streams, at_ms=asked_at_ms)
        puts.append(Put(CoordinationKeys.head(cluster), encode(head)))
        operations = (*puts, *self._positions_due())
        await self.region.coordination.commit(Txn(operations=operations))

    def _positions_due(self) -> list[Put | Delete]:
        needs = self._streams.needs()
        if needs is None or self._history is None:
            return []
        return self._positions.operations(needs, stored=self._history.positions_stored)

    def reading(self) -> Reading:
        """Return what is known at this moment, for metrics."""
        return Reading(
            cluster=self.region.cluster,
            streams=self._streams.statuses(),
            groups=self._groups(),
            foreign_writes=self._foreign_count(),
            leases_problem=self._leases.problem(),
            kept=self._leases.kept,
            spool_bytes=self._history.spool_bytes if self._history is not None else None,
            compacted_revision=(
                self._history.retention.compacted if self._history is not None else None
            ),
        )

    def _health(self, status: StoreStatus) -> ClusterHealth:
        problems = [f"{g}: {why}" for g, why in sorted(self._upkeep.problems.items())]
        problems += [f"from {c}: {why}" for c, why in sorted(self._inbound_problems().items())]
        problems += [f"{g}: {w.problem}" for g, w in sorted(self._foreign.found.items())]
        chain_problem = self._leases.problem()
        if chain_problem:
            problems.append(f"leases: {chain_problem}")
        if self._history is not None and self._history.spool_problem:
            problems.append(f"spool: {self._history.spool_problem}")
        return ClusterHealth(
            cluster=self.region.cluster,
            replicator=self.region.replicator,
            incarnation=self.region.incarnation,
            etcd_version=status.version,
            etcd_cluster_id=f"{status.cluster_id:x}",
            revision=status.revision,
            raft_index=status.raft_index,
            db_size_bytes=status.db_size_bytes,
            alarms=status.alarms,
            certificate_not_after_ms=self._not_after_ms,
            foreign_writes=self._foreign_count(),
            groups=self._groups(),
            at_ms=self.region.clock.wall_ms(),
            problems=tuple(problems),
            positions=self._applied(),
        )

    def _applied(self) -> dict[ClusterName, Applied]:
        stored = [
            decode(Checkpoint, entry.value)
            for key, entry in self._checkpoints().items()
            if not is_group_checkpoint(key)
        ]
        return {c.source: Applied(incarnation=c.incarnation, sequence=c.sequence) for c in stored}

    def _checkpoints(self) -> dict[bytes, KeyValue]:
        here, below = self._upkeep.here.entries, RegionalKeys.checkpoints
        return {key: item for key, item in here.items() if key.startswith(below)}

    def _foreign_count(self) -> int:
        return sum(writes.count for writes in self._foreign.found.values())

    def _groups(self) -> dict[GroupName, GroupHealth]:
        """Return how each group stands; every checkpoint is looked at once, not for each group."""
        entries = self._checkpoints()
        torn = torn_groups(entries.values())
        joins: defaultdict[GroupName, list[GroupCheckpoint]] = defaultdict(list)
        for key, entry in entries.items():
            if is_group_checkpoint(key):
                joins[GroupName(last_part(key))].append(decode(GroupCheckpoint, entry.value))
        return {
            group.name: self._group(group.name, joins.get(group.name, []), group.name in torn)
            for group in self._upkeep.member_groups()
        }

    def _group(
        self, group: GroupName, joins: Ordered[GroupCheckpoint], is_torn: bool
    ) -> GroupHealth:
        item = self._upkeep.here.entries.get(RegionalKeys.fence(group))
        fence = decode(Fence, item.value) if item else None
        problems = [f"{j.phase.value} from {j.source}: {j.reason}" for j in joins]
        if is_torn:
            problems.append("it holds a part of a transaction, the rest is being applied")
        parked = self._upkeep.parked.entries.get(RegionalKeys.parked(group)) if joins else None
        promise = self._upkeep.promises.entries.get(RegionalKeys.promise(group))
        foreign = self._foreign.found.get(group)
        if foreign is not None:
            problems.append(foreign.problem)
        return GroupHealth(
            mode=fence.mode.value if fence else "none",
            epoch=fence.epoch if fence else Epoch(0),
            command_token=fence.command_token if fence else NO_TOKEN,
            permit=RegionalKeys.permit(group) in self._upkeep.permits.entries,
            in_step=fence is not None
            and fence.mode is not FenceMode.HELD
            and not joins
            and not is_torn,
            problem="; ".join(problems),
            parked=decode(ParkedWrite, parked.value).problem if parked else "",
            leases=self._obstacles.get(group, ""),
            promised_to=decode(Promise, promise.value).to if promise else "",
            quarantined=dict(self._quarantined(group)),
            ahead=any(join.phase is JoinPhase.AHEAD for join in joins),
        )

    def _head(self, status: StoreStatus, streams: Iterable[StreamStatus], *, at_ms: int) -> LogHead:
        targets = {stream.target: target_head(stream) for stream in streams}
        return LogHead(
            cluster=self.region.cluster,
            incarnation=self.region.incarnation,
            sequence=Sequence(status.revision),
            at_ms=at_ms,
            targets=targets,
        )


def target_head(stream: StreamStatus) -> TargetHead:
    """Return what is to be known of a target when this region is gone: bounds, or nothing."""
    lag = stream.in_step if stream.tells and stream.in_step is not None else stream.lag
    unknown = dict.fromkeys(stream.groups_out_of_step, GroupHead())
    known = {
        one.group: GroupHead(
            applied=one.position, records=one.lag.records, lag_ms=one.lag.greatest_ms
        )
        for one in stream.behind
    }
    return TargetHead(
        applied=stream.applied,
        records=lag.records,
        records_per_second=stream.records_per_second,
        lag_ms=lag.greatest_ms,
        behind={**unknown, **known},
    )
