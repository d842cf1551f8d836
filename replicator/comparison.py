"""Two states as entries in key order, compared one by one, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

import attrs

from meshkit.verification import Counts
from replicator.verify_messages import Entry

LISTED_KEYS_MAX = 1_000
LISTED_BYTES_MAX = 256 * 1024
"""Of keys that are kept by name; the rest is only counted."""


@attrs.define(kw_only=True)
class Differences:
    """What was found, with as many keys as fit: bounded whatever was found."""

    only_source: list[bytes] = attrs.field(factory=list)
    only_target: list[bytes] = attrs.field(factory=list)
    different: list[bytes] = attrs.field(factory=list)
    counts: Counts = attrs.field(factory=Counts)
    _listed_bytes: int = 0

    @property
    def listed(self) -> int:
        """How many keys are kept by name."""
        return len(self.only_source) + len(self.only_target) + len(self.different)

    @property
    def more(self) -> int:
        """How many differ that are not kept by name."""
        return self.counts.differing - self.listed

    def only_at_source(self, key: bytes) -> None:
        """Note a key that the target lacks."""
        self.counts = attrs.evolve(self.counts, only_source=self.counts.only_source + 1)
        self._list(self.only_source, key)

    def only_at_target(self, key: bytes) -> None:
        """Note a key that the source does not have."""
        self.counts = attrs.evolve(self.counts, only_target=self.counts.only_target + 1)
        self._list(self.only_target, key)

    def differs(self, key: bytes) -> None:
        """Note a key that has different values."""
        self.counts = attrs.evolve(self.counts, different=self.counts.different + 1)
        self._list(self.different, key)

    def _list(self, keys: list[bytes], key: bytes) -> None:
        is_room = self._listed_bytes + len(key) <= LISTED_BYTES_MAX
        if is_room and self.listed < LISTED_KEYS_MAX:
            keys.append(key)
            self._listed_bytes += len(key)


async def differences(
    source: AsyncIterable[tuple[Entry, ...]], target: AsyncIterable[tuple[Entry, ...]]
) -> Differences:
    """Return how two states differ; both come in key order, page by page."""
    found = Differences()
    theirs, ours = _one_by_one(source), _one_by_one(target)
    there, here = await anext(theirs, None), await anext(ours, None)
    while there is not None or here is not None:
        if here is None or (there is not None and there[0] < here[0]):
            assert there is not None
            found.only_at_source(there[0])
            there = await anext(theirs, None)
        elif there is None or here[0] < there[0]:
            found.only_at_target(here[0])
            here = await anext(ours, None)
        else:
            if there[1] != here[1]:
                found.differs(here[0])
            there, here = await anext(theirs, None), await anext(ours, None)
    return found


async def _one_by_one(pages: AsyncIterable[tuple[Entry, ...]]) -> AsyncIterator[Entry]:
    async for page in pages:
        for entry in page:
            yield entry
