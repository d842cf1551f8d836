"""Where in a cluster's history a group's log begins, goes on and is contained: read, not guessed.

Everything comes from the cluster's own etcd: its segments say where an epoch was opened and on top
of what, the history of its checkpoints says which of its revisions contains how much of a source.
"""

from __future__ import annotations

import attrs

from fencing.group_log import Anew, LegFold, Place, Replay
from meshkit.codec import decode
from meshkit.errors import Compacted, MeshError
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence
from meshkit.regional import Checkpoint, RegionIncarnation, SegmentOpened, SegmentScope
from meshkit.store.port import Store
from meshkit.store.txn import KeyValue, prefix_range


class Unresolved(MeshError):
    """Where a group's log goes on could not be found out from the clusters' own records."""

    code = "unresolved"


@attrs.frozen(kw_only=True)
class Leg:
    """One epoch at one cluster, as its segment said at `read_at`."""

    cluster: ClusterName
    incarnation: Incarnation
    epoch: Epoch
    opened: Revision
    lineage: Lineage | None
    prefixes: tuple[bytes, ...]
    cut: Revision | None
    read_at: Revision

    @property
    def sequence(self) -> Sequence:
        """Up to where the parent's log is part of the group's."""
        return self.lineage.sequence if self.lineage else Sequence(0)

    def place_at(self, revision: Revision) -> Place:
        """Return the place in this leg behind `revision`."""
        return Place(
            cluster=self.cluster,
            incarnation=self.incarnation,
            epoch=self.epoch,
            opened=self.opened,
            revision=revision,
            delivered=revision,
        )

    def fold(self, group: GroupName) -> LegFold:
        """Return the fold that goes on from `read_at`."""
        return LegFold(
            group, epoch=self.epoch, opened=self.opened, prefixes=self.prefixes, cut=self.cut
        )

    def fold_from_opening(self, group: GroupName, *, replay: Replay | None) -> LegFold:
        """Return the fold that begins no later than the opening, whatever has happened since."""
        inherited = self.lineage.prefixes if self.lineage else ()
        return LegFold(
            group,
            epoch=self.epoch,
            opened=self.opened,
            prefixes=tuple(p.encode() for p in inherited) or self.prefixes,
            replay=replay,
        )


async def read_leg(
    store: Store,
    group: GroupName,
    epoch: Epoch,
    *,
    cluster: ClusterName,
    revision: Revision | None = None,
) -> Leg:
    """Return the group's epoch at this cluster, as of `revision` or now.

    Raises:
        Unresolved: it has not opened the epoch (yet).
        Compacted, Unreachable: it cannot be read.
    """
    opened_key = RegionalKeys.segment_opened(group, epoch)
    folder = opened_key.rsplit(b"/", 1)[0] + b"/"
    read = await store.range(prefix_range(folder), revision=revision)
    keys = {item.key: item for item in read.items}
    identity = await store.get(RegionalKeys.incarnation)
    scope = keys.get(RegionalKeys.segment_scope(group, epoch))
    opened = keys.get(opened_key)
    if opened is None or scope is None or identity is None:
        raise Unresolved(f"{cluster} has not opened epoch {epoch} of {group}")
    cut = keys.get(RegionalKeys.segment_cut(group, epoch))
    return Leg(
        cluster=cluster,
        incarnation=decode(RegionIncarnation, identity.value).incarnation,
        epoch=epoch,
        opened=opened.mod_revision,
        lineage=decode(SegmentOpened, opened.value).lineage,
        prefixes=tuple(p.encode() for p in decode(SegmentScope, scope.value).prefixes),
        cut=cut.mod_revision if cut else None,
        read_at=revision or read.revision,
    )


async def read_state(
    store: Store, group: GroupName, epoch: Epoch, *, cluster: ClusterName
) -> tuple[Leg, list[KeyValue]]:
    """Return the epoch and the group's whole state, at one revision of its log.

    Raises:
        Unresolved, Compacted, Unreachable: it cannot be read now.
    """
    leg = await read_leg(store, group, epoch, cluster=cluster)
    # What follows the cut is no part of the epoch, whoever wrote it.
    at = leg.read_at if leg.cut is None else leg.cut
    state: list[KeyValue] = []
    for prefix in leg.prefixes:
        state += (await store.range(prefix_range(prefix), revision=at)).items
    return attrs.evolve(leg, read_at=at), state


async def place_in_replay(
    store: Store, group: GroupName, leg: Leg, *, incarnation: Incarnation, seen: Sequence
) -> tuple[Revision, Sequence] | Anew:
    """Return the last revision of the leg's cluster that holds nothing of the parent past `seen`.

    With it comes the parent's sequence that is contained there. Found by bisection over the
    history of the checkpoint, which only rises.

    Raises:
        Unreachable: the cluster does not answer.
    """
    assert leg.lineage is not None
    key = RegionalKeys.checkpoint(leg.lineage.parent)
    low, high = 0, int(leg.opened)
    while high - low > 1:
        middle = (low + high) // 2
        item = await _at(store, key, Revision(middle))
        if item is None:
            low = middle
            continue
        checkpoint = decode(Checkpoint, item.value)
        if checkpoint.incarnation == incarnation and checkpoint.sequence > seen:
            high = int(item.mod_revision)
        else:
            low = middle
    at = await _before_parts(store, leg.lineage.parent, Revision(low))
    item = await _at(store, key, at) if at > 0 else None
    if item is None:
        return Anew(f"the history of {leg.cluster} does not go back to what was seen")
    checkpoint = decode(Checkpoint, item.value)
    if checkpoint.incarnation != incarnation:
        return Anew(f"{leg.cluster} holds another history of {leg.lineage.parent}")
    own = RegionalKeys.group_checkpoint(leg.lineage.parent, group)
    if await _at(store, own, at) is not None:
        return Anew(f"{leg.cluster} was copying the group at that time")
    return at, checkpoint.sequence


async def _before_parts(store: Store, parent: ClusterName, at: Revision) -> Revision:
    """Return the last revision up to `at` that does not hold only a part of a transaction."""
    mark = await _at(store, RegionalKeys.parts(parent), at) if at > 0 else None
    return at if mark is None else Revision(mark.create_revision - 1)


async def _at(store: Store, key: bytes, revision: Revision) -> KeyValue | None:
    """Return the key at a revision; None if it was not there, or nobody remembers."""
    try:
        found = await store.range((key, b""), revision=revision)
    except Compacted:
        return None
    return found.items[0] if found.items else None
