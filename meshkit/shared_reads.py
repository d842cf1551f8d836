"""One reading of the mesh for everybody who asks at the same moment.

A thousand failovers that check at once would otherwise read every group a thousand times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from meshkit.clock import Clock
from meshkit.errors import MeshError, Unreachable

T = TypeVar("T")

REST = 3
"""With a clock: after a reading nothing is read for so many times as long as it took, so that those
who keep asking take a quarter of this process at most, and more of them share the next one."""
REST_MS_MAX = 300
"""A store that answers slowly is no reason to wait longer."""


class SharedReads(Generic[T]):
    """Reads that begin after everybody who shares them has asked, one at a time.

    So each caller sees what was there when it asked, or later: as fresh as a reading of its own.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], *, clock: Clock | None = None) -> None:
        self._read = read
        self._clock = clock
        self._rested_ms = 0
        self._next: asyncio.Future[T] | None = None
        self._reading = asyncio.Lock()

    async def read(self) -> T:
        """Return what was read after this call began.

        Raises:
            MeshError: whatever the reading raised.
        """
        while True:
            shared = self._next
            if shared is None:
                return await self._read_for_all()
            try:
                return await asyncio.shield(shared)
            except _Abandoned:
                continue

    async def _read_for_all(self) -> T:
        shared: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._next = shared
        try:
            async with self._reading:
                # Whoever is about to ask in this very moment shares it too.
                await self._rest()
                self._next = None
                found = await self._read_timed()
        except BaseException as error:
            self._next = None if self._next is shared else self._next
            shared.set_exception(error if isinstance(error, MeshError) else _Abandoned())
            shared.exception()
            raise
        shared.set_result(found)
        return found

    async def _rest(self) -> None:
        await asyncio.sleep(0)
        if self._clock is not None and (left_ms := self._rested_ms - self._clock.now_ms()) > 0:
            await self._clock.sleep_ms(left_ms)

    async def _read_timed(self) -> T:
        if self._clock is None:
            return await self._read()
        began_ms = self._clock.now_ms()
        found = await self._read()
        ended_ms = self._clock.now_ms()
        self._rested_ms = ended_ms + min(REST_MS_MAX, REST * (ended_ms - began_ms))
        return found


class _Abandoned(Unreachable):
    """Whoever read for all was cancelled; the others read again."""
