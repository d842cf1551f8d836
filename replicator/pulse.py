"""Wakes every task that waits for something to have changed. It carries no message."""

from __future__ import annotations

import asyncio


class Pulse:
    """A nudge. Check, then wait, with no await in between, and nothing is missed.

    It beats far more often than anybody waits, so a beat that nobody waits for costs next to
    nothing.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}

    def beat(self) -> None:
        """Wake every task that waits now."""
        if self._waiting:
            woken, self._waiting = self._waiting, {}
            for waiting in woken:
                if not waiting.done():
                    waiting.set_result(None)

    async def wait(self) -> None:
        """Return after the next beat."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = None
        try:
            await waiting
        finally:
            self._waiting.pop(waiting, None)


async def either(one: Pulse, other: Pulse, reading: asyncio.Future[None]) -> None:
    """Return after a beat of either, or when the reading has ended."""
    waits = [asyncio.ensure_future(pulse.wait()) for pulse in (one, other)]
    try:
        await asyncio.wait({*waits, reading}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
