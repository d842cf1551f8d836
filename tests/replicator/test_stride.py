"""Reading a range in pages: nothing is missed, and etcd is not made to count it again and again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit.clock import ManualClock
from meshkit.ordinals import Revision
from meshkit.store.memory import MemoryStore
from meshkit.store.port import RangeResult
from meshkit.store.txn import KeyRange, Put, Txn, prefix_range
from replicator.limits import Limits
from replicator.stride import COUNTED_KEYS_MAX, Stride, stretches
from replicator.transaction import nested

SMALL = Limits(page_keys_max=3, page_bytes_max=60)


class Counting(MemoryStore):
    """Notes how many keys each read made the store count."""

    counted: list[int]

    async def range(self, key_range: KeyRange, **options: object) -> RangeResult:
        result = await super().range(key_range, **options)  # type: ignore[arg-type]
        self.counted.append(result.count)
        return result


async def filled(keys: list[bytes]) -> Counting:
    store = Counting(clock=ManualClock())
    store.server.request_bytes_max = 10**9
    store.counted = []
    for start in range(0, len(keys), 3000):
        puts = tuple(Put(key, b"v") for key in keys[start : start + 3000])
        await store.commit(Txn(operations=nested(puts)))
    return store


async def read(store: Counting, limits: Limits) -> list[bytes]:
    revision = Revision(store.server.history.revision)
    start, end = at, _ = prefix_range(b"/g/")
    found: list[bytes] = []
    async for stretch in stretches(store, (start, end), revision=revision, limits=limits):
        assert stretch.start == at, "a gap, or twice the same"
        assert len(stretch.items) <= limits.page_keys_max or len(stretch.items) <= 32
        assert all(stretch.start <= item.key < stretch.end for item in stretch.items)
        found += [item.key for item in stretch.items]
        at = stretch.end
    assert at == end
    return found


@given(st.sets(st.binary(max_size=4), max_size=80))
@settings(max_examples=60, deadline=None)
async def test_every_key_is_read_once_whatever_the_keys_look_like(tails: set[bytes]) -> None:
    keys = sorted(b"/g/" + tail for tail in tails)

    assert await read(await filled(keys), SMALL) == keys


@pytest.mark.parametrize("shape", ["digits", "hex", "nested", "one long prefix"])
async def test_a_large_range_is_not_counted_over_and_over(shape: str) -> None:
    """With open-ended pages of 1,000 keys etcd would count 800,000 keys to return 40,000."""
    draw = random.Random(7)
    count = 20_000
    keys = {
        "digits": lambda n: f"/g/{n:012d}",
        "hex": lambda _: f"/g/{draw.getrandbits(64):016x}",
        "nested": lambda n: f"/g/tenant-{n % 7}/{n % 431:03d}/items/{n}",
        "one long prefix": lambda n: f"/g/{'x' * 60}/{n}",
    }[shape]
    made = sorted({keys(n).encode() for n in range(count)})
    store = await filled(made)

    found = await read(store, Limits(page_keys_max=1000))

    assert found == made
    assert sum(store.counted) < 12 * count
    assert len(store.counted) < 10 * count / 1000


def test_a_read_ends_where_the_keys_that_share_its_first_bytes_end() -> None:
    stride = Stride(at=b"/g/", end=b"/g0")
    stride.on_read((b"/g/a00", b"/g/a31"), count=COUNTED_KEYS_MAX + 1, more=True)

    assert (stride.at, stride.stop) == (b"/g/a31\x00", b"/g/b")
