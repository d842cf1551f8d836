"""Which keys nothing may be applied over, because this cluster is active for them. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from meshkit.names import GroupName
from meshkit.store.txn import KeyRange, prefix_range
from replicator.record import Write


class Shield:
    """The scopes of the groups that this cluster is active for, or has drained and not given away.

    Two groups never cover the same key by intent. While their scopes are being changed one cluster
    may do so before another, and then what is applied must not reach under somebody's permit.
    """

    def __init__(self, scopes: Iterable[tuple[bytes, GroupName]] = ()) -> None:
        self._starts: list[bytes] = []
        self._owners: list[GroupName] = []
        for prefix, group in sorted(scopes):
            # A prefix under one that is there already adds nothing.
            if not self._starts or not prefix.startswith(self._starts[-1]):
                self._starts.append(prefix)
                self._owners.append(group)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shield):
            return NotImplemented
        return (self._starts, self._owners) == (other._starts, other._owners)

    __hash__ = None  # type: ignore[assignment]

    def owner_of(self, key: bytes) -> GroupName | None:
        """Return the group that this cluster is active for and that covers the key."""
        at = bisect.bisect_right(self._starts, key) - 1
        if at >= 0 and key.startswith(self._starts[at]):
            return self._owners[at]
        return None

    def owner_within(self, key_range: KeyRange) -> GroupName | None:
        """Return a group that this cluster is active for and that covers a part of the range."""
        start, end = key_range
        if start == end:
            return None
        for prefix, group in zip(self._starts, self._owners, strict=True):
            if start < prefix_range(prefix)[1] and prefix < end:
                return group
        return None

    def refused(self, writes: Iterable[Write]) -> tuple[int, GroupName | None]:
        """Return how many of the writes may not be applied, and because of which group."""
        if not self._starts:
            return 0, None
        owners = [owner for write in writes if (owner := self.owner_of(write.key)) is not None]
        return len(owners), owners[0] if owners else None


def refusal(group: GroupName, owner: GroupName, count: int) -> str:
    """Return why a group cannot be applied here, in words."""
    return f"{group} covers keys of {owner}, which is active here: {count} keys refused"
