"""A backlog of revisions cut into spans, and what their watches deliver, in order. Pure.

Each span is read by a watch of the whole key space of its own. Every revision has a change, so
within a span each follows the one before; anything else means that somebody lost something.
"""

from __future__ import annotations

from collections import deque

import attrs

from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges
from replicator.limits import Limits
from replicator.weight import changes_bytes

_ASSUMED_REVISIONS = 100
_ASSUMED_BYTES = 1024
"""So many revisions of so much are taken as seen before the first one was."""


class HistoryTorn(Exception):
    """A watch of everything has left a revision out."""


@attrs.define(kw_only=True, eq=False)
class Span:
    """The revisions `[start, end]`, as far as they are read and not taken."""

    start: Revision
    end: Revision
    passed: Revision
    """The newest revision that was read."""
    read: deque[RevisionChanges] = attrs.field(factory=deque)

    @property
    def is_read(self) -> bool:
        """Whether everything of it was read."""
        return self.passed >= self.end


class Spans:
    """All spans of `(after, through]` that are read at the moment.

    Invariant: they follow each other without a gap, and the first begins behind `taken`.
    """

    def __init__(self, *, after: Revision, through: Revision, limits: Limits) -> None:
        self.through = through
        self.taken = after
        self.weight_bytes = 0
        self._limits = limits
        self._cut_through = after
        self._open: deque[Span] = deque()
        self._seen = _ASSUMED_REVISIONS
        self._seen_bytes = _ASSUMED_REVISIONS * _ASSUMED_BYTES

    @property
    def is_done(self) -> bool:
        """Whether everything was taken."""
        return self.taken >= self.through

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read but of the first span."""
        return self.weight_bytes > self._limits.catch_up_bytes_max

    def is_first(self, span: Span) -> bool:
        """Whether nothing is left of the spans before this one."""
        return bool(self._open) and self._open[0] is span

    def begin_next(self) -> Span | None:
        """Return one more span to be read, unless there are enough by number or by weight."""
        limits = self._limits
        if self._cut_through >= self.through or len(self._open) >= limits.catch_up_watches:
            return None
        length = limits.catch_up_span_revisions
        weight_bytes = (len(self._open) + 1) * length * self._seen_bytes // self._seen
        if self._open and weight_bytes > limits.catch_up_bytes_max:
            return None
        span = Span(
            start=Revision(self._cut_through + 1),
            end=Revision(min(self._cut_through + length, self.through)),
            passed=self._cut_through,
        )
        self._open.append(span)
        self._cut_through = span.end
        return span

    def add(self, span: Span, changes: RevisionChanges) -> None:
        """Take in the next revision of a span.

        Raises:
            HistoryTorn: it is not the next one.
        """
        if changes.revision != span.passed + 1:
            raise HistoryTorn(f"{changes.revision} follows {span.passed}, and one must be between")
        weight_bytes = changes_bytes(changes)
        self.weight_bytes += weight_bytes
        self._seen += 1
        self._seen_bytes += weight_bytes
        span.passed = changes.revision
        span.read.append(changes)

    def take(self) -> RevisionChanges | None:
        """Return the next revision if it was read."""
        if not self._open or not self._open[0].read:
            return None
        first = self._open[0]
        changes = first.read.popleft()
        self.weight_bytes -= changes_bytes(changes)
        self.taken = changes.revision
        if self.taken >= first.end:
            self._open.popleft()
        return changes
