"""How long a coordinator has itself seen, without a break, that a cluster is gone. Pure.

Seen means read: each look is a linearizable reading of the coordination etcd. What breaks a
stretch of looking makes everything begin anew, because whoever could not see cannot judge: too
long between two looks, a new leader of the coordination etcd (it refreshes all leases), or most
regions missing at once (then it is rather us, or the coordination etcd, that is cut off).
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision

GAP_MS_MAX = 4_000
"""More than this between two looks, and what was in between is not known."""


@attrs.frozen(kw_only=True)
class Look:
    """One reading of the coordination etcd; times of the reader's own monotonic clock."""

    began_ms: int
    ended_ms: int
    raft_term: int
    """Of the coordination etcd: another one is another leader of it."""
    missing: Mapping[GroupName, Revision]
    """Groups whose active cluster shows no proof of life, with the revision of their authority."""
    regions: frozenset[ClusterName]
    """Those that should report..."""
    reporting: frozenset[ClusterName]
    """...and those that do."""

    @property
    def gone(self) -> frozenset[ClusterName]:
        """The regions that should report and do not."""
        return self.regions - self.reporting


@attrs.frozen(kw_only=True)
class Missed:
    """A proof of life that is missing at every look since `since_ms`."""

    authority: Revision
    since_ms: int
    suspected_ms: int
    """The same, but counted through times in which nobody could judge."""


@attrs.frozen(kw_only=True)
class Sight:
    """What a coordinator has seen so far, since it began to look."""

    looked_ms: int | None = None
    """When the last look ended; None while there was none since the last break."""
    raft_term: int | None = None
    missed: Mapping[GroupName, Missed] = attrs.field(factory=dict)
    why_anew: str = "this coordinator has just begun to look"
    """What broke the stretch before this one."""


def blinded(sight: Sight, why: str) -> Sight:
    """Return what is left after a look that failed: suspicions, but nothing seen."""
    return attrs.evolve(sight, looked_ms=None, raft_term=None, why_anew=why)


def looked(before: Sight, look: Look) -> Sight:
    """Return what has been seen with one more look."""
    why = _break(before, look)
    missed: dict[GroupName, Missed] = {}
    for group, authority in look.missing.items():
        known = before.missed.get(group)
        if known is None or known.authority != authority:
            known = Missed(authority=authority, since_ms=look.ended_ms, suspected_ms=look.ended_ms)
        elif why:
            known = attrs.evolve(known, since_ms=look.ended_ms)
        missed[group] = known
    return Sight(
        looked_ms=look.ended_ms,
        raft_term=look.raft_term,
        missed=missed,
        why_anew=why or before.why_anew,
    )


def gone_ms(sight: Sight, group: GroupName, look: Look) -> int:
    """Return for how long, at the least, the group's proof of life was missing at this look."""
    known = sight.missed.get(group)
    return max(0, look.began_ms - known.since_ms) if known is not None else 0


def suspected_ms(sight: Sight, group: GroupName, look: Look) -> int:
    """Return how long ago it was first missed, whether or not anybody could see since."""
    known = sight.missed.get(group)
    return max(0, look.began_ms - known.suspected_ms) if known is not None else 0


def _break(before: Sight, look: Look) -> str:
    """Return why what was seen before does not count any more, or nothing."""
    if len(look.gone) * 2 > len(look.regions):
        return f"most regions do not report ({', '.join(sorted(look.gone))}): that is rather us"
    if before.looked_ms is None:
        return before.why_anew
    if look.ended_ms - before.looked_ms > GAP_MS_MAX:
        return f"nothing was seen for {look.ended_ms - before.looked_ms} ms"
    if look.raft_term != before.raft_term:
        return "the coordination etcd has another leader"
    return ""
