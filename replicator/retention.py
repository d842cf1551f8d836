"""How long the store keeps history, learnt from the compactions it was seen to make. Pure.

etcd does not say how it is compacted: by time, by a number of revisions, by hand or by a job. Each
compaction seen tells how old, and how many revisions deep, the history was that it left. From that
follows how long a standby that stops now, or stopped a while ago, still finds its position.

Unknown is a value: nobody knows before the first compaction whose depth could be measured.
"""

from __future__ import annotations

import itertools
from collections import deque

import attrs

from meshkit.ordinals import Revision, Sequence
from replicator.lag import Anchor, CommitTimes
from replicator.limits import DEFAULT_LIMITS, Limits


@attrs.frozen(kw_only=True)
class CompactionSeen:
    """One compaction, between two looks at the store.

    `kept_ms` is at least how far back the history reached that it left; None: further back than
    this process remembers. `kept_revisions` the same, counted.
    """

    at_ms: int
    revision: Revision
    kept_ms: int | None
    kept_revisions: int


class Retention:
    """What is known of a store's compactions.

    `compacted`: positions below it are gone; None until the first look. Invariant: it never falls.
    """

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.compacted: Revision | None = None
        self.times = CommitTimes(anchors_max=limits.history_samples_max)
        self._limits = limits
        self._seen: deque[CompactionSeen] = deque(maxlen=limits.compactions_seen_max)
        self._recent: deque[Anchor] = deque()
        self._looked_at_ms = 0

    @property
    def head(self) -> Revision:
        """The newest revision seen; 0 before the first look."""
        newest = self.times.newest
        return newest.revision if newest else Revision(0)

    def on_look(self, anchor: Anchor, compacted: Revision) -> CompactionSeen | None:
        """Take in a look at the store; return the compaction that happened since the last one."""
        self.times.on_anchor(anchor)
        self._recent.append(anchor)
        while anchor.sent_ms - self._recent[0].sent_ms > self._limits.history_rate_ms:
            self._recent.popleft()
        before, looked_at_ms = self.compacted, self._looked_at_ms
        self._looked_at_ms = anchor.received_ms
        self.compacted = max(compacted, before or compacted)
        if before is None or compacted <= before:
            return None
        seen = CompactionSeen(
            at_ms=anchor.received_ms,
            revision=compacted,
            kept_ms=self._kept_ms(compacted, looked_at_ms),
            kept_revisions=max(0, anchor.revision - compacted),
        )
        self._seen.append(seen)
        return seen

    def _kept_ms(self, compacted: Revision, not_before_ms: int) -> int | None:
        earliest, latest = self.times.bracket(compacted + 1)
        if latest is None:
            return 0
        return None if earliest is None else max(0, not_before_ms - latest)

    def age_ms(self, position: Sequence, *, now_ms: int) -> int | None:
        """Return how long ago, at most, the first revision after `position` was committed.

        0 if there is none; None if that was before this process looked for the first time.
        """
        earliest, latest = self.times.bracket(position + 1)
        if earliest is None and latest is None:
            return None
        if position >= self.head:
            return 0
        return None if earliest is None else max(0, now_ms - earliest)

    def headroom_ms(self, position: Sequence, *, now_ms: int) -> int | None:
        """Return how long it takes, at least, until `position` is compacted away; None: unknown.

        0 if it is gone, or may go with the next compaction at any time.
        """
        if self.compacted is None:
            return None
        if position < self.compacted:
            return 0
        left_ms = self._left_ms(position, now_ms=now_ms)
        if left_ms is None:
            return None
        return max(0, left_ms, self._next_at_ms() - now_ms)

    def _left_ms(self, position: Sequence, *, now_ms: int) -> int | None:
        by_age, by_count = self._left_by_age(position, now_ms), self._left_by_count(position)
        if by_age is None or by_count is None:
            return by_count if by_age is None else by_age
        ages = [seen.kept_ms for seen in self._seen if seen.kept_ms is not None]
        counts = [seen.kept_revisions for seen in self._seen]
        if len(ages) < 2 or _spread(ages) == _spread(counts):
            return min(by_age, by_count)
        # What was the same each time is the rule by which the store is compacted.
        return by_age if _spread(ages) < _spread(counts) else by_count

    def _left_by_age(self, position: Sequence, now_ms: int) -> int | None:
        ages = [seen.kept_ms for seen in self._seen if seen.kept_ms is not None]
        if not ages:
            return None
        age_ms = self.age_ms(position, now_ms=now_ms)
        # Older than all that is remembered is older than what was kept within it.
        return 0 if age_ms is None else min(ages) - age_ms

    def _left_by_count(self, position: Sequence) -> int | None:
        if not any(seen.kept_ms is not None for seen in self._seen):
            return None
        first, last = self._recent[0], self._recent[-1]
        grown, elapsed_ms = last.revision - first.revision, last.sent_ms - first.sent_ms
        if grown <= 0 or elapsed_ms <= 0:
            return None
        left = min(seen.kept_revisions for seen in self._seen) - (self.head - position)
        return left * elapsed_ms // grown

    def _next_at_ms(self) -> int:
        """Return the earliest time at which the next compaction is to be expected; 0: any time."""
        if len(self._seen) < 2:
            return 0
        times = [seen.at_ms for seen in self._seen]
        return times[-1] + min(b - a for a, b in itertools.pairwise(times))


def _spread(values: list[int]) -> float:
    """Return how much values differ: 1 if they are all the same."""
    return (max(values) + 1) / (min(values) + 1)
