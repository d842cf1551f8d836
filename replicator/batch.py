"""A batch of the main stream: what is applied together, as a rule in one transaction. Pure."""

from __future__ import annotations

import attrs

from meshkit.ordinals import Sequence
from replicator.record import Piece, Record
from replicator.room import Room


@attrs.frozen(kw_only=True)
class MainBatch:
    """Consecutive frames of the main stream: everything in `(after, through]`."""

    after: Sequence
    through: Sequence
    records: tuple[Record, ...]

    def beyond(self, position: Sequence) -> MainBatch:
        """Return what of it comes after `position`."""
        records = tuple(r for r in self.records if r.sequence > position)
        return attrs.evolve(self, after=position, records=records)

    def half(self) -> MainBatch:
        """Return the first half of its records, of which it has more than one."""
        records = self.records[: len(self.records) // 2]
        return attrs.evolve(self, through=records[-1].sequence, records=records)

    @property
    def piece(self) -> Piece | None:
        """Which piece of a record this brings, if its only record is not whole."""
        return self.records[-1].piece if self.records else None

    def fitting(
        self, room: Room, size_bytes: int, writes: int, *, is_first: bool
    ) -> tuple[Record, ...]:
        """Return the records that fit where so much is already; the first of all always does."""
        for count, record in enumerate(self.records):
            size_bytes += record.weight_bytes
            writes += record.writes_count
            is_alone = is_first and count == 0
            if not is_alone and not room.holds(writes=writes, size_bytes=size_bytes):
                return self.records[:count]
        return self.records
