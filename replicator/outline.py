"""What two copies of a stretch of keys tell each other instead of their keys and values. Pure.

The source says what a stretch looks like: a digest. If the target's own looks the same, nothing is
sent. If not, the target says what it holds, a short hash for each key with its value, and gets back
exactly what it lacks, and which of its own it has too many. It finds accidents, as `digest` does.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Container, Iterable, Iterator

Item = tuple[bytes, bytes]
"""A key with its value."""

DIGEST_BYTES = 16
FINGERPRINT_BYTES = 12
"""Of one key with its value: ten million of them are alike by accident once in 10^15 times."""
NO_FINGERPRINT = bytes(FINGERPRINT_BYTES)
"""In place of the fingerprint of a key that must be written again whatever its value."""

_lengths = struct.Struct(">II").pack


def digest_of(items: Iterable[Item]) -> bytes:
    """Return the digest of these keys with their values, in this order."""
    pieces: list[bytes] = []
    for key, value in items:
        pieces += (_lengths(len(key), len(value)), key, value)
    return hashlib.blake2b(b"".join(pieces), digest_size=DIGEST_BYTES).digest()


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
