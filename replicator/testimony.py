"""What a region's fences prove, told to whoever rebuilds a lost coordination etcd.

Any replicator of the region tells it, also one that stands by: nobody leads a region that is
suspended. It is read from the region's etcd, never from memory, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meshkit.asking import (
    Answer,
    DeclineCode,
    Declined,
    GroupStanding,
    ReadStanding,
    RegionStanding,
)
from meshkit.codec import decode
from meshkit.errors import MeshError
from meshkit.incarnations import FIRST_INCARNATION, Suspension
from meshkit.keys import RegionalKeys, last_part
from meshkit.model import Routing
from meshkit.names import GroupName
from meshkit.ordinals import Incarnation
from meshkit.ordinals import Sequence as LogSequence
from meshkit.peer import PeerIdentity
from meshkit.regional import Fence, RegionIncarnation, SegmentOpened, SegmentScope
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Get, KeyValue, Txn, prefix_range
from replicator.recognition import Observation

GROUPS_AT_ONCE = 200
"""In one answer."""
_READ_AT_ONCE = 16
"""Groups read in one transaction, below etcd's limit of 128 operations."""


async def testify(store: Store, question: ReadStanding, peer: PeerIdentity) -> Answer:
    """Return what the region's etcd says; only a coordinator is told."""
    if peer.role != "coordinator":
        return Declined(code=DeclineCode.NOT_ALLOWED, text=f"{peer} may not ask for fences")
    try:
        return await _standing(store, question)
    except MeshError as error:
        return Declined(code=DeclineCode.REFUSED, text=f"the region's etcd: {error}")


async def _standing(store: Store, question: ReadStanding) -> RegionStanding:
    keys = (RegionalKeys.incarnation, RegionalKeys.suspended, RegionalKeys.coordination_seen)
    outcome = await store.commit(Txn(operations=tuple(Get(key) for key in keys)))
    assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
    incarnation, suspended, seen = (found[0].value if found else None for found in outcome.reads)
    start, end = prefix_range(RegionalKeys.fences)
    if question.after is not None:
        start = RegionalKeys.fence(question.after) + b"\x00"
    page = await store.range((start, end), limit=GROUPS_AT_ONCE, keys_only=True)
    names = [GroupName(last_part(item.key)) for item in page.items]
    groups = [one for some in _portions(names) for one in await _groups(store, some)]
    known = decode(Observation, seen).incarnation if seen else FIRST_INCARNATION
    return RegionStanding(
        incarnation=(
            decode(RegionIncarnation, incarnation).incarnation if incarnation else Incarnation("")
        ),
        suspension=decode(Suspension, suspended) if suspended else None,
        coordination=known or FIRST_INCARNATION,
        groups=tuple(groups),
        next_group=names[-1] if page.more else None,
    )


def _portions(names: Sequence[GroupName]) -> Iterator[Sequence[GroupName]]:
    for at in range(0, len(names), _READ_AT_ONCE):
        yield names[at : at + _READ_AT_ONCE]


async def _groups(store: Store, names: Sequence[GroupName]) -> list[GroupStanding]:
    """Return what is known of some groups; their fences first, to know which epoch is asked of."""
    outcome = await store.commit(Txn(operations=tuple(Get(RegionalKeys.fence(n)) for n in names)))
    assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
    fences = [decode(Fence, found[0].value) for found in outcome.reads if found]
    gets = [get for fence in fences for get in _about(fence)]
    outcome = await store.commit(Txn(operations=tuple(gets)))
    assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
    each = len(gets) // len(fences) if fences else 0
    return [
        _group(fence, outcome.reads[at * each : (at + 1) * each]) for at, fence in enumerate(fences)
    ]


def _about(fence: Fence) -> tuple[Get, ...]:
    group, epoch = fence.group, fence.epoch
    return (
        Get(RegionalKeys.fence(group)),
        Get(RegionalKeys.permit(group)),
        Get(RegionalKeys.routing(group)),
        Get(RegionalKeys.segment_opened(group, epoch)),
        Get(RegionalKeys.segment_scope(group, epoch)),
        Get(RegionalKeys.segment_cut(group, epoch)),
    )


def _group(fence: Fence, reads: Sequence[tuple[KeyValue, ...]]) -> GroupStanding:
    now, permit, routing, opened, scope, cut = (found[0] if found else None for found in reads)
    return GroupStanding(
        fence=decode(Fence, now.value) if now else fence,
        lineage=decode(SegmentOpened, opened.value).lineage if opened else None,
        cut=LogSequence(cut.mod_revision) if cut else None,
        prefixes=decode(SegmentScope, scope.value).prefixes if scope else (),
        routing=decode(Routing, routing.value) if routing else None,
        has_permit=permit is not None,
    )
