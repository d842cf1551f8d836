"""Whose turn it is where many groups move: first those that cannot be written to, or soon cannot.

What a failover does once its group is open again (the old active cluster becomes a standby) pauses
nobody. While many groups move it would take the time of those whose writes still stand still.
"""

from __future__ import annotations

import attrs

from coordinator.failover.due import step_in_hand
from coordinator.failover.record import Failover
from fencing.patience import Signal
from meshkit.clock import Clock
from meshkit.names import FailoverId

PATIENCE_MS = 5_000
"""How long a failover whose group is open lets others go first: so much later there is a standby
again."""

_MAY_LAST = frozenset({"verify", "catch_up", "approve", "consent", "reverse", "settle"})
"""Steps that nobody is paused by, or that wait for people or for data."""


def is_urgent(record: Failover) -> bool:
    """Return whether others let this one go first: its writes are paused, or soon will be."""
    if record.phase.is_final or record.problem is not None:
        return False
    return step_in_hand(record).name not in _MAY_LAST


def may_wait(record: Failover) -> bool:
    """Return whether the group is open and what is left to do pauses nobody."""
    return not record.phase.is_final and step_in_hand(record).name == "reverse"


@attrs.define(kw_only=True, eq=False)
class Precedence:
    """Who is in a hurry, of all failovers that one coordinator drives."""

    clock: Clock
    _urgent: set[FailoverId] = attrs.field(factory=set, init=False)
    _calm: Signal = attrs.field(factory=Signal, init=False)

    def note(self, record: Failover) -> None:
        """Take in where a failover stands."""
        if is_urgent(record):
            self._urgent.add(record.id)
        else:
            self.leave(record.id)

    def leave(self, failover: FailoverId) -> None:
        """Take in that a failover is not in a hurry, or is not driven any more."""
        self._urgent.discard(failover)
        if not self._urgent:
            self._calm.notify()

    async def let_pass(self, failover: FailoverId) -> None:
        """Return once nobody is in a hurry, or after `PATIENCE_MS`; this failover is not."""
        self.leave(failover)
        until_ms = self.clock.now_ms() + PATIENCE_MS
        while self._urgent and self.clock.now_ms() < until_ms:
            await self._calm.wait_until(self.clock, until_ms)
