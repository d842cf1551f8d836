"""The target's side of an outline: looks at what is here, and remembers it until the page comes."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from meshkit.names import GroupName
from meshkit.ordinals import Revision
from meshkit.store.port import Store
from meshkit.store.txn import KeyValue
from replicator.messages import Compared, CopyPage, Outline, Verdict
from replicator.outline import NO_FINGERPRINT, digest_of, fingerprint_of

EXTRA_KEYS_MAX = 64
"""A stretch that holds so many keys more here than at the source is asked for whole."""


class NotLookedAt(LookupError):
    """A delta came for a stretch that was not compared before."""


@attrs.frozen(kw_only=True)
class Looked:
    """What was found here in one stretch: no values, only what the keys were last changed at."""

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
        self, outline: Outline, *, is_sent_always: Callable[[bytes], bool] = lambda _: False
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
        keys = tuple((item.key, item.mod_revision) for item in here.items)
        place = (outline.group, outline.number, outline.start)
        self._looked[place] = Looked(revision=here.revision, keys=keys)
        strange = {item.key for item in here.items if item.lease or is_sent_always(item.key)}
        if not strange and _is_as_outlined(here.items, outline):
            return _answer(outline, Verdict.EQUAL)
        fingerprints = b"".join(
            NO_FINGERPRINT if item.key in strange else fingerprint_of(item.key, item.value)
            for item in here.items
        )
        return _answer(outline, Verdict.DIFFERENT, fingerprints)

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


def _is_as_outlined(items: tuple[KeyValue, ...], outline: Outline) -> bool:
    if len(items) != outline.keys_count:
        return False
    return digest_of((item.key, item.value) for item in items) == outline.digest


def _answer(outline: Outline, verdict: Verdict, fingerprints: bytes = b"") -> Compared:
    return Compared(
        number=outline.number,
        group=outline.group,
        start=outline.start,
        verdict=verdict,
        fingerprints=fingerprints,
    )
