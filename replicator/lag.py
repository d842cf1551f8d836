"""Lag: the age of the oldest source commit that a target has not applied. Pure.

etcd stores no commit times. Linearizable reads at known times bracket them: a revision that one
read did not show yet and the next did was committed between the sending of the first and the
answer to the second. All times are the source's own monotonic clock.

The invariant: the true lag is never further from what is said than the error bound that is said
with it. Lag is 0 only if everything up to the newest anchor is acknowledged. Of a record that is
known to be missing the middle of its bracket is said; what was not read yet may hold a record, and
counts as if it did. What is not known is unknown.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Collection, Iterable

import attrs

from meshkit.names import GroupName
from meshkit.ordinals import Revision, Sequence
from meshkit.status import Lag, StreamState
from replicator.backlogs import Backlogs, Shares, each_of, shares_of
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.messages import OutOfStepChange
from replicator.record import Record

UNKNOWN = Lag(state=StreamState.UNKNOWN)


@attrs.frozen(kw_only=True)
class Anchor:
    """A linearizable read: at some time between sending and receiving, `revision` was current."""

    sent_ms: int
    received_ms: int
    revision: Revision


@attrs.define(kw_only=True)
class _Run:
    """Anchors in a row that showed the same revision."""

    revision: Revision
    first_received_ms: int
    last_sent_ms: int


THINNED_TO_PERCENT = 1
"""Old anchors may be so far from each other, in parts of their age."""


class CommitTimes:
    """Brackets the commit time of each revision. Bounded: old anchors are thinned, never wrong.

    However old a revision is, its bracket stays narrow beside its age: what is kept is spaced in
    proportion to it.
    """

    def __init__(self, *, anchors_max: int = DEFAULT_LIMITS.anchors_max) -> None:
        self._anchors_max = anchors_max
        self._runs: list[_Run] = []

    @property
    def newest(self) -> Anchor | None:
        """The newest anchor: what it shows was the head no earlier than its `sent_ms`."""
        if not self._runs:
            return None
        run = self._runs[-1]
        return Anchor(
            sent_ms=run.last_sent_ms, received_ms=run.first_received_ms, revision=run.revision
        )

    def on_anchor(self, anchor: Anchor) -> None:
        """Take in one read; reads are taken one after the other."""
        runs = self._runs
        if runs and anchor.revision < runs[-1].revision:
            return
        if runs and anchor.revision == runs[-1].revision:
            runs[-1].last_sent_ms = max(runs[-1].last_sent_ms, anchor.sent_ms)
            return
        runs.append(
            _Run(
                revision=anchor.revision,
                first_received_ms=anchor.received_ms,
                last_sent_ms=anchor.sent_ms,
            )
        )
        if len(runs) > self._anchors_max:
            self._runs = _thinned(runs)
            if len(self._runs) > self._anchors_max // 2:
                half = len(runs) // 2
                self._runs = runs[:half:2] + runs[half:]

    def bracket(self, revision: int) -> tuple[int | None, int | None]:
        """Return the earliest and the latest time at which `revision` was committed, if known."""
        at = bisect.bisect_left(self._runs, revision, key=lambda run: run.revision)
        earliest = self._runs[at - 1].last_sent_ms if at > 0 else None
        latest = self._runs[at].first_received_ms if at < len(self._runs) else None
        return earliest, latest

    def head_at(self, at_ms: int) -> Revision | None:
        """Return the newest revision that is known to have been there at a time, if any is."""
        at = bisect.bisect_right(self._runs, at_ms, key=lambda run: run.first_received_ms)
        return self._runs[at - 1].revision if at > 0 else None


class StreamLag:
    """What is known of one target: read from the source's log, sent, and acknowledged."""

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self.is_connected = False
        self.is_stalled = False
        """Whether the target says that its etcd takes nothing at the moment."""
        self.acknowledged: Sequence | None = None
        self.stored: Sequence | None = None
        """Up to where the target has a durable checkpoint: it goes on from there after a crash."""
        self.acknowledged_records = 0
        self._read_through = Sequence(0)
        self.backlogs = Backlogs()
        """What those groups lack of which the acknowledgements say nothing."""
        self._waiting: deque[tuple[Sequence, int, Shares]] = deque()
        self._waiting_bytes = 0
        self._unacknowledged: Sequence | None = None
        """The oldest record that was read and not acknowledged when the connection ended."""
        self._progress_at_ms = 0

    def on_connected(
        self, start: Sequence, *, is_fresh: bool, now_ms: int, tells: bool = True
    ) -> None:
        """A connection begins after `start`, which the target says it has applied.

        A fresh start is not an acknowledgement: the target has yet to store it. `tells`: whether
        it says which groups are out of step.
        """
        self.backlogs.on_connected(start, tells=tells)
        self.is_connected = True
        self.is_stalled = False
        self._read_through = start
        self._waiting.clear()
        self._waiting_bytes = 0
        self._unacknowledged = None
        self._progress_at_ms = now_ms
        self.acknowledged = self.stored = None if is_fresh else start

    def on_disconnected(self) -> None:
        """The connection ended."""
        self.is_connected = False
        if self._waiting:
            self._unacknowledged = self._waiting[0][0]
        self._waiting.clear()
        self._waiting_bytes = 0

    def on_read(self, through: Sequence, records: Iterable[Record]) -> None:
        """Records up to `through` were read from the log to be sent."""
        self._read_through = max(self._read_through, through)
        for record in records:
            if self.acknowledged is not None and record.sequence <= self.acknowledged:
                # Sent again because somebody asked for it: applied long ago.
                continue
            size = record.data_bytes
            self._waiting.append((record.sequence, size, shares_of(record)))
            self._waiting_bytes += size

    def on_acknowledged(
        self,
        applied: Sequence,
        *,
        now_ms: int,
        stored: Sequence | None = None,
        out_of_step: OutOfStepChange | None = None,
    ) -> None:
        """The target has applied everything up to `applied`, durably up to `stored`.

        But of the groups that are out of step: `out_of_step` says which have become so.
        """
        if out_of_step is not None:
            self.backlogs.on_told(out_of_step)
        if stored and (self.stored is None or stored > self.stored):
            self.stored = stored
        if self.acknowledged is None or applied > self.acknowledged:
            self.acknowledged = applied
            self._progress_at_ms = now_ms
        while self._waiting and self._waiting[0][0] <= applied:
            sequence, size, shares = self._waiting.popleft()
            self._waiting_bytes -= size
            self.acknowledged_records += 1
            self.backlogs.on_passed(sequence, shares, size)
        self.backlogs.on_acknowledged(applied)

    def waiting_of(self, groups: Collection[GroupName]) -> dict[GroupName, tuple[int, int]]:
        """Return how many records and bytes of each of `groups` wait to be acknowledged."""
        found = dict.fromkeys(groups, (0, 0))
        for _, size_bytes, shares in self._waiting:
            for group, own_bytes in each_of(shares, size_bytes):
                if group in found:
                    records, total_bytes = found[group]
                    found[group] = records + 1, total_bytes + own_bytes
        return found

    def evaluate(self, times: CommitTimes, *, now_ms: int, is_paused: bool = False) -> Lag:
        """Return the lag of the groups in step as it is now, if it is known which those are."""
        newest = times.newest
        if newest is None or self.acknowledged is None:
            return UNKNOWN
        if now_ms - newest.sent_ms > self._limits.anchor_age_ms_max:
            return UNKNOWN
        oldest, is_record = self._oldest_missing(newest.revision)
        is_read = self.is_connected and self._read_through >= newest.revision
        records = len(self._waiting) if is_read else None
        size_bytes = self._waiting_bytes if is_read else None
        lag_ms: int
        bound_ms: int | None
        if oldest is None:
            lag_ms, bound_ms = 0, now_ms - newest.sent_ms
        else:
            lag_ms, bound_ms = age_of(times.bracket(oldest), now_ms, is_record=is_record)
        known_ms = None if bound_ms is None else lag_ms
        state = self._state(known_ms, now_ms=now_ms)
        return Lag(
            state=StreamState.PAUSED if is_paused else state,
            lag_ms=lag_ms,
            error_bound_ms=bound_ms,
            records=records,
            bytes=size_bytes,
        )

    def _oldest_missing(self, head: Revision) -> tuple[int | None, bool]:
        """Return the oldest revision that may not be applied, and whether it holds a record."""
        assert self.acknowledged is not None
        if self._waiting:
            return self._waiting[0][0], True
        if self._unacknowledged is not None:
            return self._unacknowledged, True
        known = self._read_through if self.is_connected else self.acknowledged
        return (known + 1 if known < head else None), False

    def _state(self, lag_ms: int | None, *, now_ms: int) -> StreamState:
        if not self.is_connected or self.is_stalled:
            return StreamState.STALLED
        if self._waiting and now_ms - self._progress_at_ms > self._limits.stalled_ms:
            return StreamState.STALLED
        if lag_ms is None or lag_ms > self._limits.catching_up_ms:
            return StreamState.CATCHING_UP
        return StreamState.STREAMING


def age_of(
    bracket: tuple[int | None, int | None], now_ms: int, *, is_record: bool
) -> tuple[int, int | None]:
    """Return the age of a commit and how far off that may be; never 0.

    If the commit is older than every anchor only a lower bound of its age is known, and no error.
    If it may hold no record its age is the most that the lag can be, and the lag may be nothing.
    """
    earliest, latest = bracket
    least_ms = 0 if latest is None else max(0, now_ms - latest)
    if earliest is None:
        return max(1, least_ms), None
    greatest_ms = max(1, now_ms - earliest)
    if not is_record:
        return greatest_ms, greatest_ms
    middle_ms = max(1, (greatest_ms + least_ms) // 2)
    return middle_ms, greatest_ms - middle_ms


def _thinned(runs: list[_Run]) -> list[_Run]:
    """Return the runs without those that make no bracket much narrower."""
    newest, kept = runs[-1], [runs[-1]]
    between: _Run | None = None
    for run in reversed(runs[:-1]):
        gap_ms = kept[-1].first_received_ms - run.last_sent_ms
        age_ms = newest.last_sent_ms - run.last_sent_ms
        if between is not None and gap_ms * 100 > age_ms * THINNED_TO_PERCENT:
            kept.append(between)
        between = run
    if between is not None:
        kept.append(between)
    return kept[::-1]
