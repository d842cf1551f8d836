"""The target's side of an outline: looks at what is here, and remembers it until the page comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from meshkit.names import GroupName
from meshkit.ordinals import Revision
from meshkit.store.port import Columns, Store, columns_of
from replicator.messages import Compared, CopyPage, Outline, Verdict
from replicator.outline import (
    NO_DIGEST,
    NO_FINGERPRINT,
    digest_of,
    digests_in,
    fingerprint_of,
    part_digests,
    places_of_parts,
)

EXTRA_KEYS_MAX = 64
"""A stretch that holds so many keys more here than at the source is asked for whole."""


class NotLookedAt(LookupError):
    """A delta came for a stretch that was not compared before."""


@attrs.frozen(kw_only=True)
class Looked:
    """What was told of one stretch: no values, only what the keys were last changed at."""

    revision: Revision
    """Of this etcd when it was looked at."""
    keys: tuple[tuple[bytes, Revision], ...]


class Looking:
    """Compares outlines with what is here. Bounded by what the source may outline at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looked: dict[tuple[GroupName, int, bytes], Looked] = {}

    def reset(self) -> None:
        """The connection ended: nothing is to come."""
        self._looked.clear()

    def forget(self, group: GroupName) -> None:
        """Nothing more is to come of what was asked for of a group before."""
        for key in [key for key in self._looked if key[0] == group]:
            del self._looked[key]

    async def compare(
        self, outline: Outline, *, is_sent_always: Callable[[bytes], bool] | None = None
    ) -> Compared:
        """Return what the source is to be told of a stretch.

        `is_sent_always`: something beside its value is known of the key here, so it is to be sent.

        Raises:
            Unreachable: no member answered.
        """
        limit = outline.keys_count + EXTRA_KEYS_MAX
        here = await self._store.range((outline.start, outline.end), limit=limit)
        if here.more:
            return _answer(outline, Verdict.CROWDED)
        if not here.items and outline.keys_count and await self._is_empty_behind(outline):
            return _answer(outline, Verdict.EMPTY)
        found = columns_of(here.items)
        strange = {key for key, lease in zip(found.keys, found.leases, strict=True) if lease}
        if is_sent_always is not None:
            strange |= {key for key in found.keys if is_sent_always(key)}
        parts, asked = _differing(outline, found, strange)
        keys = tuple([(found.keys[at], found.mod_revisions[at]) for at in asked])
        place = (outline.group, outline.number, outline.start)
        self._looked[place] = Looked(revision=here.revision, keys=keys)
        if parts is None:
            return _answer(outline, Verdict.EQUAL)
        fingerprints = b"".join(
            [
                NO_FINGERPRINT
                if found.keys[at] in strange
                else fingerprint_of(found.keys[at], found.values[at])
                for at in asked
            ]
        )
        return attrs.evolve(
            _answer(outline, Verdict.DIFFERENT), fingerprints=fingerprints, parts=parts
        )

    async def _is_empty_behind(self, outline: Outline) -> bool:
        rest = (outline.end, outline.range_end)
        if outline.end == outline.range_end:
            return True
        return not (await self._store.range(rest, limit=1, keys_only=True)).items

    def take(self, page: CopyPage) -> Looked:
        """Return, and forget, what was found where this delta is to be applied.

        Raises:
            NotLookedAt: nothing was.
        """
        try:
            return self._looked.pop((page.group, page.number, page.start))
        except KeyError:
            raise NotLookedAt(f"{page.start!r} of {page.group}") from None


def _differing(
    outline: Outline, found: Columns, strange: set[bytes]
) -> tuple[tuple[int, ...] | None, Iterable[int]]:
    """Return the parts that differ (None: nothing does), and the places of the keys to tell of."""
    everything = range(len(found.keys))
    if not outline.part_digests:
        is_equal = not strange and len(found.keys) == outline.keys_count
        if is_equal and digest_of(zip(found.keys, found.values, strict=True)) == outline.digest:
            return None, ()
        return (), everything
    own = part_digests(found.keys, found.values, outline.part_starts, by_key=strange)
    told = digests_in(outline.part_digests)
    parts = tuple(
        number for number, digest in enumerate(told) if digest == NO_DIGEST or digest != own[number]
    )
    if not parts:
        return None, ()
    places = places_of_parts(found.keys, outline.part_starts)
    return parts, [at for part in parts for at in everything[places[part] : places[part + 1]]]


def _answer(outline: Outline, verdict: Verdict) -> Compared:
    return Compared(
        number=outline.number,
        group=outline.group,
        start=outline.start,
        verdict=verdict,
    )
