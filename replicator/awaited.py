"""Who waits for what in a region: thousands may, and a change wakes only those it concerns."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from meshkit.names import GroupName
from meshkit.ordinals import Sequence
from replicator.pulse import Pulse


class AwaitedPositions:
    """Waits until a log is applied so far; check, then wait, with no await in between."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Sequence, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    async def until(self, sequence: Sequence) -> None:
        """Return when the position may have reached `sequence`, or something else has changed."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (sequence, next(self._order), waiting))
        await waiting

    def on_position(self, position: Sequence) -> None:
        """Wake those who wait for this position or one before it."""
        while self._waiting and self._waiting[0][0] <= position:
            _wake(heapq.heappop(self._waiting)[2])

    def wake_all(self) -> None:
        """Wake everybody: whatever they wait for may have become something else."""
        woken, self._waiting = self._waiting, []
        for *_, waiting in woken:
            _wake(waiting)


class AwaitedGroups:
    """Waits for a change of one group; check, then wait, with no await in between."""

    def __init__(self) -> None:
        self._pulses: dict[GroupName, Pulse] = {}

    async def change_of(self, group: GroupName) -> None:
        """Return after the next change of the group."""
        await self._pulses.setdefault(group, Pulse()).wait()

    def on_change(self, group: GroupName) -> None:
        """Wake those who wait for this group."""
        pulse = self._pulses.pop(group, None)
        if pulse is not None:
            pulse.beat()

    def wake_all(self) -> None:
        """Wake everybody."""
        for group in tuple(self._pulses):
            self.on_change(group)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
