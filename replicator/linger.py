"""How long a frame waits for company.

A target applies one transaction at a time, and merges what arrives meanwhile into the next. So of
frames that follow each other faster than that, most only wait at the target, and each costs both
sides wake-ups that other work may need. A source therefore waits half of what a transaction takes
there, as the target tells with its acknowledgements: little where etcd is quick.
"""

from __future__ import annotations

from meshkit.clock import Clock
from replicator.limits import Limits


def linger_ms(limits: Limits, *, apply_ms: int) -> int:
    """Return how long after a frame the next one may be sent; `apply_ms` 0: not known."""
    most_ms = max(limits.linger_ms, limits.linger_ms_max)
    return min(most_ms, max(limits.linger_ms, apply_ms // 2))


class Linger:
    """What the frames of one stream wait for each other."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self.apply_ms = 0
        self._clock = clock
        self._limits = limits
        self._framed_at_ms = 0

    async def before_frame(self, *, is_full: bool) -> None:
        """Wait until the next frame is due; one that `is_full` needs no company."""
        due_ms = self._framed_at_ms + linger_ms(self._limits, apply_ms=self.apply_ms)
        wait_ms = due_ms - self._clock.now_ms()
        if wait_ms > 0 and not is_full:
            await self._clock.sleep_ms(wait_ms)
        self._framed_at_ms = self._clock.now_ms()
