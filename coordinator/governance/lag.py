"""How far one copy of one group is behind, by what both its regions tell: said in one way. Pure.

The preview, the checks, the screens and the API all ask here, so that they cannot disagree.
"""

from __future__ import annotations

from meshkit.names import GroupName
from meshkit.status import ClusterHealth, GroupBehind, Lag, StreamState, StreamStatus

UNKNOWN = Lag(state=StreamState.UNKNOWN)


def group_lag(stream: StreamStatus | None, health: ClusterHealth | None, group: GroupName) -> Lag:
    """Return the lag of a group's copy; `stream` is its source's report, `health` the target's.

    Both are given only if they are fresh. A group that is out of step by the target's own report
    and not by the source's may lag by anything: the source is older than that, or too old to know.
    """
    if stream is None:
        return UNKNOWN
    known = health.groups.get(group) if health else None
    is_out = known is not None and not known.in_step
    if is_out and group not in stream.groups_out_of_step:
        return UNKNOWN
    return stream.lag_of(group)


def behind_of(stream: StreamStatus | None, group: GroupName) -> GroupBehind | None:
    """Return what is told of a group that is out of step."""
    return next((one for one in stream.behind if one.group == group), None) if stream else None
