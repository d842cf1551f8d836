"""The clock of one simulated process: a little fast or slow, and with a wrong wall clock."""

from __future__ import annotations

import attrs

from chaos.sim.loop import NS_PER_MS, VirtualLoop

_PPM = 1_000_000
_BEGAN_WALL_MS = 1_700_000_000_000


@attrs.frozen(kw_only=True)
class SimClock:
    """Satisfies `meshkit.clock.Clock` on a loop's virtual time."""

    loop: VirtualLoop = attrs.field(repr=False)
    rate_ppm: int = 0
    """How much faster than true time it runs, in parts per million."""
    began_ms: int = 0
    """What it showed at true time zero: monotonic clocks of two processes mean nothing together."""
    wall_error_ms: int = 0

    def now_ms(self) -> int:
        """Return this process's monotonic milliseconds."""
        return self.began_ms + self.loop.now_ns * (_PPM + self.rate_ppm) // (_PPM * NS_PER_MS)

    def wall_ms(self) -> int:
        """Return what this process takes for UTC milliseconds."""
        return _BEGAN_WALL_MS + self.wall_error_ms + self.now_ms() - self.began_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        """Return after `duration_ms` of this clock's time."""
        loop = self.loop
        future = loop.create_future()
        delay_ns = max(0, duration_ms) * NS_PER_MS * _PPM // (_PPM + self.rate_ppm) + 1
        timer = loop.call_at_ns(loop.now_ns + delay_ns, _wake, future)
        try:
            await future
        finally:
            timer.cancel()


def _wake(future: object) -> None:
    if not future.done():  # type: ignore[attr-defined]
        future.set_result(None)  # type: ignore[attr-defined]
