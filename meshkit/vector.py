"""`ClusterVersionVector`: for each cluster, up to where its log is contained. Pure.

A vector is a partial order with a least upper bound (Parker et al., "Detection of mutual
inconsistency in distributed systems", 1983). An entry is named by cluster *and* incarnation: two
histories of one cluster are different logs and never comparable entry by entry.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import attrs

from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Sequence


class VectorOrder(enum.Enum):
    """How one vector stands to another."""

    EQUAL = "equal"
    BEFORE = "before"
    AFTER = "after"
    CONCURRENT = "concurrent"


@attrs.frozen(kw_only=True, order=True)
class LogName:
    """One unbroken log: a cluster in one incarnation."""

    cluster: ClusterName
    incarnation: Incarnation

    def __str__(self) -> str:
        return f"{self.cluster}#{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> LogName:
        """Return the log that `str` printed."""
        cluster, _, incarnation = text.partition("#")
        return cls(cluster=ClusterName(cluster), incarnation=Incarnation(incarnation))


def _canonical(entries: Mapping[LogName, Sequence]) -> tuple[tuple[LogName, Sequence], ...]:
    return tuple(sorted((log, sequence) for log, sequence in entries.items() if sequence > 0))


class ClusterVersionVector:
    """Up to which sequence each log is contained. A log that is not named is contained up to 0.

    Invariant: entries are sorted by log, each log at most once, each sequence above 0; so equal
    vectors are equal values. Stored as `{"cluster#incarnation": sequence}` and not as its fields,
    so it is no attrs class.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: tuple[tuple[LogName, Sequence], ...] = ()) -> None:
        assert entries == _canonical(dict(entries)), "entries are not canonical"
        self._entries = entries

    @property
    def entries(self) -> tuple[tuple[LogName, Sequence], ...]:
        """Each log that something is contained of, and up to where."""
        return self._entries

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClusterVersionVector):
            return NotImplemented
        return self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)

    def __repr__(self) -> str:
        return f"ClusterVersionVector({self.to_json()})"

    @classmethod
    def of(cls, entries: Mapping[LogName, Sequence]) -> ClusterVersionVector:
        """Return the vector with these entries; entries of 0 are the same as none."""
        return cls(_canonical(entries))

    def sequence_of(self, log: LogName) -> Sequence:
        """Return up to where `log` is contained; 0 if nothing of it is."""
        return dict(self.entries).get(log, Sequence(0))

    def contains(self, log: LogName, sequence: Sequence) -> bool:
        """Return whether the record at `sequence` of `log` is contained."""
        return sequence <= self.sequence_of(log)

    def advanced(self, log: LogName, sequence: Sequence) -> ClusterVersionVector:
        """Return this vector with `log` contained at least up to `sequence`."""
        return self.merge(ClusterVersionVector.of({log: sequence}))

    def merge(self, other: ClusterVersionVector) -> ClusterVersionVector:
        """Return the least upper bound of both."""
        merged = dict(self.entries)
        for log, sequence in other.entries:
            merged[log] = max(sequence, merged.get(log, Sequence(0)))
        return ClusterVersionVector.of(merged)

    def compare(self, other: ClusterVersionVector) -> VectorOrder:
        """Return how this vector stands to `other`."""
        merged = self.merge(other)
        match (merged == self, merged == other):
            case (True, True):
                return VectorOrder.EQUAL
            case (True, False):
                return VectorOrder.AFTER
            case (False, True):
                return VectorOrder.BEFORE
            case _:
                return VectorOrder.CONCURRENT

    def to_json(self) -> dict[str, int]:
        """Return `{"cluster#incarnation": sequence}`."""
        return {str(log): sequence for log, sequence in self.entries}

    @classmethod
    def from_json(cls, entries: Mapping[str, int]) -> ClusterVersionVector:
        """Return the vector that `to_json` wrote."""
        return cls.of({LogName.parse(log): Sequence(n) for log, n in entries.items()})


def merged(vectors: Iterable[ClusterVersionVector]) -> ClusterVersionVector:
    """Return the least upper bound of all; the empty vector of none."""
    result = ClusterVersionVector()
    for vector in vectors:
        result = result.merge(vector)
    return result
