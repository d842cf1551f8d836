"""How fast something may go on: so many bytes a second, with a little saved up while idle. Pure."""

from __future__ import annotations

SAVED_MS_MAX = 1_000
"""What was not used for longer than this is lost."""


class Throttle:
    """Says of each piece how long to wait before it; 0 bytes a second mean no limit.

    Invariant: over any stretch of time no more is let through than the rate allows, beside what
    `SAVED_MS_MAX` of it save up and one piece.
    """

    def __init__(self, bytes_per_s: int) -> None:
        assert bytes_per_s >= 0
        self._bytes_per_s = bytes_per_s
        self._free_at_us = 0
        """When everything that was let through so far has passed at the rate."""

    def take(self, size_bytes: int, *, now_ms: int) -> int:
        """Let a piece through, and return how many milliseconds later."""
        if not self._bytes_per_s:
            return 0
        now_us = now_ms * 1_000
        begins_us = max(self._free_at_us, now_us - SAVED_MS_MAX * 1_000)
        self._free_at_us = begins_us + size_bytes * 1_000_000 // self._bytes_per_s
        return max(0, begins_us - now_us) // 1_000
