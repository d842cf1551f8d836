"""What a gate watches: the routing record, and each member's permit and beat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import attrs
import structlog

from fencing.gate_view import MemberView
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import Compacted, MeshError
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Routing
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import KeyValue

_log = structlog.get_logger()

RETRY_MS = 200

Connect = Callable[[ClusterName, tuple[str, ...]], Awaitable[Store]]
"""Returns a store for a cluster's endpoints. The gate closes what it got from it."""


async def follow_key(
    store: Store, key: bytes, *, clock: Clock, on_item: Callable[[KeyValue | None, Revision], None]
) -> None:
    """Report the key as it is, and after every change, until cancelled."""
    while True:
        try:
            found = await store.range((key, b""))
            on_item(found.items[0] if found.items else None, found.revision)
            start = Revision(found.revision + 1)
            async with store.watch((key, b""), start=start) as items:
                async for item in items:
                    if isinstance(item, RevisionChanges):
                        change = item.changes[-1]
                        on_item(None if change.is_delete else change.item, item.revision)
        except Compacted:
            continue
        except MeshError as error:
            _log.info("gate.watch_broken", key=key.decode(errors="replace"), error=str(error))
        await clock.sleep_ms(RETRY_MS)


async def follow_routing(
    store: Store, group: GroupName, *, clock: Clock, on_routing: Callable[[Routing], None]
) -> None:
    """Report the group's routing record from one source, until cancelled."""

    def on_item(item: KeyValue | None, _: Revision) -> None:
        if item is None:
            return
        try:
            on_routing(decode(Routing, item.value))
        except MeshError as error:
            _log.error("gate.routing_unreadable", group=group, error=str(error))

    # The local copy in a region has the same key as the record in the coordination etcd.
    await follow_key(store, CoordinationKeys.routing(group), clock=clock, on_item=on_item)


@attrs.define(kw_only=True, eq=False)
class Member:
    """One member cluster of the group, as this client is connected to it."""

    group: GroupName
    view: MemberView
    clock: Clock
    on_change: Callable[[], None]
    endpoints: tuple[str, ...] = ()
    connect: Connect | None = None
    store: Store | None = None
    """Given, or made by `connect`; then it is ours to close."""

    async def run(self) -> None:
        """Connect and watch until cancelled."""
        is_ours = self.store is None
        try:
            store = self.store or await self._connected()
            self.store = store
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    follow_key(
                        store,
                        RegionalKeys.permit(self.group),
                        clock=self.clock,
                        on_item=self._on_permit,
                    )
                )
                tasks.create_task(self._anchor(store))
                await self._follow_beat(store)
        finally:
            self.view.on_lost()
            if is_ours and self.store is not None:
                await self.store.close()

    async def _connected(self) -> Store:
        assert self.connect is not None, "a member has a store or a way to connect"
        while True:
            try:
                return await self.connect(self.view.cluster, self.endpoints)
            except MeshError as error:
                _log.warning("gate.connecting", cluster=self.view.cluster, error=str(error))
            await self.clock.sleep_ms(RETRY_MS)

    async def _follow_beat(self, store: Store) -> None:
        def on_item(item: KeyValue | None, _: Revision) -> None:
            if item is not None:
                self.view.on_beat(item.value, item.mod_revision)
                self.on_change()

        await follow_key(store, RegionalKeys.beat, clock=self.clock, on_item=on_item)

    async def _anchor(self, store: Store) -> None:
        """Anchor often enough that a beat is vouched for as soon as it comes.

        A cluster with a permit is asked twice as often, so that its gate stays open through a
        stall of almost `Tr`; the others just often enough to open at once.
        """
        while True:
            ttl_ms = self.view.regional_ttl_ms
            sent_at_ms = self.clock.now_ms()
            try:
                found = await store.range((RegionalKeys.beat, b""))
            except MeshError as error:
                _log.debug("gate.not_anchored", cluster=self.view.cluster, error=str(error))
            else:
                self.view.on_anchor(sent_at_ms=sent_at_ms, revision=found.revision)
            self.on_change()
            await self.clock.sleep_ms(ttl_ms // (8 if self.view.permit is not None else 4))

    def _on_permit(self, item: KeyValue | None, revision: Revision) -> None:
        self.view.on_permit(None if item is None else item.value, revision)
        self.on_change()
