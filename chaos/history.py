"""What clients did and what they were told: the only evidence the checkers judge by. Pure."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable

import attrs

from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision


class Outcome(enum.Enum):
    """What a client knows of one write."""

    OK = "ok"
    """Acknowledged: it happened."""
    FAIL = "fail"
    """It certainly did not happen."""
    INFO = "info"
    """Nobody knows: the reply was lost or came too late."""


@attrs.frozen(kw_only=True)
class Write:
    """One write to a key of its own, so that presence can be judged by key alone."""

    writer: str
    key: bytes
    value: bytes
    call_ns: int
    return_ns: int
    outcome: Outcome
    cluster: ClusterName | None = None
    epoch: Epoch | None = None
    revision: Revision | None = None


@attrs.frozen(kw_only=True)
class Gap:
    """A time in which no write was acknowledged, from one acknowledgement to the next."""

    from_ns: int
    to_ns: int

    @property
    def ms(self) -> float:
        """Its length in milliseconds."""
        return (self.to_ns - self.from_ns) / 1e6


@attrs.define
class History:
    """Every write of every client, in the order of their returns."""

    writes: list[Write] = attrs.field(factory=list)

    def record(self, write: Write) -> None:
        """Add one finished write."""
        self.writes.append(write)

    def acknowledged(self) -> list[Write]:
        """Return the writes that were acknowledged."""
        return [write for write in self.writes if write.outcome is Outcome.OK]

    def count(self, outcome: Outcome) -> int:
        """Return how many writes ended so."""
        return sum(write.outcome is outcome for write in self.writes)


def longest_gap(acknowledged: Iterable[Write], *, from_ns: int, to_ns: int) -> Gap | None:
    """Return the longest gap between acknowledgements that touches the window, or None."""
    times = sorted(write.return_ns for write in acknowledged)
    gaps = [
        Gap(from_ns=one, to_ns=other)
        for one, other in itertools.pairwise(times)
        if other >= from_ns and one <= to_ns
    ]
    return max(gaps, key=lambda gap: gap.to_ns - gap.from_ns, default=None)
