"""Whether a copy may just overwrite what it finds: what was expected there, and what was not.

A key that differs from the source is expected to differ if what it holds is an older state of the
same lineage. What it was written by shows in this etcd's own history: all keys of a transaction
share a revision, so an apply is recognised by the checkpoint that moved with it. Where history does
not reach back so far, the basis of the copy decides (ADR 14).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import attrs

from meshkit.errors import Compacted
from meshkit.keys import RegionalKeys
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, Epoch, Revision
from meshkit.regional import CopyBasis
from meshkit.store.port import Store
from meshkit.store.txn import prefix_range
from replicator.region_state import JoinKey, OwnSpan, RegionState

READS_MAX = 16
"""So many revisions are looked up side by side."""
KNOWN_MAX = 10_000
"""So many are remembered."""


class Origins:
    """Tells which revisions of this etcd were applies, as far as its history reaches."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Revision, bool] = {}
        self._gone_to = ABSENT

    async def look_up(self, revisions: set[Revision]) -> dict[Revision, bool]:
        """Return of each revision whether it was an apply; those that are gone are missing.

        Raises:
            Unreachable: no member answered.
        """
        if len(self._known) > KNOWN_MAX:
            self._known.clear()
        asked = sorted(revisions - self._known.keys(), reverse=True)
        for start in range(0, len(asked), READS_MAX):
            some = [r for r in asked[start : start + READS_MAX] if r > self._gone_to]
            await asyncio.gather(*(self._read(revision) for revision in some))
        return {r: self._known[r] for r in revisions if r in self._known}

    async def _read(self, revision: Revision) -> None:
        moved_after = Revision(revision - 1)
        try:
            moved = await self._store.range(
                prefix_range(RegionalKeys.checkpoints),
                revision=revision,
                modified_after=moved_after,
                keys_only=True,
            )
        except Compacted:
            self._gone_to = max(self._gone_to, revision)
        else:
            self._known[revision] = bool(moved.items)


@attrs.frozen(kw_only=True)
class Expectation:
    """What one copy expects of the keys it finds, in one region. Pure."""

    group: GroupName
    epoch: Epoch
    basis: CopyBasis
    begun: Revision
    """When the group fell out of step: what was applied later came by this copy."""
    own: tuple[tuple[Epoch, OwnSpan], ...] = ()
    """Where this cluster's own log was the group's, by epoch."""

    @classmethod
    def of(cls, state: RegionState, key: JoinKey) -> Expectation:
        """Return what the copy of a group that is out of step expects here."""
        spans = ((e, span) for (group, e), span in state.spans.items() if group == key[1])
        return cls(
            group=key[1],
            basis=state.joins[key].basis,
            begun=state.begun(key),
            epoch=state.joins[key].epoch,
            own=tuple(sorted(spans, key=lambda span: span[0])),
        )

    def is_expected(self, revision: Revision, *, was_apply: bool | None) -> bool:
        """Return whether a key last changed at `revision` may be overwritten.

        `was_apply` is None if nobody can tell any more.
        """
        if self.basis is CopyBasis.STRANGE:
            return was_apply is True and revision > self.begun
        if was_apply is not None:
            return was_apply or self._is_own(revision)
        return self.basis is CopyBasis.OLDER or self._is_own(revision)

    def _is_own(self, revision: Revision) -> bool:
        return any(span.holds(revision) for _, span in self.own)

    def epoch_of(self, revision: Revision) -> Epoch:
        """Return the epoch in which a key was changed at `revision`, as far as can be told."""
        begun = [epoch for epoch, span in self.own if 0 < span.opened <= revision]
        return begun[-1] if begun else self.epoch

    def needs_origin(self, revision: Revision) -> bool:
        """Return whether it matters what wrote a key last changed at `revision`."""
        is_strange = self.basis is CopyBasis.STRANGE
        return revision > self.begun if is_strange else not self._is_own(revision)


async def unexpected(
    expectation: Expectation, found: Mapping[bytes, Revision], origins: Origins
) -> frozenset[bytes]:
    """Return the keys that hold something that the copy may not just overwrite."""
    asked = {revision for revision in found.values() if expectation.needs_origin(revision)}
    known = await origins.look_up(asked)
    return frozenset(
        key
        for key, revision in found.items()
        if not expectation.is_expected(revision, was_apply=known.get(revision))
    )
