"""When a region's etcd takes nothing for now: what counts as that, and what to tell people. Pure.

Such an etcd is asked again until it takes what it was asked for; the stream says `stalled`, and
why. What an etcd refuses for good is another matter (`parked`).
"""

from __future__ import annotations

from meshkit.errors import MeshError, NoSpace, NotAllowed, OutcomeUnknown, Unreachable
from meshkit.names import ClusterName

STALLS = (NoSpace, NotAllowed, OutcomeUnknown, Unreachable)
"""It is full, has no quorum, cannot be reached, or no longer allows the replicator to write."""


def stall_reason(me: ClusterName, error: MeshError) -> str:
    """Return what the person on call reads while a region's etcd takes nothing."""
    match error:
        case NoSpace():
            what, then = "is full (NOSPACE)", "compact, defragment and disarm the alarm"
        case NotAllowed():
            what, then = "does not allow the replicator to write", "give its user the role it had"
        case _:
            what, then = "does not answer or has no quorum", "bring its members back"
    return f"stalled: the etcd of {me} {what}: {error}. To go on: {then}; nothing is lost"
