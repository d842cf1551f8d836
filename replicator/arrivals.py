"""What has arrived of a source's log, as an emergency asks: cuts, silence, time contained. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import attrs

from meshkit.names import GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Sequence, Token
from replicator.messages import Head, ToTarget
from replicator.record import Cut, Record, Resumed

_HEADS_MAX = 64


@attrs.frozen(kw_only=True)
class TakenIn:
    """What came of waiting for what still arrives."""

    cut: Sequence | None = None
    """Where the group's segment was cut, if that was seen in the stream and is applied."""
    contained_at_ms: int | None = None
    """All that the source had committed by then, on its own wall clock, is applied here."""


class Arrivals:
    """Remembered for one stream, also while it is not connected."""

    def __init__(self, *, now_ms: int) -> None:
        self.heard_at_ms = now_ms
        self.contained_at_ms: int | None = None
        self._cuts: dict[GroupName, tuple[Cut, Sequence]] = {}
        self._heads: deque[Head] = deque(maxlen=_HEADS_MAX)

    def on_message(self, message: ToTarget, *, now_ms: int) -> None:
        """Something came from the source; a head tells what it had committed by some time."""
        self.heard_at_ms = now_ms
        if isinstance(message, Head):
            self._heads.append(message)

    def on_applied(self, position: Sequence, records: Iterable[Record] = ()) -> None:
        """These records, and all that came before `position`, are applied."""
        for record in records:
            for mark in record.marks:
                match mark:
                    case Cut(group=group):
                        self._cuts[group] = (mark, record.sequence)
                    case Resumed(group=group):
                        self._cuts.pop(group, None)
        while self._heads and self._heads[0].revision <= position:
            at_ms = self._heads.popleft().at_ms
            self.contained_at_ms = max(at_ms, self.contained_at_ms or at_ms)

    def taken_in(self, group: GroupName, epoch: Epoch, *, seal: Token) -> TakenIn:
        """Return what is known of a group's epoch by now.

        Only a cut made under this seal or later proves that the source has stopped. An earlier one
        may have been undone: what says so, and the writes after it, may still be on their way.
        """
        mark, sequence = self._cuts.get(group, (None, None))
        is_proof = mark is not None and mark.epoch == epoch and mark.token >= seal > NO_TOKEN
        return TakenIn(cut=sequence if is_proof else None, contained_at_ms=self.contained_at_ms)
