"""The promises as judgements over recorded histories and final states. Pure.

A verdict is valid, invalid or unknown; unknown is red. A run counts only if there was traffic.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping, Sequence

import attrs

from chaos.history import Gap, History, Outcome, Write
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision

State = Mapping[bytes, bytes]
"""Keys and values of a group in one cluster."""

SHOWN_MAX = 5
"""How many offenders a verdict names."""


class Judgement(enum.Enum):
    """How a check ended."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Verdict:
    """One check's judgement, with the evidence in words."""

    check: str
    judgement: Judgement
    detail: str = ""

    @property
    def is_valid(self) -> bool:
        """Whether the promise held and there was evidence for it."""
        return self.judgement is Judgement.VALID


@attrs.frozen(kw_only=True)
class SegmentSpan:
    """Where an epoch of the group was open in one cluster's log; no cut means it still is."""

    cluster: ClusterName
    epoch: Epoch
    opened: Revision
    cut: Revision | None


def check_traffic(history: History, *, acknowledged_min: int) -> Verdict:
    """Demand that enough writes were acknowledged for the run to be evidence."""
    count = history.count(Outcome.OK)
    enough = count >= acknowledged_min
    return Verdict(
        check="traffic",
        judgement=Judgement.VALID if enough else Judgement.UNKNOWN,
        detail=f"{count} acknowledged of {len(history.writes)} (at least {acknowledged_min})",
    )


def check_nothing_lost(history: History, states: Mapping[ClusterName, State]) -> Verdict:
    """Promise 2: every acknowledged write is in every cluster with its value."""
    lost = [
        f"{write.key.decode()} of epoch {write.epoch} is not in {cluster}"
        for write in history.acknowledged()
        for cluster, state in states.items()
        if state.get(write.key) != write.value
    ]
    return _verdict("nothing lost", lost)


def check_no_ghosts(history: History, states: Mapping[ClusterName, State]) -> Verdict:
    """A write that was refused is nowhere."""
    refused = {write.key for write in history.writes if write.outcome is Outcome.FAIL}
    ghosts = [
        f"{key.decode()} was refused and is in {cluster}"
        for cluster, state in states.items()
        for key in sorted(refused & state.keys())
    ]
    return _verdict("no ghosts", ghosts)


def check_identical(states: Mapping[ClusterName, State]) -> Verdict:
    """All clusters hold the same keys and values."""
    (first, reference), *others = states.items()
    differences = [
        f"{key.decode()} differs between {first} and {cluster}"
        for cluster, state in others
        for key in sorted(reference.keys() | state.keys())
        if reference.get(key) != state.get(key)
    ]
    return _verdict("identical", differences)


def check_one_writer(history: History) -> Verdict:
    """Promise 1 from the clients' side: acknowledged writes of two epochs can be put in order.

    A write took effect somewhere between its call and its return. So some write of epoch e came
    after one of a later epoch exactly if it was called after the other had returned.
    """
    by_epoch: dict[Epoch, list[Write]] = {}
    for write in history.acknowledged():
        if write.epoch is not None:
            by_epoch.setdefault(write.epoch, []).append(write)
    overlaps = []
    epochs = sorted(by_epoch)
    for index, epoch in enumerate(epochs):
        clusters = {write.cluster for write in by_epoch[epoch]}
        if len(clusters) > 1:
            overlaps.append(f"epoch {epoch} was acknowledged by {clusters}")
        last = max(by_epoch[epoch], key=lambda write: write.call_ns)
        for later in epochs[index + 1 :]:
            first = min(by_epoch[later], key=lambda write: write.return_ns)
            if last.call_ns > first.return_ns:
                overlaps.append(
                    f"{last.key.decode()} of epoch {epoch} was called"
                    f" {(last.call_ns - first.return_ns) / 1e6:.1f} ms after"
                    f" {first.key.decode()} of epoch {later} had returned"
                )
    return _verdict("one writer", overlaps)


def check_handover(history: History, *, before: Epoch, after: Epoch) -> Verdict:
    """Demand that the last acknowledgement of one epoch came before the first of the next.

    That is more than `check_one_writer` asks: not even a write that was called in time may be
    acknowledged late. Times are of one machine's monotonic clock.
    """
    acknowledged = history.acknowledged()
    old = [write for write in acknowledged if write.epoch == before]
    new = [write for write in acknowledged if write.epoch == after]
    if not old or not new:
        return Verdict(
            check="handover",
            judgement=Judgement.UNKNOWN,
            detail=f"{len(old)} writes of epoch {before}, {len(new)} of epoch {after}",
        )
    last = max(old, key=lambda write: write.return_ns)
    first = min(new, key=lambda write: write.return_ns)
    ms = (first.return_ns - last.return_ns) / 1e6
    return Verdict(
        check="handover",
        judgement=Judgement.VALID if ms > 0 else Judgement.INVALID,
        detail=f"epoch {before} ended {ms:.0f} ms before epoch {after} began",
    )


def check_rate(
    what: str,
    writes: Sequence[Write],
    *,
    from_ns: int,
    to_ns: int,
    per_s_min: float,
    besides: Sequence[Gap] = (),
) -> Verdict:
    """Demand that acknowledgements came at some rate in a time, or there is no evidence of it.

    The gaps `besides` are no part of that time.
    """
    count = sum(w.outcome is Outcome.OK and from_ns <= w.return_ns <= to_ns for w in writes)
    seconds = (to_ns - from_ns) / 1e9 - sum(gap.ms for gap in besides) / 1e3
    enough = seconds > 0 and count >= per_s_min * seconds
    return Verdict(
        check=f"rate of {what}",
        judgement=Judgement.VALID if enough else Judgement.UNKNOWN,
        detail=f"{count} in {seconds:.1f} s: {count / seconds if seconds > 0 else 0:.0f}/s"
        f" (at least {per_s_min:g}/s)",
    )


def check_inside_segments(history: History, spans: Sequence[SegmentSpan]) -> Verdict:
    """Promise 1 from the stores' side: each acknowledged write lies in its epoch's segment."""
    known = {(span.cluster, span.epoch): span for span in spans}
    outside = []
    for write in history.acknowledged():
        if write.cluster is None or write.epoch is None or write.revision is None:
            continue
        span = known.get((write.cluster, write.epoch))
        if span is None:
            outside.append(f"epoch {write.epoch} never opened in {write.cluster}")
        elif write.revision <= span.opened or (span.cut and write.revision > span.cut):
            outside.append(
                f"{write.key.decode()} at {write.cluster}@{write.revision} is outside"
                f" ({span.opened}, {span.cut}]"
            )
    return _verdict("inside segments", outside)


def check_epochs_rise(spans: Sequence[SegmentSpan]) -> Verdict:
    """Within one cluster, a later epoch opens only after the earlier was cut."""
    wrong = []
    by_cluster: dict[ClusterName, list[SegmentSpan]] = {}
    for span in spans:
        by_cluster.setdefault(span.cluster, []).append(span)
    for cluster, mine in by_cluster.items():
        ordered = sorted(mine, key=lambda span: span.epoch)
        for one, other in itertools.pairwise(ordered):
            if one.cut is None or one.cut >= other.opened:
                wrong.append(f"{cluster}: epoch {other.epoch} opened inside epoch {one.epoch}")
    return _verdict("epochs rise", wrong)


def _verdict(check: str, offences: list[str]) -> Verdict:
    if not offences:
        return Verdict(check=check, judgement=Judgement.VALID)
    shown = "; ".join(offences[:SHOWN_MAX])
    more = f" and {len(offences) - SHOWN_MAX} more" if len(offences) > SHOWN_MAX else ""
    return Verdict(check=check, judgement=Judgement.INVALID, detail=shown + more)
