"""Reads and follows the fences and checkpoints of the region that a stream applies to."""

from __future__ import annotations

from collections.abc import Mapping

from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.keys import RegionalKeys, parts_below
from meshkit.mirror import PrefixMirror
from meshkit.names import ClusterName, GroupName
from meshkit.regional import Checkpoint, Fence
from meshkit.store.port import Store
from meshkit.store.txn import Committed, KeyValue, Txn, prefix_range
from replicator.region_state import (
    REGION_READS,
    JoinKey,
    RegionState,
    region_of,
    torn_groups,
)


async def read_region(store: Store) -> RegionState:
    """Return the state of the region at one revision.

    Raises:
        Unreachable, OutcomeUnknown: nothing was read, nothing was changed.
    """
    outcome = await store.commit(Txn(operations=REGION_READS))
    assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
    return region_of(outcome.reads)


class RegionMirror(PrefixMirror):
    """Fences and checkpoints of the region, followed by one watch, for those who wait for them.

    One watch over both, because "in step" is a claim about both at one revision.
    """

    def __init__(self, store: Store, *, clock: Clock) -> None:
        super().__init__(store, RegionalKeys.checkpoints, clock=clock)
        # checkpoint/... < fence-index < fence/...: one range holds all three.
        self._range = (RegionalKeys.checkpoints, prefix_range(RegionalKeys.fences)[1])

    def checkpoint(self, source: ClusterName) -> Checkpoint | None:
        """Return the stored main checkpoint of a source."""
        item = self.entries.get(RegionalKeys.checkpoint(source))
        return decode(Checkpoint, item.value) if item else None

    def fence(self, group: GroupName) -> Fence | None:
        """Return the group's fence."""
        item = self.entries.get(RegionalKeys.fence(group))
        return decode(Fence, item.value) if item else None

    def joins(self) -> Mapping[JoinKey, KeyValue]:
        """Return the keys of every group that is out of step."""
        found: dict[JoinKey, KeyValue] = {}
        for key, item in self.entries.items():
            parts = parts_below(RegionalKeys.checkpoints, key)
            if parts is not None and len(parts) == 2:
                found[ClusterName(parts[0]), GroupName(parts[1])] = item
        return found

    def has_moved(self, known: RegionState) -> bool:
        """Return whether somebody else moved a fence or a join since the region was read."""
        item = self.entries.get(RegionalKeys.fence_index)
        return item is not None and item.mod_revision > known.index_revision

    def is_out_of_step(self, group: GroupName) -> bool:
        """Return whether the group has a checkpoint of its own, or a part of a transaction."""
        return any(join[1] == group for join in self.joins()) or group in self.torn()

    def torn(self) -> frozenset[GroupName]:
        """Return the groups that hold a part of a transaction, and not yet the whole."""
        return torn_groups(self.entries.values())
