"""Claims about comparing entries: everything is counted, and not more is kept than fits."""

from __future__ import annotations

from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from replicator.comparison import LISTED_BYTES_MAX, LISTED_KEYS_MAX, Differences, differences
from replicator.verify_messages import Entry

STATES = st.dictionaries(st.binary(max_size=2), st.binary(max_size=1), max_size=8)


async def pages(state: dict[bytes, bytes], size: int = 3) -> AsyncIterator[tuple[Entry, ...]]:
    entries = sorted(state.items())
    for at in range(0, len(entries), size):
        yield tuple(entries[at : at + size])


@given(STATES, STATES)
async def test_every_key_that_differs_is_named_with_how(
    source: dict[bytes, bytes], target: dict[bytes, bytes]
) -> None:
    found = await differences(pages(source), pages(target, size=2))
    assert found.only_source == sorted(source.keys() - target.keys())
    assert found.only_target == sorted(target.keys() - source.keys())
    both = source.keys() & target.keys()
    assert found.different == sorted(key for key in both if source[key] != target[key])
    assert found.counts.differing == found.listed
    assert found.more == 0


async def test_what_is_kept_by_name_is_bounded_and_the_rest_is_counted() -> None:
    source = {f"{number:05d}".encode(): b"" for number in range(LISTED_KEYS_MAX + 10)}
    found = await differences(pages(source, size=100), pages({}))
    assert (found.listed, found.more) == (LISTED_KEYS_MAX, 10)


def test_long_keys_are_bounded_by_their_bytes() -> None:
    found = Differences()
    for number in range(5):
        found.only_at_target(bytes([number]) * (LISTED_BYTES_MAX // 2))
    assert (found.listed, found.more) == (2, 3)
