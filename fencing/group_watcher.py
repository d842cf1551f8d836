"""The SDK: watches a group's keys wherever it is active, across failovers, and misses nothing.

While authority stays, it is a watch of the active cluster. When authority moves it first reads the
old cluster to the cut, which a planned failover fixes, and goes on at the new one's opening. Where
the old cluster is out of reach, the new one's checkpoints say at which of *its* revisions the last
delivered one is contained, and it goes on from there: what was delivered already is marked. Where
neither is possible it delivers the whole state as a `Reset`, never a silent gap. It writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from collections.abc import Sequence as Ordered
from types import TracebackType
from typing import Self

import attrs
import structlog

from fencing.gate_member import Connect, follow_routing
from fencing.group_log import (
    Anew,
    GroupChanges,
    GroupEvent,
    GroupItem,
    LegFold,
    Place,
    Recent,
    Replay,
    Reset,
)
from fencing.group_places import Leg, Unresolved, place_in_replay, read_leg, read_state
from meshkit.clock import Clock, SystemClock
from meshkit.errors import Compacted, MeshError, Unreachable
from meshkit.model import Routing
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision, Sequence
from meshkit.store.port import RevisionChanges, Store, WatchItem
from meshkit.store.txn import WHOLE_STORE

_log = structlog.get_logger()

RETRY_MS = 50
DRAIN_PATIENCE_MS = 1_000
"""How long the old cluster may say nothing before the watcher goes on without it."""
SEARCH_PATIENCE_MS = 5_000
"""How long the way from epoch to epoch is looked for before the state is read instead."""


class GroupWatcher:
    """Every change of a group's keys, in order per key, at least once, repeats marked.

    Use it as an async context manager and iterate `items()`. The first item is a `Reset` with the
    state, unless `since` says where an earlier watcher stood (its `place`). It watches the whole
    key space of the active cluster, because a revision's origin is told by the keys beside it: it
    needs read access to all keys there.
    """

    def __init__(
        self,
        group: GroupName,
        *,
        routing: Ordered[Store] = (),
        connect: Connect | None = None,
        members: Mapping[ClusterName, Store] | None = None,
        since: Place | None = None,
        drain_patience_ms: int = DRAIN_PATIENCE_MS,
        clock: Clock | None = None,
    ) -> None:
        self.group = group
        self.clock: Clock = clock or SystemClock()
        self._routing_sources = tuple(routing)
        self._connect = connect
        self._fixed = dict(members or {})
        self._made: dict[ClusterName, tuple[tuple[str, ...], Store]] = {}
        self._drain_patience_ms = drain_patience_ms
        self._routing: Routing | None = None
        self._moved = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._place = since
        self._fold: LegFold | None = None
        self._recent = Recent(Sequence(since.revision if since else 0))
        self._searching_since_ms: int | None = None
        self._anew: Anew | None = None if since else Anew("the watch begins")

    async def __aenter__(self) -> Self:
        """Begin to follow the routing record."""
        for source in self._routing_sources:
            follow = follow_routing(
                source, self.group, clock=self.clock, on_routing=self._on_routing
            )
            self._tasks.append(asyncio.get_running_loop().create_task(follow))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and close the stores that `connect` made."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, store in self._made.values():
            await store.close()

    @property
    def place(self) -> Place | None:
        """Where it stands: keep it with what you made of the items, to go on from it later."""
        return self._place

    async def items(self) -> AsyncIterator[GroupItem]:
        """Yield the state, then every change, until the caller stops. It outlives any outage."""
        while True:
            try:
                if self._anew is not None:
                    yield await self._begin(self._anew)
                    continue
                leg = await self._next_leg()
                if leg is not None and self._position() >= leg.sequence:
                    await self._step_over(leg)
                    continue
                async for changes in self._watched(leg):
                    yield changes
            except MeshError as error:
                _log.info("group_watcher.interrupted", group=self.group, error=str(error))
                await self.clock.sleep_ms(RETRY_MS)

    # --- where to read -------------------------------------------------------------------------

    def _on_routing(self, routing: Routing) -> None:
        seen = self._routing
        if seen is None or (seen.epoch, seen.token) < (routing.epoch, routing.token):
            self._routing = routing
            self._moved.set()

    async def _store(self, cluster: ClusterName) -> Store:
        if cluster in self._fixed:
            return self._fixed[cluster]
        endpoints = self._routing.endpoints.get(cluster, ()) if self._routing else ()
        made = self._made.get(cluster)
        if made is not None and made[0] == endpoints:
            return made[1]
        if self._connect is None or not endpoints:
            raise Unreachable(f"nobody has said how to reach {cluster}")
        store = await self._connect(cluster, endpoints)
        self._made[cluster] = (endpoints, store)
        if made is not None:
            await made[1].close()
        return store

    def _position(self) -> Sequence:
        """Return up to where this leg's log was read; what follows a cut is no part of it."""
        assert self._place is not None
        cut = self._fold.cut if self._fold else None
        revision = self._place.revision
        return Sequence(revision if cut is None else min(cut, revision))

    # --- beginning, or beginning again ---------------------------------------------------------

    async def _begin(self, anew: Anew) -> Reset:
        while self._routing is None:
            self._moved.clear()
            await self._moved.wait()
        routing = self._routing
        store = await self._store(routing.active)
        found, state = await read_state(store, self.group, routing.epoch, cluster=routing.active)
        self._place = found.place_at(found.read_at)
        self._fold = found.fold(self.group)
        self._recent = Recent.of_state(state)
        self._anew = None
        _log.info("group_watcher.began", group=self.group, why=anew.reason, place=str(self._place))
        return Reset(
            cluster=routing.active,
            epoch=routing.epoch,
            revision=found.read_at,
            state={item.key: item.value for item in state},
            reason=anew.reason,
        )

    # --- from one cluster to the next ----------------------------------------------------------

    async def _next_leg(self) -> Leg | None:
        """Return the epoch that follows ours, once authority has moved; None before.

        Raises:
            MeshError: it cannot be said yet; ask again.
        """
        place, routing = self._place, self._routing
        assert place is not None
        if routing is None or routing.epoch <= place.epoch:
            return None
        cluster, epoch = routing.active, routing.epoch
        try:
            while True:
                leg = await read_leg(await self._store(cluster), self.group, epoch, cluster=cluster)
                lineage = leg.lineage
                if lineage is None or lineage.parent_epoch < place.epoch:
                    self._anew = Anew(f"epoch {place.epoch} is no part of the group's history")
                    raise Unresolved(self._anew.reason)
                if lineage.parent_epoch == place.epoch:
                    self._searching_since_ms = None
                    return leg
                cluster, epoch = lineage.parent, lineage.parent_epoch
        except MeshError as error:
            self._lose_patience(error, is_active=cluster == routing.active)
            raise

    def _lose_patience(self, error: MeshError, *, is_active: bool) -> None:
        """Read the state instead, if an epoch in between cannot be found out about for long."""
        now_ms = self.clock.now_ms()
        if is_active and not isinstance(error, Compacted):
            self._searching_since_ms = None
            return
        since_ms = self._searching_since_ms
        self._searching_since_ms = now_ms if since_ms is None else since_ms
        if isinstance(error, Compacted) or now_ms - self._searching_since_ms >= SEARCH_PATIENCE_MS:
            self._searching_since_ms = None
            self._anew = Anew(f"the way to the active cluster is unknown: {error}")

    async def _step_over(self, leg: Leg) -> None:
        """Go on at the next epoch's cluster, behind what was delivered of this one."""
        place, lineage = self._place, leg.lineage
        assert place is not None
        assert lineage is not None
        position = self._position()
        why = ""
        if (lineage.parent, lineage.parent_incarnation) != (place.cluster, place.incarnation):
            why = f"{leg.cluster} goes on from another history than the one that was watched"
        elif place.delivered > lineage.sequence:
            why = f"what {place.cluster} wrote after {lineage.sequence} was lost in a failover"
        elif place.revision < place.opened:
            why = f"{place.cluster} was left before it had caught up"
        if why:
            self._anew = Anew(why)
            return
        if position >= lineage.sequence:
            self._enter(leg, leg.opened, replay=None)
            return
        store = await self._store(leg.cluster)
        found = await place_in_replay(
            store, self.group, leg, incarnation=place.incarnation, seen=position
        )
        if isinstance(found, Anew):
            self._anew = found
            return
        revision, contained = found
        # Below its opening nothing of the group is in this leg's log, and lineage guarantees that
        # all that came before it was applied there first.
        known = self._recent.above(max(contained, Sequence(place.opened)), position)
        if known is None:
            self._anew = Anew("too much was delivered since the new active cluster's checkpoint")
            return
        replay = Replay(source=place.cluster, through=position, known=known)
        self._enter(leg, revision, replay=replay)

    def _enter(self, leg: Leg, revision: Revision, *, replay: Replay | None) -> None:
        self._place = leg.place_at(revision)
        self._fold = leg.fold_from_opening(self.group, replay=replay)
        self._recent = Recent(Sequence(revision))
        _log.info(
            "group_watcher.moved", group=self.group, place=str(self._place), replay=bool(replay)
        )

    # --- one cluster's history -----------------------------------------------------------------

    async def _watched(self, leg: Leg | None) -> AsyncIterator[GroupChanges]:
        """Yield what this cluster's history says, until it ends or authority moves.

        With the next `leg` known, it goes on there afterwards, whether or not this cluster could
        be read to its end.
        """
        place = self._place
        assert place is not None
        try:
            store = await self._store(place.cluster)
            start = await self._check(store, place)
            async with store.watch(WHOLE_STORE, start=start) as items:
                async for item in self._until_due(items, leg):
                    if leg is not None and item.revision > leg.sequence:
                        self._place = attrs.evolve(
                            self._place or place, revision=Revision(leg.sequence)
                        )
                        break
                    events = self._take(item)
                    if events:
                        yield self._delivered(item.revision, events)
        except MeshError as error:
            if leg is None and not isinstance(error, Compacted | Unresolved):
                raise
            if leg is None:
                self._anew = Anew(str(error))
            _log.info("group_watcher.left", group=self.group, error=str(error))
        if leg is not None and self._anew is None:
            await self._step_over(leg)

    async def _check(self, store: Store, place: Place) -> Revision:
        """Return where to go on, once the cluster's history is the one the place is in."""
        revision = place.revision if self._fold is None else None
        if revision is not None and revision < place.opened:
            raise Unresolved("the place is inside a replay")
        found = await read_leg(
            store, self.group, place.epoch, cluster=place.cluster, revision=revision
        )
        if found.incarnation != place.incarnation or found.opened != place.opened:
            raise Unresolved(f"{place.cluster} has another history than before")
        if self._fold is None:
            self._fold = found.fold(self.group)
            # What followed the cut is looked at again: it matters if the cut is undone.
            if found.cut is not None:
                self._place = place = attrs.evolve(place, revision=found.cut)
        return Revision(place.revision + 1)

    async def _until_due(
        self, items: AsyncIterator[WatchItem], leg: Leg | None
    ) -> AsyncIterator[RevisionChanges]:
        """Yield whole revisions while they are due: to the leg's end, or while authority stays."""
        pending: asyncio.Task[WatchItem] | None = None
        try:
            while not self._is_over(leg):
                pending = pending or asyncio.ensure_future(_next(items))
                if not await self._arrived(pending, leg):
                    return
                if pending.done():
                    item, pending = pending.result(), None
                    if isinstance(item, RevisionChanges):
                        yield item
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)

    def _is_over(self, leg: Leg | None) -> bool:
        if self._anew is not None:
            return True
        if leg is not None:
            return self._position() >= leg.sequence
        assert self._place is not None
        return self._routing is not None and self._routing.epoch > self._place.epoch

    async def _arrived(self, pending: asyncio.Task[WatchItem], leg: Leg | None) -> bool:
        """Wait for the next revision or a move of authority; False if neither comes in time."""
        if pending.done():
            return True
        self._moved.clear()
        other = asyncio.ensure_future(self._moved_or_patience(leg))
        try:
            await asyncio.wait((pending, other), return_when=asyncio.FIRST_COMPLETED)
            return leg is None or pending.done()
        finally:
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)

    async def _moved_or_patience(self, leg: Leg | None) -> None:
        if leg is None:
            await self._moved.wait()
        else:
            await self.clock.sleep_ms(self._drain_patience_ms)

    def _take(self, item: RevisionChanges) -> tuple[GroupEvent, ...]:
        assert self._place is not None
        assert self._fold is not None
        events = self._fold.take(item)
        if isinstance(events, Anew):
            self._anew = events
            return ()
        self._place = attrs.evolve(
            self._place,
            revision=item.revision,
            delivered=item.revision if events else self._place.delivered,
        )
        return events

    def _delivered(self, revision: Revision, events: tuple[GroupEvent, ...]) -> GroupChanges:
        assert self._place is not None
        for event in events:
            self._recent.remember(event, Sequence(revision))
        return GroupChanges(
            cluster=self._place.cluster,
            epoch=self._place.epoch,
            revision=revision,
            events=events,
        )


async def _next(items: AsyncIterator[WatchItem]) -> WatchItem:
    try:
        return await anext(items)
    except StopAsyncIteration:
        raise Unreachable("the watch has ended") from None
