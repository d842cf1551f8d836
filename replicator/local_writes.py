"""When each group's keys were last changed here by something other than an apply. Pure.

Thousands of groups that become passive at once each ask whether anything was written past their
cut. Reading the region's history for each of them would read all of it as often as there are
groups; a fold over the one watch that is there anyway answers all of them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import attrs

from meshkit.keys import ROOT
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.prefixes import overlaps
from meshkit.store.port import RevisionChanges


class PrefixOwners:
    """Which group a key belongs to."""

    def __init__(self, prefixes: Mapping[bytes, GroupName] = MappingProxyType({})) -> None:
        self.prefixes = prefixes
        self._starts = sorted(prefixes)
        pairs = zip(self._starts, self._starts[1:], strict=False)
        self._is_nested = any(overlaps(one, other) for one, other in pairs)

    def owner_of(self, key: bytes) -> GroupName | None:
        """Return the group that has a prefix of the key, if any; of several the first."""
        if self._is_nested:
            found = next((p for p in self.prefixes if key.startswith(p)), None)
            return None if found is None else self.prefixes[found]
        # The greatest prefix not above the key: if any covers the key it is this one.
        at = bisect.bisect_right(self._starts, key) - 1
        if at >= 0 and key.startswith(self._starts[at]):
            return self.prefixes[self._starts[at]]
        return None


@attrs.define
class _Seen:
    """What was seen of one group's keys since `begun`."""

    prefixes: frozenset[bytes]
    begun: Revision
    changed: Revision = ABSENT
    deleted: Revision = ABSENT


class LocalWrites:
    """A fold over the region's history from `seen` on.

    Invariant: of each known group, every change past its `begun` and up to `seen` is counted.
    """

    def __init__(self, seen: Revision = ABSENT) -> None:
        self.seen = seen
        self._groups: dict[GroupName, _Seen] = {}

    def set_groups(self, prefixes: Mapping[GroupName, Iterable[bytes]]) -> None:
        """Say which keys belong to which group, from now on; of new ones nothing was seen yet."""
        before, self._groups = self._groups, {}
        for group, own in prefixes.items():
            known, scope = before.get(group), frozenset(own)
            is_same = known is not None and known.prefixes == scope
            self._groups[group] = known if known and is_same else _Seen(scope, self.seen)

    def take(self, item: RevisionChanges, owners: PrefixOwners, *, is_apply: bool) -> None:
        """Take in one revision."""
        self.seen = max(self.seen, item.revision)
        if is_apply:
            return
        for change in item.changes:
            if change.key.startswith(ROOT):
                continue
            owner = owners.owner_of(change.key)
            seen = self._groups.get(owner) if owner is not None else None
            if seen is not None:
                seen.changed = item.revision
                if change.is_delete:
                    seen.deleted = item.revision

    def untouched(
        self, group: GroupName, prefixes: Iterable[bytes], after: Revision, *, deletes: bool = False
    ) -> bool:
        """Return whether it is certain that nothing was changed in `(after, seen]`, or deleted."""
        own = self._groups.get(group)
        if own is None or after < own.begun or not own.prefixes.issuperset(prefixes):
            return False
        return (own.deleted if deletes else own.changed) <= after
