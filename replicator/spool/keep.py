"""What the spool has to keep, and for whom. Pure.

It keeps what a standby that has been behind for a while has not stored. A standby that follows
needs no spool: etcd has its history. One that neither the spool nor etcd can serve is copied in
any case, so nothing is kept for it.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from meshkit.names import ClusterName
from meshkit.ordinals import Revision, Sequence


@attrs.frozen(kw_only=True)
class Standby:
    """How far a standby has stored this cluster's log.

    `age_ms`: how long ago the first revision it lacks was committed; None: longer than this
    process remembers.
    """

    target: ClusterName
    position: Sequence
    age_ms: int | None


@attrs.frozen(kw_only=True)
class Demand:
    """What to keep: everything after `after`, for `targets`; `lost` cannot be served any more."""

    after: Sequence | None
    targets: tuple[ClusterName, ...] = ()
    lost: tuple[ClusterName, ...] = ()


def demand(
    standbys: Iterable[Standby],
    *,
    compacted: Revision,
    spooled_after: Sequence | None,
    late_ms: int,
) -> Demand:
    """Return what the spool must hold.

    `compacted`: etcd cannot serve positions below it. `spooled_after`: the spool can serve
    positions from there on; None if it is empty.
    """
    wanted: list[Standby] = []
    lost: list[ClusterName] = []
    for standby in standbys:
        if standby.age_ms is not None and standby.age_ms < late_ms:
            continue
        is_spooled = spooled_after is not None and standby.position >= spooled_after
        if standby.position < compacted and not is_spooled:
            lost.append(standby.target)
        else:
            wanted.append(standby)
    return Demand(
        after=min((standby.position for standby in wanted), default=None),
        targets=tuple(sorted(standby.target for standby in wanted)),
        lost=tuple(sorted(lost)),
    )
