"""How much goes into one apply transaction: more under a backlog, less where etcd is slow. Pure.

What a transaction costs beside its writes (a round trip, a raft entry, an fsync) is the same for
one write and for thousands, so a backlog is worked off in large ones. A large one that takes long
holds up every other request to that etcd, and is what is repeated after a failure. So the room
doubles while it is filled and quickly done, and halves when a transaction is slow or fails.
"""

from __future__ import annotations

import attrs

from replicator.limits import Limits

NEWEST_WEIGHT = 1 / 8
"""What the newest batch counts for in what a batch takes."""


@attrs.frozen(kw_only=True)
class Room:
    """What may go into one transaction; one record, or one write, alone may be larger."""

    writes: int
    bytes: int

    def holds(self, *, writes: int, size_bytes: int) -> bool:
        """Return whether so much fits."""
        return writes <= self.writes and size_bytes <= self.bytes

    def less(self, writes_count: int) -> Room:
        """Return half of what was tried and refused."""
        return Room(writes=max(1, writes_count // 2), bytes=max(1, self.bytes // 2))

    def more(self, most: Room) -> Room:
        """Return twice as much, up to `most`."""
        return Room(writes=min(most.writes, 2 * self.writes), bytes=min(most.bytes, 2 * self.bytes))


class Pace:
    """The room of one stream, as its transactions go. Bounded at both ends."""

    def __init__(self, limits: Limits) -> None:
        most = Room(writes=limits.batch_writes_max, bytes=limits.batch_bytes_max)
        self._most = most
        self._least = Room(
            writes=min(limits.batch_writes_min, most.writes),
            bytes=min(limits.batch_bytes_min, most.bytes),
        )
        self._batch_ms = limits.batch_ms
        self._was_refused = False
        self._mean_ms = 0.0
        self.room = self._within(most.writes // 4, most.bytes // 4)

    @property
    def apply_ms(self) -> int:
        """What a batch takes, the newest counting for most; 0: none was applied yet."""
        return round(self._mean_ms)

    def on_refused(self) -> None:
        """The store did not take the batch in hand in one transaction."""
        self._was_refused = True

    def on_failed(self) -> None:
        """The store did not take the batch in hand, for now."""
        self.room = self._within(self.room.writes // 2, self.room.bytes // 2)

    def on_done(self, took_ms: int, *, is_filled: bool) -> None:
        """A batch is applied. `is_filled`: there was more than fitted into it."""
        self._mean_ms += (took_ms - self._mean_ms) * NEWEST_WEIGHT
        if self._was_refused or took_ms > 2 * self._batch_ms:
            self.on_failed()
        elif is_filled and took_ms <= self._batch_ms:
            self.room = self._within(2 * self.room.writes, 2 * self.room.bytes)
        self._was_refused = False

    def _within(self, writes: int, size_bytes: int) -> Room:
        return Room(
            writes=max(self._least.writes, min(writes, self._most.writes)),
            bytes=max(self._least.bytes, min(size_bytes, self._most.bytes)),
        )
