"""History that a target asks its source to send again, and what has come of it. Pure.

Sent again it takes the way that everything takes. Everything up to the checkpoint is a duplicate
there: it is counted, and dropped by its sequence. Nothing that is applied is changed by it.
"""

from __future__ import annotations

import attrs

from meshkit.names import GroupName
from meshkit.ordinals import Sequence
from replicator.messages import Frame, Welcome
from replicator.record import Record


@attrs.define(kw_only=True)
class Resend:
    """What of `(after, through]` has been sent again on one connection."""

    after: Sequence
    through: Sequence
    """The checkpoint when it was asked: all up to here is applied already."""
    records: dict[GroupName, int] = attrs.field(factory=dict)
    """How many records of each group were sent again; all of them duplicates."""
    frames: int = 0
    is_whole: bool = False
    refused: str = ""
    _counted: dict[GroupName, Sequence] = attrs.field(factory=dict)

    def on_welcome(self, welcome: Welcome) -> bool:
        """Take in where the source begins; return whether it sends what was asked for."""
        if welcome.start == self.after:
            return True
        self.refused = welcome.resend_refused or (
            "the source's replicator is too old to send anything again; upgrade it"
        )
        return False

    def on_frame(self, frame: Frame) -> None:
        """Count what a frame brings again."""
        if self.is_whole or self.refused:
            return
        self.frames += 1
        for record in frame.records:
            if self.after < record.sequence <= self.through:
                self._count(record)
        self.is_whole = frame.through >= self.through

    def _count(self, record: Record) -> None:
        """Count a record once for each of its groups, also if it comes in pieces."""
        for group in {part.group for part in record.parts}:
            if self._counted.get(group) != record.sequence:
                self._counted[group] = record.sequence
                self.records[group] = self.records.get(group, 0) + 1

    @property
    def is_over(self) -> bool:
        """Whether all was sent again, or will not be."""
        return self.is_whole or bool(self.refused)
