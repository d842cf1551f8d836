"""Stopping a region because an etcd is not the one it was, and staying stopped.

Where the coordination etcd went back, the region also ends every epoch in which it is active: its
segment is cut, so that what it holds is a fact that an adoption can build on, and what is opened
afterwards is a new epoch. Repeating it changes nothing.
"""

from __future__ import annotations

from typing import NoReturn

import attrs
import structlog

from fencing import fence as fences
from fencing.decision import fence_txn
from fencing.fence_view import FenceView, view_of, view_reads
from fencing.term import Term
from meshkit.clock import Clock
from meshkit.codec import decode, encode
from meshkit.errors import MeshError, Refused, StoreReplaced
from meshkit.incarnations import SuspectStore, Suspension
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Token
from meshkit.regional import Fence, FenceMode
from meshkit.store.port import Store
from meshkit.store.txn import (
    Committed,
    Delete,
    Guard,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
    absent,
    prefix_range,
)
from replicator.access import AccessFence, NoAccessFence

_log = structlog.get_logger()

ADOPT = (
    "decide whether its state is what you want, then: mesh clusters adopt {cluster} --reason WHY"
)
ADOPT_COORDINATION = (
    "make sure that no other copy of the coordination etcd runs, then:"
    " mesh coordination adopt --reason WHY"
)
STOPPED = "the coordination etcd went back"


@attrs.define(kw_only=True, eq=False)
class Suspender:
    """Stops one region, in the term of its leading replicator."""

    cluster: ClusterName
    replicator: str
    regional: Store
    coordination: Store
    clock: Clock
    term: Term
    access: AccessFence = attrs.field(factory=NoAccessFence)

    async def suspend(
        self, store: SuspectStore, reason: str, *, incarnation: Incarnation
    ) -> NoReturn:
        """Write down that this region stops, delete its permits, and stop.

        Raises:
            StoreReplaced: always.
        """
        suspension = Suspension(
            cluster=self.cluster,
            store=store,
            incarnation=incarnation,
            reason=reason,
            replicator=self.replicator,
            at_ms=self.clock.wall_ms(),
        )
        _log.error("region.suspended", cluster=self.cluster, store=store.value, why=reason)
        put = encode(suspension)
        outside = CoordinationKeys.suspension(self.cluster)
        if store is SuspectStore.COORDINATION:
            here = RegionalKeys.suspended
            await self._try(self.regional, (absent(here),), [Put(here, put)])
        else:
            await self.mark_replaced(suspension)
        await self._try(self.coordination, (absent(outside),), [Put(outside, put)])
        await self._delete_permits()
        if store is SuspectStore.COORDINATION:
            await self.stop()
        raise replaced(suspension)

    async def mark_replaced(self, suspension: Suspension, *guards: Guard) -> None:
        """Write down in the region, as far as it answers, that its etcd went back.

        Whoever promises there needs neither lead nor reach the coordination etcd, so it must find
        that here. A late one is refused once the etcd was adopted, which deletes it.
        """
        here = RegionalKeys.replaced
        try:
            item = await self.regional.get(RegionalKeys.incarnation)
        except MeshError as error:
            _log.error("suspension.not_stored", why=str(error))
            return
        revision = item.mod_revision if item else ABSENT
        same = ModRevisionIs(RegionalKeys.incarnation, revision)
        await self._try(
            self.regional, (absent(here), same, *guards), [Put(here, encode(suspension))]
        )

    async def stop(self) -> None:
        """End every epoch in which this region is active, as far as its etcd answers."""
        try:
            found = await self.regional.range(prefix_range(RegionalKeys.fences))
            for item in found.items:
                fence = decode(Fence, item.value)
                if fence.mode is FenceMode.OPEN:
                    await self._end_epoch(fence.group)
        except MeshError as error:
            _log.error("region.not_stopped", cluster=self.cluster, why=str(error))

    async def _end_epoch(self, group: GroupName) -> None:
        view = await self._view(group)
        if view.fence is None:
            return
        below = Epoch(view.fence.epoch + 1)
        txn = fences.supersede(view, below=below, leader=self.term.guard(), reason=STOPPED)
        if txn is None:
            return
        async with self.access.closing(view.scope or ()):
            await commit_all(self.regional, txn)
        _log.warning("group.stopped", group=group, epoch=view.fence.epoch, why=STOPPED)

    async def raise_floor(self, floor: Token) -> None:
        """See to it that no command below `floor` is ever obeyed here again.

        Raises:
            MeshError: it could not be made sure of for every group.
        """
        found = await self.regional.range(prefix_range(RegionalKeys.fences))
        for item in found.items:
            group = decode(Fence, item.value).group
            view = await self._view(group)
            if view.fence is None or view.fence.command_token >= floor:
                continue
            raised = attrs.evolve(view.fence, command_token=floor)
            await commit_all(self.regional, fence_txn(view, raised, leader=self.term.guard()))

    async def _view(self, group: GroupName) -> FenceView:
        outcome = await self.regional.commit(Txn(operations=view_reads(group)))
        assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
        return view_of(group, outcome.reads)

    async def _delete_permits(self) -> None:
        try:
            permits = await self.regional.range(prefix_range(RegionalKeys.permits), keys_only=True)
        except MeshError as error:
            _log.warning("permits.not_deleted", why=str(error))
            return
        operations: list[Operation] = [Delete(permit.key) for permit in permits.items]
        if operations:
            await self._try(self.regional, (), operations)

    async def _try(
        self, store: Store, guards: tuple[Guard, ...], operations: list[Operation]
    ) -> None:
        """Commit if it can be done; whoever looks next tries again."""
        try:
            await store.commit(Txn(guards=guards, operations=tuple(operations)))
        except MeshError as error:
            _log.error("suspension.not_stored", why=str(error))


async def commit_all(store: Store, txn: Txn) -> None:
    """Commit.

    Raises:
        Refused: a guard did not hold; whatever asked for it looks again.
    """
    if not isinstance(await store.commit(txn), Committed):
        raise Refused("something moved meanwhile; it is looked at again")


def replaced(suspension: Suspension) -> StoreReplaced:
    """Return the error that says why a region is not led, and what to do."""
    hint = ADOPT if suspension.store is SuspectStore.REGIONAL else ADOPT_COORDINATION
    return StoreReplaced(
        f"{suspension.cluster} is suspended: {suspension.reason}. Nothing is sent, applied or"
        " permitted there",
        hint=hint.format(cluster=suspension.cluster),
    )
