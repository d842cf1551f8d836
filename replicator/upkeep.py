"""Keeps the region as the authority allows: permits, memberships, scopes, routing copies.

Level-triggered: looks at what is and at what should be, and closes the difference in guarded
transactions. Forgetting everything and looking again is always safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol

import structlog

from fencing import fence as fences
from fencing.fence_view import FenceView
from meshkit.codec import decode
from meshkit.errors import CorruptRecord, MeshError
from meshkit.keys import CoordinationKeys, RegionalKeys, last_part, parts_below
from meshkit.mirror import PrefixMirror
from meshkit.model import Authority, Group
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, LeaseId, Revision
from meshkit.regional import Fence, FenceMode, SegmentScope
from meshkit.store.txn import Committed, KeyValue, ModRevisionIs, Put, Txn
from replicator.agent import Agent
from replicator.agent_ports import Region
from replicator.pacts import Pacts
from replicator.region import RegionMirror
from replicator.stopping import Stopping, read_view
from replicator.together import in_parallel

_log = structlog.get_logger()

PASS_INTERVAL_MS = 1_000
"""A pass is made at least this often, besides after every change."""
GROUPS_PARALLEL_MAX = 256
"""Groups that are put right at the same time."""


class Chain(Protocol):
    """What upkeep needs of the chain of leases."""

    async def permit_lease(self, authority: Authority, revision: Revision) -> LeaseId:
        """Hold the group and return the lease its permit may hang on."""

    def current_lease(self) -> LeaseId | None:
        """Return the region's live lease, or None while there is none."""


class Upkeep:
    """One pass after another over the groups this cluster is a member of."""

    def __init__(
        self,
        region: Region,
        agent: Agent,
        *,
        chain: Chain,
        here: RegionMirror,
        alone: Region | None = None,
    ) -> None:
        """`here` is run by its maker; `alone` shares requests with nobody: for what cannot wait."""
        self.region = region
        self._agent = agent
        self._chain = chain
        self.here = here
        self.permits = PrefixMirror(region.regional, RegionalKeys.permits, clock=region.clock)
        self.scopes = PrefixMirror(region.regional, RegionalKeys.segments, clock=region.clock)
        self.parked = PrefixMirror(region.regional, RegionalKeys.parked_writes, clock=region.clock)
        self.copies = PrefixMirror(region.regional, RegionalKeys.routings, clock=region.clock)
        self.promises = PrefixMirror(region.regional, RegionalKeys.promises, clock=region.clock)
        self.stopping = Stopping(alone or region, agent, nudge=self.nudge)
        self._pacts = Pacts(region)
        self._due = asyncio.Event()
        self._changed: set[GroupName] = set()
        self._is_all_due = True
        self._is_full_pass = True
        self.problems: dict[GroupName, str] = {}

    @property
    def _mirrors(self) -> tuple[PrefixMirror, ...]:
        return (
            self.permits,
            self.scopes,
            self.parked,
            self.copies,
            self.promises,
            *self._pacts.mirrors,
        )

    async def run(self) -> None:
        """Keep up until cancelled."""
        sources = (
            self.here,
            *self._mirrors,
            self._agent.groups,
            self._agent.authorities,
            self._agent.routings,
        )
        for mirror in sources:
            mirror.on_change(self._on_change)
        async with asyncio.TaskGroup() as tasks:
            for mirror in self._mirrors:
                tasks.create_task(mirror.run())
            tasks.create_task(self._tick())
            for mirror in sources:
                await mirror.ready.wait()
            while True:
                self._due.clear()
                changed, self._changed = self._changed, set()
                is_all, self._is_all_due = self._is_all_due, False
                await self._pass(None if is_all else changed)
                await self._due.wait()

    def nudge(self) -> None:
        """Make a pass over all groups soon: what is outside the mirrors changed (a lease)."""
        self._is_all_due = True
        self._due.set()

    async def _tick(self) -> None:
        while True:
            await self.region.clock.sleep_ms(PASS_INTERVAL_MS)
            self.nudge()

    def _on_change(self, keys: frozenset[bytes]) -> None:
        self._changed.update(name for key in keys if (name := _group_of(key)))
        if self._changed:
            self._due.set()

    async def _pass(self, changed: set[GroupName] | None) -> None:
        """Look at the groups that changed, or at all of them; many share transactions."""
        self._is_full_pass = changed is None
        if changed is None:
            groups = list(self.member_groups())
        else:
            members = (self._member(name) for name in sorted(changed))
            groups = [group for group in members if group is not None]
        due = [group for group in groups if self._is_due(group)]
        await in_parallel(self._keep_one, due, at_most=GROUPS_PARALLEL_MAX)
        if changed is None:
            await self._keep_access()

    def _is_due(self, group: Group) -> bool:
        """Return whether something about the group is not as it should be, as far as is seen."""
        try:
            is_due = self._has_to_move(group) or self._routing_to_copy(group) is not None
        except CorruptRecord:
            return True
        if not is_due:
            self.problems.pop(group.name, None)
        return is_due

    def _has_to_move(self, group: Group) -> bool:
        item = self._agent.authorities.entries.get(CoordinationKeys.authority(group.name))
        if item is None:
            return False
        authority, fence = decode(Authority, item.value), self._fence(group.name)
        if fence is None:
            return authority.active != self.region.cluster
        return fence.mode is FenceMode.OPEN and (
            authority.epoch > fence.epoch
            or self._misses_permit(group.name)
            or self._misses_scope(group, fence)
            or self._misses_pact(group, authority, fence)
        )

    def _misses_pact(self, group: Group, authority: Authority, fence: Fence) -> bool:
        """Return whether a pact is to be changed, and may be: the permit hangs on the live lease.

        That is the one which the coordination etcd allows.
        """
        permit = self.permits.entries.get(RegionalKeys.permit(group.name))
        lease = self._chain.current_lease()
        is_served = permit is not None and lease is not None and permit.lease == lease
        is_current = authority.epoch == fence.epoch
        return is_served and is_current and self._pacts.is_due(group, authority)

    async def _keep_one(self, group: Group) -> None:
        try:
            await self._keep(group)
            self.problems.pop(group.name, None)
        except MeshError as error:
            self.problems[group.name] = str(error)
            _log.warning("upkeep.delayed", group=group.name, why=str(error))

    async def _keep_access(self) -> None:
        groups = tuple(self.member_groups())
        try:
            await self.region.access.keep({group.name: group.prefixes for group in groups})
        except MeshError as error:
            self.problems.update({g.name: f"etcd's role was not set: {error}" for g in groups})
            _log.warning("role.not_kept", why=str(error))

    def member_groups(self) -> Iterator[Group]:
        """Yield the groups this cluster is a member of; one that cannot be read harms no other."""
        for item in tuple(self._agent.groups.entries.values()):
            group = self._member_of(item)
            if group is not None:
                yield group

    def _member(self, name: GroupName) -> Group | None:
        item = self._agent.groups.entries.get(CoordinationKeys.group(name))
        return self._member_of(item) if item is not None else None

    def _member_of(self, item: KeyValue) -> Group | None:
        try:
            group = decode(Group, item.value)
        except CorruptRecord as error:
            self.problems[GroupName(last_part(item.key))] = str(error)
            return None
        return group if self.region.cluster in group.members else None

    async def _keep(self, group: Group) -> None:
        item = self._agent.authorities.entries.get(CoordinationKeys.authority(group.name))
        if item is None:
            return
        authority = decode(Authority, item.value)
        fence = self._fence(group.name)
        if fence is None:
            if authority.active != self.region.cluster:
                await self._join(group, authority)
        elif fence.mode is FenceMode.OPEN:
            await self._keep_active(group, authority, item.mod_revision, fence)
            await self._keep_pact(group, authority, item.mod_revision, fence)
        await self._copy_routing(group)

    def _fence(self, group: GroupName) -> Fence | None:
        item = self.here.entries.get(RegionalKeys.fence(group))
        return decode(Fence, item.value) if item else None

    async def _join(self, group: Group, authority: Authority) -> None:
        """Make this cluster a passive member: nothing of the group is here yet."""
        view = await self.view(group.name)
        if view.fence is None:
            txn = fences.join(
                view,
                source=authority.active,
                epoch=authority.epoch,
                leader=self.region.leader,
                reason="new member",
            )
            await self._commit(txn)
            _log.info("group.joining", group=group.name, source=authority.active)

    async def _keep_active(
        self, group: Group, authority: Authority, revision: Revision, fence: Fence
    ) -> None:
        if authority.epoch > fence.epoch:
            await self.stopping.obey(group.name, authority.epoch)
            return
        if self._misses_permit(group.name):
            await self._renew_permit(group, authority, revision)
        if self._misses_scope(group, fence):
            await self._keep_scope(group)

    def _misses_permit(self, group: GroupName) -> bool:
        permit = self.permits.entries.get(RegionalKeys.permit(group))
        if permit is None and not self._is_as_new(self.permits, group):
            return False
        lease = self._chain.current_lease()
        return permit is None or lease is None or permit.lease != lease

    def _misses_scope(self, group: Group, fence: Fence) -> bool:
        item = self.scopes.entries.get(RegionalKeys.segment_scope(group.name, fence.epoch))
        if item is None and not self._is_as_new(self.scopes, group.name):
            return False
        return item is None or decode(SegmentScope, item.value).prefixes != group.prefixes

    def _is_as_new(self, mirror: PrefixMirror, group: GroupName) -> bool:
        """Return whether a mirror shows what was put together with the group's fence.

        A mirror is told only of changes of its own, so a pass over everything does not ask.
        """
        fence = self.here.entries.get(RegionalKeys.fence(group))
        return self._is_full_pass or fence is None or mirror.revision >= fence.mod_revision

    async def _keep_pact(
        self, group: Group, authority: Authority, revision: Revision, fence: Fence
    ) -> None:
        item = self.here.entries.get(RegionalKeys.fence(group.name))
        if item is not None and self._misses_pact(group, authority, fence):
            await self._pacts.keep(group, authority, revision, item.mod_revision)

    async def _renew_permit(self, group: Group, authority: Authority, revision: Revision) -> None:
        lease = await self._chain.permit_lease(authority, revision)
        view = await self.view(group.name)
        txn = fences.permit_again(
            view, authority, me=self.region.cluster, leader=self.region.leader, lease=lease
        )
        if txn is not None:
            await self._commit(txn)
            _log.info("permit.put", group=group.name, epoch=authority.epoch)

    async def _keep_scope(self, group: Group) -> None:
        view = await self.view(group.name)
        txn = fences.scope_again(view, group.prefixes, leader=self.region.leader)
        if txn is not None:
            await self._commit(txn)

    async def _copy_routing(self, group: Group) -> None:
        """Bring the local copy of the routing record up to date; never back to an older epoch."""
        routing = self._routing_to_copy(group)
        if routing is None:
            return
        key = RegionalKeys.routing(group.name)
        copy = self.copies.entries.get(key)
        guard = ModRevisionIs(key, copy.mod_revision if copy else ABSENT)
        await self._commit(
            Txn(guards=(self.region.leader, guard), operations=(Put(key, routing.value),))
        )

    def _routing_to_copy(self, group: Group) -> KeyValue | None:
        """Return the routing record if the copy here is another."""
        if CoordinationKeys.authority(group.name) not in self._agent.authorities.entries:
            return None
        routing = self._agent.routings.entries.get(CoordinationKeys.routing(group.name))
        copy = self.copies.entries.get(RegionalKeys.routing(group.name))
        is_same = routing is None or (copy is not None and copy.value == routing.value)
        return None if is_same else routing

    async def view(self, group: GroupName) -> FenceView:
        """Read a group's fence with all that belongs to it, at one revision."""
        return await read_view(self.region, group)

    async def _commit(self, txn: Txn) -> None:
        outcome = await self.region.regional.commit(txn)
        if not isinstance(outcome, Committed):
            self.nudge()


def _group_of(key: bytes) -> GroupName | None:
    """Return the group that a mirrored key is about; None if it is about the cluster."""
    if key.startswith(RegionalKeys.segments):
        parts = parts_below(RegionalKeys.segments, key)
        return GroupName(parts[0]) if parts else None
    is_clusters = key.startswith(RegionalKeys.checkpoints) and not is_group_checkpoint(key)
    if is_clusters or key == RegionalKeys.fence_index:
        return None
    return GroupName(last_part(key))


def is_group_checkpoint(key: bytes) -> bool:
    """Return whether a key below `checkpoint/` belongs to a group out of step."""
    return key.count(b"/") == RegionalKeys.checkpoints.count(b"/") + 1
