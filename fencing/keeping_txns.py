"""Which groups may go on by promise, and the transaction that gives exactly them a permit. Pure.

Everything is read from the region's etcd and compared when it is written: memory, and what was last
heard from the coordination etcd, decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

import attrs

from fencing import chain_txns
from fencing.chain_txns import PERMITS, Permits, group_of
from fencing.decision import permit_put
from meshkit.codec import decode
from meshkit.errors import CorruptRecord
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, LeaseId, Revision
from meshkit.promises import Pact
from meshkit.regional import Fence, FenceMode
from meshkit.store.port import RangeResult
from meshkit.store.txn import (
    Delete,
    Guard,
    KeyValue,
    ModRevisionIs,
    NoneModifiedSince,
    Operation,
    Txn,
    prefix_range,
)

S = TypeVar("S", Fence, Pact)

FENCES = prefix_range(RegionalKeys.fences)
PACTS = prefix_range(RegionalKeys.pacts)


@attrs.frozen(kw_only=True)
class Look:
    """The fences, pacts and permits of a region.

    They need not be of one revision: what rests on them fails if any changed past the first one.
    """

    fences: Mapping[GroupName, Fence]
    pacts: Mapping[GroupName, Pact]
    permits: Permits
    leases_revision: Revision
    """Of the record of the chain's leases, which is put whenever the chain begins anew."""


@attrs.frozen(kw_only=True)
class Keepable:
    """A group that is active here and may go on if all of `members` promise."""

    fence: Fence
    members: frozenset[ClusterName]
    """Whose promises are needed."""


def look_of(
    fences: RangeResult, pacts: RangeResult, permits: Permits, *, leases_revision: Revision
) -> Look:
    """Return what reading `FENCES`, `PACTS` and `PERMITS` says; what cannot be read is not kept."""
    revision = min(fences.revision, pacts.revision, permits.revision)
    return Look(
        fences={f.group: f for item in fences.items if (f := _readable(Fence, item)) is not None},
        pacts={p.group: p for item in pacts.items if (p := _readable(Pact, item)) is not None},
        permits=Permits(revision=revision, items=permits.items),
        leases_revision=leases_revision,
    )


def _readable(cls: type[S], item: KeyValue) -> S | None:
    try:
        return decode(cls, item.value)
    except CorruptRecord:
        return None


def keepable(look: Look, *, me: ClusterName) -> dict[GroupName, Keepable]:
    """Return the groups that are open here under a pact of the very epoch."""
    found = {}
    for group, fence in look.fences.items():
        pact = look.pacts.get(group)
        if fence.mode is not FenceMode.OPEN or pact is None or not pact.is_in_force:
            continue
        if (pact.cluster, pact.epoch) == (me, fence.epoch):
            found[group] = Keepable(fence=fence, members=frozenset(pact.members) - {me})
    return found


def by_member(groups: Mapping[GroupName, Keepable]) -> dict[ClusterName, dict[GroupName, Epoch]]:
    """Return what each member has to be asked for."""
    asked: dict[ClusterName, dict[GroupName, Epoch]] = {}
    for group, keepable_ in groups.items():
        for member in sorted(keepable_.members):
            asked.setdefault(member, {})[group] = keepable_.fence.epoch
    return asked


def promised_by_all(
    groups: Mapping[GroupName, Keepable], promises: Mapping[ClusterName, AbstractSet[GroupName]]
) -> dict[GroupName, Fence]:
    """Return the fences of the groups that every member has promised not to open."""
    return {
        group: keepable_.fence
        for group, keepable_ in groups.items()
        if all(group in promises.get(member, ()) for member in keepable_.members)
    }


def line_up(look: Look, kept: Mapping[GroupName, Fence], *, lease: LeaseId) -> Txn | None:
    """Return the transaction that leaves exactly the permits of `kept`, on `lease`.

    None if that is so already. It fails if a fence, a pact or a permit moved since `look`, or if
    the chain has begun anew. Permits of groups that lapse are deleted, because the beat that keeps
    the gates of the others open would keep theirs open too.
    """
    operations: list[Operation] = []
    there: set[GroupName] = set()
    for item in look.permits.items:
        group = group_of(item.key)
        if group not in kept:
            operations.append(Delete(item.key))
        elif item.lease == lease and item.value == permit_put(kept[group], lease).value:
            there.add(group)
    operations += [permit_put(f, lease) for g, f in sorted(kept.items()) if g not in there]
    if not operations:
        return None
    return Txn(guards=_as_seen(look), operations=chain_txns.nested(operations))


def _as_seen(look: Look) -> tuple[Guard, ...]:
    revision = look.permits.revision
    return (
        NoneModifiedSince(FENCES, revision),
        NoneModifiedSince(PACTS, revision),
        NoneModifiedSince(PERMITS, revision),
        ModRevisionIs(RegionalKeys.leases, look.leases_revision),
    )


def as_lined_up(revision: Revision) -> Guard:
    """Return the guard of a beat: no permit was put since they were lined up at `revision`."""
    return NoneModifiedSince(PERMITS, revision)
