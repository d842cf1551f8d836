"""How far the region's etcd may be compacted: what standbys need stays, for a while. Pure.

Off unless configured: then this is the only one who should compact (etcd's own auto-compaction
knows nothing of standbys). Everything younger than `keep_ms` stays for watchers; a standby's
position stays until it is older than `hold_ms`. After that the disk matters more: the standby is
left behind, by name, and is served from the spool or copied.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from meshkit.names import ClusterName
from meshkit.ordinals import Revision
from replicator.lag import CommitTimes
from replicator.spool.keep import Standby


@attrs.frozen(kw_only=True)
class CompactionRule:
    """What is kept, and for how long."""

    keep_ms: int
    """History younger than this is never dropped."""
    hold_ms: int
    """For no longer than this it is kept for a standby that does not come."""
    step_revisions: int
    """It is not worth a compaction for fewer."""


@attrs.frozen(kw_only=True)
class CompactionChoice:
    """What was decided, in words that are logged. `through` None: nothing is compacted now."""

    through: Revision | None
    why: str
    left_behind: tuple[ClusterName, ...] = ()
    """Standbys whose positions are given up with it."""
    held_by: ClusterName | None = None
    """The standby that history is kept for beyond `keep_ms`, if one is."""


def choose(
    rule: CompactionRule,
    standbys: Iterable[Standby],
    *,
    times: CommitTimes,
    compacted: Revision,
    now_ms: int,
) -> CompactionChoice:
    """Return up to where to compact.

    A position of unknown age counts as young: this process has not watched for long enough to
    give anybody up.
    """
    young = times.head_at(now_ms - rule.keep_ms)
    if young is None:
        return CompactionChoice(through=None, why="nothing is known to be old enough")
    through, held_by, left_behind = young, None, []
    for standby in sorted(standbys, key=lambda s: s.position):
        if standby.position < compacted:
            # It is gone already; the spool or a copy serves it.
            continue
        if standby.position >= through:
            break
        if standby.age_ms is None or standby.age_ms < rule.hold_ms:
            through, held_by = Revision(standby.position), standby.target
            break
        left_behind.append(standby.target)
    if through - compacted < rule.step_revisions:
        why = f"{held_by} needs it" if held_by is not None else "little would be dropped"
        return CompactionChoice(through=None, why=why, held_by=held_by)
    return CompactionChoice(
        through=through,
        why=_in_words(held_by, left_behind, rule),
        left_behind=tuple(sorted(left_behind)),
        held_by=held_by,
    )


def _in_words(
    held_by: ClusterName | None, left_behind: list[ClusterName], rule: CompactionRule
) -> str:
    if left_behind:
        names = ", ".join(sorted(left_behind))
        return f"{names} stored nothing for {rule.hold_ms // 1000} s and is left behind"
    if held_by is not None:
        return f"up to what {held_by} has stored"
    return f"everything older than {rule.keep_ms // 1000} s is stored everywhere"
