"""What happened in a run, in order: as a digest that must repeat, and as lines for people."""

from __future__ import annotations

import hashlib
import sys
from collections import deque

import attrs

from chaos.sim.loop import NS_PER_MS, VirtualLoop

LINES_KEPT = 60


@attrs.define(kw_only=True, eq=False)
class Trace:
    """Takes in every event of a run."""

    loop: VirtualLoop
    is_live: bool = False
    """Whether lines are printed as they come."""
    _digest: hashlib.blake2b = attrs.field(factory=hashlib.blake2b, init=False)
    _lines: deque[str] = attrs.field(factory=lambda: deque(maxlen=LINES_KEPT), init=False)

    def note(self, who: str, what: str) -> None:
        """Take in an event that people may want to read."""
        line = f"{self.loop.now_ns / NS_PER_MS:11.3f} ms  {who:<14} {what}"
        self._digest.update(line.encode())
        self._lines.append(line)
        if self.is_live:
            sys.stdout.write(line + "\n")

    def show(self, who: str, what: str) -> None:
        """Print a line that is no part of what must repeat."""
        if self.is_live:
            sys.stdout.write(f"{self.loop.now_ns / NS_PER_MS:11.3f} ms  {who:<14} {what}\n")

    def count_in(self, data: bytes) -> None:
        """Take in an event that only has to repeat."""
        self._digest.update(b"%d " % self.loop.now_ns)
        self._digest.update(data)

    def digest(self) -> str:
        """Return the digest of everything so far."""
        return self._digest.hexdigest()[:32]

    def last_lines(self) -> list[str]:
        """Return the newest lines."""
        return list(self._lines)
