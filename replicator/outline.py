"""What two copies of a stretch of keys tell each other instead of their keys and values. Pure.

The source says what a stretch looks like: a digest. If the target's own looks the same, nothing is
sent. If not, the target says what it holds, a short hash for each key with its value, and gets back
exactly what it lacks, and which of its own it has too many. Digests of parts of a stretch narrow
down which keys that is asked about. It finds accidents, as `digest` does.
"""

from __future__ import annotations

import bisect
import hashlib
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise

Item = tuple[bytes, bytes]
"""A key with its value."""

DIGEST_BYTES = 16
FINGERPRINT_BYTES = 12
"""Of one key with its value: ten million of them are alike by accident once in 10^15 times."""
NO_FINGERPRINT = bytes(FINGERPRINT_BYTES)
"""In place of the fingerprint of a key that must be written again whatever its value."""

PART_KEYS = 16
"""A stretch is told in parts of so many of the source's keys: with one key in a hundred changed,
six parts of seven are as they should be, and none of their keys is looked at by itself."""
NO_DIGEST = bytes(DIGEST_BYTES)
"""In place of the digest of a part whose keys must be looked at by themselves."""

_lengths = struct.Struct(">II").pack


def digest_of(items: Iterable[Item]) -> bytes:
    """Return the digest of these keys with their values, in this order."""
    pieces: list[bytes] = []
    for key, value in items:
        pieces += (_lengths(len(key), len(value)), key, value)
    return hashlib.blake2b(b"".join(pieces), digest_size=DIGEST_BYTES).digest()


def part_starts(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return where the parts of a stretch begin, but the first: that begins with the stretch."""
    return tuple(keys[PART_KEYS::PART_KEYS])


def part_digests(
    keys: Sequence[bytes],
    values: Sequence[bytes],
    starts: Iterable[bytes],
    *,
    by_key: Iterable[bytes] = (),
) -> list[bytes]:
    """Return a digest of what each part holds here; none of one that holds a key of `by_key`."""
    places = places_of_parts(keys, starts)
    found = [_digest_of_part(keys[start:end], values[start:end]) for start, end in pairwise(places)]
    for key in by_key:
        found[bisect.bisect_right(places, bisect.bisect_left(keys, key)) - 1] = NO_DIGEST
    return found


def items_in_parts(items: Sequence[Item], parts: Iterable[int]) -> list[Item]:
    """Return the items of some parts, as the source has cut them.

    Raises:
        ValueError: there is no such part.
    """
    found: list[Item] = []
    for part in parts:
        start = part * PART_KEYS
        if start and start >= len(items):
            raise ValueError(f"{len(items)} keys have no part {part}")
        found += items[start : start + PART_KEYS]
    return found


def places_of_parts(keys: Sequence[bytes], starts: Iterable[bytes]) -> list[int]:
    """Return the place of each part's first key, and one past the last of all."""
    return [0, *[bisect.bisect_left(keys, start) for start in starts], len(keys)]


def _digest_of_part(keys: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    lengths = struct.pack(f">{2 * len(keys)}I", *map(len, keys), *map(len, values))
    # Processors have instructions for this one, and every value of a copy goes through it.
    return hashlib.sha256(b"".join((lengths, *keys, *values))).digest()[:DIGEST_BYTES]


def digests_in(digests: bytes) -> list[bytes]:
    """Return one digest after the other.

    Raises:
        ValueError: these are not digests.
    """
    if len(digests) % DIGEST_BYTES:
        raise ValueError(f"{len(digests)} bytes are not a number of digests")
    return [digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)]


def fingerprint_of(key: bytes, value: bytes) -> bytes:
    """Return the short hash of one key with its value."""
    lengths = _lengths(len(key), len(value))
    return hashlib.blake2b(lengths + key + value, digest_size=FINGERPRINT_BYTES).digest()


def fingerprints_in(fingerprints: bytes) -> Iterator[bytes]:
    """Yield one fingerprint after the other.

    Raises:
        ValueError: these are not fingerprints.
    """
    if len(fingerprints) % FINGERPRINT_BYTES:
        raise ValueError(f"{len(fingerprints)} bytes are not a number of fingerprints")
    for start in range(0, len(fingerprints), FINGERPRINT_BYTES):
        yield fingerprints[start : start + FINGERPRINT_BYTES]


def difference_of(
    items: Iterable[Item], fingerprints: bytes, *, always: Container[bytes] = ()
) -> tuple[tuple[Item, ...], tuple[int, ...]]:
    """Return which items the fingerprints do not show, and the places of those that show no item.

    The keys in `always` count as not shown whatever the fingerprints say.

    Raises:
        ValueError: these are not fingerprints.
    """
    places: dict[bytes, int] = {}
    strange: list[int] = []
    for place, fingerprint in enumerate(fingerprints_in(fingerprints)):
        if fingerprint == NO_FINGERPRINT:
            strange.append(place)
        else:
            places[fingerprint] = place
    missing = tuple(
        item
        for item in items
        if item[0] in always or places.pop(fingerprint_of(*item), None) is None
    )
    return missing, tuple(sorted((*strange, *places.values())))
