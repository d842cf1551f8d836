"""A copy, read at the source in bounded pages at one revision."""

from __future__ import annotations

from collections.abc import AsyncIterator

from meshkit.ordinals import Revision, Sequence
from meshkit.store.port import Store, columns_of
from meshkit.store.txn import prefix_range
from replicator.lease_terms import LeaseTerms
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.messages import CopyPage, Join
from replicator.stride import stretches


async def pages(
    store: Store,
    join: Join,
    *,
    prefixes: tuple[bytes, ...],
    cut: Sequence,
    cursor: bytes | None,
    terms: LeaseTerms,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[CopyPage]:
    """Yield the pages of a copy at `cut`, from `cursor` on (None: from the beginning).

    A page never reaches beyond one prefix. The last one says so; a scope without any prefix is
    one empty page.

    Raises:
        Compacted: `cut` is no longer there.
    """
    ranges = [r for r in map(prefix_range, sorted(prefixes)) if cursor is None or cursor < r[1]]
    if not ranges:
        at = cursor or b""
        yield CopyPage(
            group=join.group,
            number=join.number,
            cut=cut,
            start=at,
            end=at,
            items=(),
            is_first=cursor is None,
            is_final=True,
        )
        return
    is_first = cursor is None
    for start, end in ranges:
        rest = (start if cursor is None else max(start, cursor), end)
        async for stretch in stretches(store, rest, revision=Revision(cut), limits=limits):
            found = columns_of(stretch.items)
            leased = {
                key: lease for key, lease in zip(found.keys, found.leases, strict=True) if lease
            }
            yield CopyPage(
                group=join.group,
                number=join.number,
                cut=cut,
                start=stretch.start,
                end=stretch.end,
                items=tuple(zip(found.keys, found.values, strict=True)),
                leased=leased,
                leases=await terms.of(leased.values()),
                is_first=is_first,
                is_final=stretch.end == end == ranges[-1][1],
            )
            is_first = False


async def keys_in(
    store: Store, prefixes: tuple[bytes, ...], *, cut: Sequence, cursor: bytes | None
) -> tuple[int, int]:
    """Return how many keys there are at `cut`, and how many of them lie before `cursor`.

    Raises:
        Compacted: `cut` is no longer there.
    """
    total = before = 0
    for start, end in map(prefix_range, prefixes):
        found = await store.range((start, end), revision=Revision(cut), count_only=True)
        total += found.count
        if cursor is not None and cursor > start:
            passed = (start, min(cursor, end))
            result = await store.range(passed, revision=Revision(cut), count_only=True)
            before += result.count
    return total, before
