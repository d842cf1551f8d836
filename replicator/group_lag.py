"""The lag of a whole stream: of the groups that are in step, and of each that is not. Pure.

The invariant is that of `lag.py`, for all of it: what is said is never further from the truth than
the bound that is said with it, and 0 only if it is proven of every group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from meshkit.names import GroupName
from meshkit.status import GroupBehind, Lag, StreamState, WhyBehind
from replicator.backlogs import Backlog
from replicator.lag import UNKNOWN, CommitTimes, StreamLag, age_of
from replicator.limits import DEFAULT_LIMITS, Limits

_WORST_FIRST = (
    StreamState.STALLED,
    StreamState.PAUSED,
    StreamState.UNKNOWN,
    StreamState.CATCHING_UP,
    StreamState.RECONCILING,
    StreamState.STREAMING,
)
_OF_ALL = (StreamState.STALLED, StreamState.PAUSED, StreamState.UNKNOWN)
"""A main stream in one of these carries nothing, whatever its groups do."""


@attrs.frozen(kw_only=True)
class TargetLag:
    """How far one target lags."""

    whole: Lag = UNKNOWN
    """Of all groups together."""
    in_step: Lag = UNKNOWN
    behind: Mapping[GroupName, GroupBehind] = attrs.field(factory=dict)
    """The groups that are out of step."""
    tells: bool = False
    """Whether the target tells which those are."""

    def of(self, group: GroupName | None) -> Lag:
        """Return the lag of one group, or of all."""
        if group is None:
            return self.whole
        return self.behind[group].lag if group in self.behind else self.in_step


def target_lag(
    stream: StreamLag,
    times: CommitTimes,
    *,
    now_ms: int,
    is_paused: bool = False,
    asked: Collection[GroupName] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> TargetLag:
    """Return how far a target lags now.

    `asked`: the groups whose side streams it has asked for, which is all that is known of a target
    that does not tell what is out of step.
    """
    main = stream.evaluate(times, now_ms=now_ms, is_paused=is_paused)
    if not stream.backlogs.is_told:
        unknown = _unknown(main)
        behind = {group: _untold(group) for group in asked}
        in_step = main if stream.backlogs.is_silent else unknown
        return TargetLag(whole=unknown, in_step=in_step, behind=behind)
    groups = stream.backlogs.groups
    waiting = stream.waiting_of(groups.keys()) if groups else {}
    behind = {
        group: _behind(
            backlog,
            main,
            times,
            now_ms=now_ms,
            waiting=waiting[group],
            floor_ms=limits.catching_up_ms,
        )
        for group, backlog in groups.items()
    }
    if not behind:
        return TargetLag(whole=main, in_step=main, tells=True)
    whole = _whole(main, groups.values(), behind.values(), floor_ms=limits.catching_up_ms)
    return TargetLag(whole=whole, in_step=main, behind=behind, tells=True)


def _unknown(main: Lag) -> Lag:
    return Lag(state=main.state if main.state in _OF_ALL else StreamState.UNKNOWN)


def _untold(group: GroupName) -> GroupBehind:
    why = WhyBehind.RECONCILING
    return GroupBehind(group=group, why=why.value, lag=Lag(state=why.state))


def _behind(
    backlog: Backlog,
    main: Lag,
    times: CommitTimes,
    *,
    now_ms: int,
    waiting: tuple[int, int],
    floor_ms: int,
) -> GroupBehind:
    """Return how far a group is behind: by what it lacks, and by what the main stream lacks."""
    told = backlog.told
    lag_ms, bound_ms = _oldest([main, *_own(backlog, times, now_ms=now_ms)], floor_ms=floor_ms)
    count = backlog.count
    is_counted = count is not None and main.records is not None
    why = why_of(told.why)
    state = (
        main.state if main.state in _OF_ALL and why.state is not StreamState.PAUSED else why.state
    )
    lag = Lag(
        state=state,
        lag_ms=lag_ms,
        error_bound_ms=bound_ms,
        records=count[0] + waiting[0] if count is not None and is_counted else None,
        bytes=count[1] + waiting[1] if count is not None and is_counted else None,
    )
    position = told.position
    return GroupBehind(group=told.group, why=told.why, lag=lag, position=position, text=told.text)


def why_of(text: str) -> WhyBehind:
    """Return why a group is out of step; a newer version may know more reasons."""
    return WhyBehind(text) if text in {why.value for why in WhyBehind} else WhyBehind.UNKNOWN


def _own(backlog: Backlog, times: CommitTimes, *, now_ms: int) -> list[Lag]:
    """Return the age of the oldest record that a group lacks for itself; none if it lacks none."""
    position, oldest = backlog.told.position, backlog.oldest
    least_ms = 0
    if oldest is not None:
        is_split = position is not None and oldest.first <= position
        first = position + 1 if is_split and position is not None else oldest.first
        latest = times.bracket(oldest.last if is_split else oldest.first)[1]
        if backlog.is_whole:
            bracket = (times.bracket(first)[0], latest)
            lag_ms, bound_ms = age_of(bracket, now_ms, is_record=True)
            return [Lag(state=StreamState.UNKNOWN, lag_ms=lag_ms, error_bound_ms=bound_ms)]
        least_ms = 0 if latest is None else max(0, now_ms - latest)
    elif backlog.is_whole:
        return []
    earliest = None if position is None else times.bracket(position + 1)[0]
    if earliest is None:
        return [Lag(state=StreamState.UNKNOWN, lag_ms=least_ms or None)]
    # What was not counted may hold a record, and counts as if it did.
    greatest_ms = max(1, now_ms - earliest)
    bound_ms = greatest_ms - least_ms
    return [Lag(state=StreamState.UNKNOWN, lag_ms=greatest_ms, error_bound_ms=bound_ms)]


def _oldest(lags: Sequence[Lag], *, floor_ms: int) -> tuple[int | None, int | None]:
    """Return the lag of what is as late as the latest of these, and how far off that may be.

    If one of them has no bound only the least is known. The first one, which is the main stream's,
    counts for that only above `floor_ms`: that it is small says nothing of the others.
    """
    bounded = [
        (lag.lag_ms, lag.error_bound_ms)
        for lag in lags
        if lag.lag_ms is not None and lag.error_bound_ms is not None
    ]
    if len(bounded) == len(lags):
        said_ms = max(lag_ms for lag_ms, _ in bounded)
        greatest_ms = max(lag_ms + bound_ms for lag_ms, bound_ms in bounded)
        least_ms = max(lag_ms - bound_ms for lag_ms, bound_ms in bounded)
        return said_ms, max(greatest_ms - said_ms, said_ms - least_ms)
    known = [lag for lag in lags if lag.lag_ms is not None]
    least = [max(0, (lag.lag_ms or 0) - (lag.error_bound_ms or 0)) for lag in known]
    if known and known[0] is lags[0] and least[0] <= floor_ms:
        least = least[1:]
    return max(least, default=0) or None, None


def _whole(
    main: Lag, backlogs: Iterable[Backlog], behind: Collection[GroupBehind], *, floor_ms: int
) -> Lag:
    """Return the lag of everything. A record of several groups out of step counts for each."""
    lag_ms, bound_ms = _oldest([main, *(one.lag for one in behind)], floor_ms=floor_ms)
    records, size_bytes = main.records, main.bytes
    for backlog in backlogs:
        count = backlog.count
        if count is None or records is None or size_bytes is None:
            records = size_bytes = None
        else:
            records, size_bytes = records + count[0], size_bytes + count[1]
    states = [main.state, *(one.lag.state for one in behind)]
    state = main.state if main.state in _OF_ALL else min(states, key=_WORST_FIRST.index)
    return Lag(
        state=state, lag_ms=lag_ms, error_bound_ms=bound_ms, records=records, bytes=size_bytes
    )


BEHIND_MAX = 200
"""So many groups out of step are told of in full in a stored status; the others by name."""


def told_of(behind: Iterable[GroupBehind]) -> tuple[GroupBehind, ...]:
    """Return what is stored of the groups out of step: those that stand still before others."""
    order = list(WhyBehind)
    ranked = sorted(behind, key=lambda one: (order.index(why_of(one.why)), one.group))
    return tuple(sorted(ranked[:BEHIND_MAX], key=lambda one: one.group))
