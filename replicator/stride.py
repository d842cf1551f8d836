"""Reads a range in pages that etcd need not count the rest of the range for.

etcd counts every key of the range that a read names, however few of them it returns: a million
keys read by open-ended pages are counted a thousand times over. So each read ends where the keys
that share some first bytes end, and how many bytes those are follows from what the last one found.
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from collections.abc import Sequence as Ordered

import attrs

from meshkit.ordinals import Revision
from meshkit.store.port import Store, columns_of
from meshkit.store.txn import KeyRange, KeyValue, prefix_range
from replicator.limits import DEFAULT_LIMITS, Limits

FIRST_READ_KEYS = 32
"""How many keys are read before it is known how large they are."""
COUNTED_KEYS_MAX = 16_000
"""A read that made etcd count more than this is followed by one of fewer keys."""
SPARSE_KEYS = 500
"""A stretch that held fewer was too short: the next is one byte wider."""


@attrs.define(kw_only=True)
class Stride:
    """Where the next read begins and ends. Pure.

    Invariant: `at` only moves on, by what was read, so the reads cover the range without a gap.
    """

    at: bytes
    end: bytes
    width: int = 0
    """The keys read next share so many bytes with `at`; 0: all to the end."""
    _counted: int = 0
    """How many keys the stretch in hand held when it was begun."""
    _climbed: bool = False
    """The stretch in hand is the rest of a wider one, whose own successor was not tried yet."""

    @property
    def is_over(self) -> bool:
        """Whether the whole range was read."""
        return self.at >= self.end

    @property
    def stop(self) -> bytes:
        """Where the next read ends."""
        if self.width == 0:
            return self.end
        _, stop = prefix_range(self.at[: self.width])
        return self.end if stop == b"\x00" else min(self.end, stop)

    def on_read(self, keys: Ordered[bytes], *, count: int, more: bool) -> None:
        """Go on after these keys; `more` are left in the stretch, which held `count` in all."""
        self._counted = max(self._counted, count)
        if not more:
            self._leave(self.stop)
            return
        self.at = keys[-1] + b"\x00"
        if count > COUNTED_KEYS_MAX:
            self.width = max(self.width, _common(keys[0], keys[-1]))
            self._counted = 0
            self._climbed = False

    def _leave(self, stop: bytes) -> None:
        """Go on behind the stretch: to its neighbour of the same width, or the rest of a wider."""
        self.at = stop
        is_sparse = self._counted < SPARSE_KEYS and not self._climbed
        self.width = max(0, min(self.width, len(stop)) - is_sparse)
        self._climbed = is_sparse
        self._counted = 0


def _common(one: bytes, other: bytes) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


@attrs.frozen(kw_only=True)
class Stretch:
    """Everything that a range holds in `[start, end)`."""

    start: bytes
    end: bytes
    items: Ordered[KeyValue]


async def stretches(
    store: Store,
    key_range: KeyRange,
    *,
    revision: Revision,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[Stretch]:
    """Yield a range as of `revision` in bounded stretches, in key order and without a gap.

    Only the last one may be empty.

    Raises:
        Compacted: `revision` is no longer there.
        Unreachable: no member answered.
    """
    stride = Stride(at=key_range[0], end=key_range[1])
    start, limit = stride.at, FIRST_READ_KEYS
    while not stride.is_over:
        result = await store.range((stride.at, stride.stop), revision=revision, limit=limit)
        items, is_short = within(result.items, limits.page_bytes_max)
        stride.on_read(
            columns_of(items).keys,
            count=result.count,
            more=bool(items) and (result.more or is_short),
        )
        if items or stride.is_over:
            yield Stretch(start=start, end=stride.at, items=items)
            start = stride.at
        limit = _next_limit(items, limit, limits)


def within(items: Ordered[KeyValue], bytes_max: int) -> tuple[Ordered[KeyValue], bool]:
    """Return as many items as fit (at least one), and whether some were left out."""
    sizes = _sizes(items)
    if sum(sizes) <= bytes_max:
        return items, False
    total = 0
    for index, size in enumerate(sizes):
        total += size
        if total > bytes_max and index:
            return items[:index], True
    return items, False


def _sizes(items: Ordered[KeyValue]) -> list[int]:
    found = columns_of(items)
    return [*map(operator.add, map(len, found.keys), map(len, found.values))]


def _next_limit(items: Ordered[KeyValue], before: int, limits: Limits) -> int:
    if not items:
        return before
    size = sum(_sizes(items))
    fitting = max(1, limits.page_bytes_max * len(items) // max(1, size))
    return min(limits.page_keys_max, fitting, before * 4)
