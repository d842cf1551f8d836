"""Reads a long backlog by several watches at once, because etcd gives one about 10,000/s.

Each watches everything, from another revision on, so each proves by itself what it has delivered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from meshkit.etcd_binary import version_parts
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import WHOLE_STORE
from replicator.limits import Limits
from replicator.pulse import Pulse
from replicator.spans import HistoryTorn, Span, Spans
from replicator.together import Scope

_log = structlog.get_logger()

_REUSED_EVENTS = ((3, 6, 0), (3, 6, 9))
"""From, and before: lagging watches shared events by an optimisation taken back (etcd #21355)."""


class NotByMany(Exception):
    """The rest has to be read by one watch."""


def is_trusted(version: str) -> bool:
    """Return whether lagging watches of a server do not disturb each other; of an unknown, no."""
    first, fixed = _REUSED_EVENTS
    return bool(version) and not first <= version_parts(version) < fixed


class CatchUp:
    """One reading of `(after, head]`, where `head` was the store's revision at some moment."""

    def __init__(
        self,
        store: Store,
        *,
        after: Revision,
        head: Revision,
        put: Callable[[RevisionChanges], Awaitable[object]],
        limits: Limits,
    ) -> None:
        self._store = store
        self._put = put
        self._after = after
        self._spans = Spans(after=after, through=head, limits=limits)
        self._pulse = Pulse()

    async def run(self) -> None:
        """Put every revision up to the head, whole and in order.

        Whatever ends it, what was put until then is whole and without gaps.

        Raises:
            Compacted: part of the backlog is gone.
            NotByMany: a watch has left something out, or has ended.
            Unreachable: the store cannot be reached.
        """
        _log.info("catch_up.begun", after=self._after, head=self._spans.through)
        scope = Scope()
        scope.start(self._drain(scope))
        try:
            await scope.wait()
        except HistoryTorn as error:
            raise NotByMany(str(error)) from error
        _log.info("catch_up.ended", head=self._spans.through)

    async def _drain(self, scope: Scope) -> None:
        spans = self._spans
        while not spans.is_done:
            while (span := spans.begin_next()) is not None:
                scope.start(self._read(span))
            was_full = spans.is_full
            changes = spans.take()
            if changes is None or was_full:
                # Who waits for room, or to be the first, looks again.
                self._pulse.beat()
            if changes is None:
                await self._pulse.wait()
            else:
                await self._put(changes)

    async def _read(self, span: Span) -> None:
        spans = self._spans
        async with self._store.watch(WHOLE_STORE, start=span.start) as items:
            async for item in items:
                if not isinstance(item, RevisionChanges):
                    continue
                spans.add(span, item)
                if spans.is_first(span):
                    self._pulse.beat()
                if span.is_read:
                    return
                # The first one must go on, or nobody ever would.
                while spans.is_full and not spans.is_first(span):
                    await self._pulse.wait()
        raise NotByMany("a watch of the backlog has ended")
