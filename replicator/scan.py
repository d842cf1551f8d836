"""Reads a group's scope at one revision, in bounded pages and in key order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from collections.abc import Sequence as Ordered

from meshkit.ordinals import Revision
from meshkit.store.port import Store, columns_of
from meshkit.store.txn import KeyValue, prefix_range
from replicator.digest import Digest, bucket_of, entry_hash
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.stride import stretches
from replicator.verify_messages import Entry


async def scan(
    store: Store,
    prefixes: Iterable[bytes],
    revision: Revision,
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[Ordered[KeyValue]]:
    """Yield every key under the prefixes as of `revision`; no prefix begins with another.

    Raises:
        Compacted: `revision` is no longer there.
        Unreachable: no member answered.
    """
    for key_range in map(prefix_range, sorted(prefixes)):
        async for stretch in stretches(store, key_range, revision=revision, limits=limits):
            if stretch.items:
                yield stretch.items


async def digest_at(
    store: Store,
    prefixes: Iterable[bytes],
    revision: Revision,
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> Digest:
    """Return the digest of everything under the prefixes as of `revision`."""
    digest = Digest()
    async for items in scan(store, prefixes, revision, limits=limits):
        found = columns_of(items)
        for key, value in zip(found.keys, found.values, strict=True):
            digest.add(key, value)
    return digest


async def entries_at(
    store: Store,
    prefixes: Iterable[bytes],
    revision: Revision,
    buckets: frozenset[int],
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[tuple[Entry, ...]]:
    """Yield the entries of some buckets as of `revision`, page by page and in key order."""
    async for items in scan(store, prefixes, revision, limits=limits):
        wanted = [item for item in items if bucket_of(item.key) in buckets]
        if wanted:
            yield tuple((item.key, entry_hash(item.key, item.value)) for item in wanted)
