"""One reading of the mesh for everybody who asks at the same moment.

A thousand failovers that check at once would otherwise read every group a thousand times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from meshkit.errors import MeshError, Unreachable

T = TypeVar("T")


class SharedReads(Generic[T]):
    """Reads that begin after everybody who shares them has asked, one at a time.

    So each caller sees what was there when it asked, or later: as fresh as a reading of its own.
    """

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
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
                await asyncio.sleep(0)
                self._next = None
                found = await self._read()
        except BaseException as error:
            self._next = None if self._next is shared else self._next
            shared.set_exception(error if isinstance(error, MeshError) else _Abandoned())
            shared.exception()
            raise
        shared.set_result(found)
        return found


class _Abandoned(Unreachable):
    """Whoever read for all was cancelled; the others read again."""
