"""Writes that were sent and are not answered yet; how they end once writes have moved on.

A cluster that hangs, or whose connection is a black hole, answers after the whole deadline of the
caller, or never. Where another cluster accepts writes by then the caller is told sooner that nobody
knows; what was sent is never sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import attrs

from fencing.gate_view import Opening
from meshkit.clock import Clock
from meshkit.errors import OutcomeUnknown

ANSWER_GRACE_MS = 1_000
"""For so long after a move the answer of the cluster that writes left may be on its way."""


@attrs.define(kw_only=True, eq=False)
class InFlight:
    """The writes of one gate that wait for an answer."""

    clock: Clock
    _sent: dict[asyncio.Timeout, Opening] = attrs.field(factory=dict, init=False)

    @contextlib.asynccontextmanager
    async def sent_to(self, opening: Opening) -> AsyncIterator[None]:
        """Wait for an answer in this block, as long as writes do not move on.

        Raises:
            OutcomeUnknown: they did, and it has not come.
        """
        try:
            async with asyncio.timeout(None) as limit:
                self._sent[limit] = opening
                try:
                    yield
                finally:
                    del self._sent[limit]
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise OutcomeUnknown(
                f"{opening.cluster} did not answer and writes have moved on:"
                " the write may be there, and may be lost"
            ) from error

    @property
    def is_waiting(self) -> bool:
        """Whether any write has no answer."""
        return bool(self._sent)

    async def end_before(self, opening: Opening) -> None:
        """Wait no longer for what was sent under an older permit than that of an opening."""
        await self.clock.sleep_ms(ANSWER_GRACE_MS)
        now_s = asyncio.get_running_loop().time()
        for limit, sent_to in self._sent.items():
            if (sent_to.epoch, sent_to.token) < (opening.epoch, opening.token):
                limit.reschedule(now_s)
