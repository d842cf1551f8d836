"""Writes down from where each standby may have to be served, for those who come after.

Not leased: what a standby needs must not be forgotten because its source was away.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshkit.clock import Clock
from meshkit.codec import encode
from meshkit.keys import CoordinationKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Sequence
from meshkit.status import StandbyPosition
from meshkit.store.txn import Delete, Put

STORE_INTERVAL_MS = 2_000
"""Positions move with every batch; they are written down no more often than this."""


class Positions:
    """What of the standbys' positions is due to be written."""

    def __init__(self, clock: Clock, *, source: ClusterName, incarnation: Incarnation) -> None:
        self._clock = clock
        self._source = source
        self._incarnation = incarnation
        self._written: dict[ClusterName, Sequence] = {}
        self._written_at_ms: int | None = None

    def operations(
        self, needs: Mapping[ClusterName, Sequence | None], *, stored: frozenset[ClusterName]
    ) -> list[Put | Delete]:
        """Return what to write; `stored` are the standbys of which something is written down.

        A cluster that shares no group with this one any more needs nothing.
        """
        now_ms = self._clock.now_ms()
        if self._written_at_ms is not None and now_ms - self._written_at_ms < STORE_INTERVAL_MS:
            return []
        operations: list[Put | Delete] = []
        for target, sequence in sorted(needs.items()):
            if sequence is not None and self._written.get(target) != sequence:
                operations.append(self._put(target, sequence))
                self._written[target] = sequence
        for target in sorted(stored - needs.keys()):
            operations.append(Delete(CoordinationKeys.standby_position(self._source, target)))
            self._written.pop(target, None)
        if operations:
            self._written_at_ms = now_ms
        return operations

    def forget(self) -> None:
        """Nobody knows what of the last operations was written: write everything again."""
        self._written.clear()
        self._written_at_ms = None

    def _put(self, target: ClusterName, sequence: Sequence) -> Put:
        position = StandbyPosition(
            source=self._source,
            target=target,
            incarnation=self._incarnation,
            sequence=sequence,
            at_ms=self._clock.wall_ms(),
        )
        return Put(CoordinationKeys.standby_position(self._source, target), encode(position))
