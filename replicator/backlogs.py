"""What the groups that are out of step at a target lack, counted as the main stream goes by. Pure.

The main stream skips such a group at the target and goes on, so its acknowledgements say nothing of
that group: whatever they pass over is kept here until the group's own position has passed it. The
position comes from the target, with the acknowledgements.

The invariant: of a group that counts as whole every record past its position, up to what the main
stream has acknowledged, is in here; of any other nobody knows how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import attrs

from meshkit.names import GroupName
from meshkit.ordinals import NOTHING, Sequence
from replicator.messages import OutOfStep, OutOfStepChange
from replicator.record import WRITE_OVERHEAD_BYTES as OVERHEAD
from replicator.record import Record, write_bytes

SPANS_MAX = 4_096
"""Of one group; then records beside each other are counted together."""

Shares = GroupName | tuple[tuple[GroupName, int], ...]
"""Whose a record is: of one group, or of several with the bytes of each."""


def shares_of(record: Record) -> Shares:
    """Return which groups a record changes."""
    if len(record.parts) == 1 and not record.marks:
        return record.parts[0].group
    sizes = {mark.group: 0 for mark in record.marks}
    for part in record.parts:
        size = sum(write_bytes(write) - OVERHEAD for write in part.writes)
        sizes[part.group] = sizes.get(part.group, 0) + size
    return tuple(sizes.items())


def each_of(shares: Shares, size_bytes: int) -> tuple[tuple[GroupName, int], ...]:
    """Return the groups of a record that weighs `size_bytes`, with what each one's part weighs."""
    return ((shares, size_bytes),) if isinstance(shares, str) else shares


@attrs.define(kw_only=True)
class Span:
    """Records in a row of one group that are not applied, the oldest at `first`."""

    first: Sequence
    last: Sequence
    records: int
    bytes: int


class Backlog:
    """What one group lacks."""

    def __init__(self, told: OutOfStep, *, whole_from: Sequence, through: Sequence) -> None:
        self.told = told
        self.whole_from = whole_from
        """Every record past this that the main stream has passed over is counted."""
        self.through = through
        """What was counted already when this connection began."""
        self._spans: deque[Span] = deque()

    @property
    def is_whole(self) -> bool:
        """Whether all that is missing is counted."""
        position = self.told.position
        return position is not None and position >= self.whole_from

    @property
    def oldest(self) -> Span | None:
        """The span with the oldest record that is known to be missing; its beginning may be there.

        Then the position lies within it.
        """
        return self._spans[0] if self._spans else None

    @property
    def count(self) -> tuple[int, int] | None:
        """How many records and bytes are missing; None: nobody knows."""
        position, oldest = self.told.position, self.oldest
        is_split = position is not None and oldest is not None and oldest.first <= position
        if not self.is_whole or is_split:
            return None
        return sum(s.records for s in self._spans), sum(s.bytes for s in self._spans)

    def tell(self, told: OutOfStep) -> None:
        """The target says how far it is applied."""
        self.told = told
        if told.position is None:
            return
        while self._spans and self._spans[0].last <= told.position:
            self.whole_from = max(self.whole_from, self._spans.popleft().last)

    def add(self, sequence: Sequence, size_bytes: int) -> None:
        """The main stream went on past a record of the group."""
        position = self.told.position
        if sequence <= self.through or (position is not None and sequence <= position):
            return
        if self._spans and sequence <= self._spans[-1].last:
            return
        self._spans.append(Span(first=sequence, last=sequence, records=1, bytes=size_bytes))
        if len(self._spans) > SPANS_MAX:
            self._spans = _halved(self._spans)


class Backlogs:
    """The backlogs of the groups that are out of step at one target, from connection to connection.

    A target that does not tell which groups those are leaves it unknown.
    """

    def __init__(self) -> None:
        self.is_told = False
        """Whether it is known which groups are out of step."""
        self.is_silent = False
        """Whether the target is too old to tell."""
        self._of: dict[GroupName, Backlog] = {}
        self._through = NOTHING
        """Up to where the main stream is acknowledged, and so counted."""
        self._start = NOTHING

    @property
    def groups(self) -> Mapping[GroupName, Backlog]:
        """The groups that are known to be out of step."""
        return self._of

    def on_connected(self, start: Sequence, *, tells: bool) -> None:
        """A connection begins; what the target has applied in between was not counted."""
        self.is_told, self.is_silent, self._start = False, not tells, start
        for backlog in self._of.values():
            backlog.through = self._through
            if start > self._through:
                backlog.whole_from = max(backlog.whole_from, start)

    def on_told(self, change: OutOfStepChange) -> None:
        """The target says what is out of step, or what of that has changed."""
        if not self.is_told:
            named = {one.group for one in change.groups}
            self._of = {group: known for group, known in self._of.items() if group in named}
        for group in change.back:
            self._of.pop(group, None)
        for one in change.groups:
            known = self._of.get(one.group)
            if known is None:
                whole_from = self._whole_from(one)
                self._of[one.group] = Backlog(one, whole_from=whole_from, through=NOTHING)
            else:
                known.tell(one)
        self.is_told = True

    def _whole_from(self, one: OutOfStep) -> Sequence:
        """Return from where on all that is missing of a group will be counted."""
        if not self.is_told:
            return self._start
        # Until now it was in step, or the target would have told: nothing older is missing.
        return self._through if one.position is None else NOTHING

    def on_passed(self, sequence: Sequence, shares: Shares, size_bytes: int) -> None:
        """The main stream's acknowledgement passes over a record."""
        if not self._of:
            return
        for group, size in each_of(shares, size_bytes):
            if (backlog := self._of.get(group)) is not None:
                backlog.add(sequence, size)

    def on_acknowledged(self, applied: Sequence) -> None:
        """The main stream is acknowledged up to here, and what that passes over is counted."""
        self._through = max(self._through, applied)


def _halved(spans: Iterable[Span]) -> deque[Span]:
    """Return spans that tell of two together what was told of each."""
    halved: deque[Span] = deque()
    pair: Span | None = None
    for span in spans:
        if pair is None:
            pair = span
            continue
        records, size_bytes = pair.records + span.records, pair.bytes + span.bytes
        halved.append(Span(first=pair.first, last=span.last, records=records, bytes=size_bytes))
        pair = None
    if pair is not None:
        halved.append(pair)
    return halved
