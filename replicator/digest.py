"""Digests of a state: equal exactly when the states are, and telling where they are not. Pure.

A key falls into one of 4,096 buckets by its hash. A bucket is the exclusive or of a 128-bit hash of
each key with its value, so the order in which keys are added does not matter, and parts can be
digested apart and merged. It finds accidents, not somebody who builds collisions on purpose.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable

BUCKETS_COUNT = 4096
HASH_BYTES = 16


def entry_hash(key: bytes, value: bytes) -> bytes:
    """Return the hash of one key with its value; which is which is part of it."""
    made = hashlib.blake2b(len(key).to_bytes(4, "big"), digest_size=HASH_BYTES)
    made.update(key)
    made.update(value)
    return made.digest()


def bucket_of(key: bytes, buckets_count: int = BUCKETS_COUNT) -> int:
    """Return the number of the bucket that a key falls into, whatever its value."""
    return zlib.crc32(key) % buckets_count


class Digest:
    """The digest of a set of keys with their values. Each key is added once."""

    def __init__(self, buckets_count: int = BUCKETS_COUNT) -> None:
        assert buckets_count > 0
        self.keys_count = 0
        self._buckets = [0] * buckets_count

    @classmethod
    def of(
        cls, items: Iterable[tuple[bytes, bytes]], *, buckets_count: int = BUCKETS_COUNT
    ) -> Digest:
        """Return the digest of these keys with their values."""
        made = cls(buckets_count)
        for key, value in items:
            made.add(key, value)
        return made

    @classmethod
    def from_bytes(cls, raw: bytes, *, keys_count: int) -> Digest:
        """Return the digest that `to_bytes` was asked of.

        Raises:
            ValueError: these are not the bytes of a digest.
        """
        if not raw or len(raw) % HASH_BYTES:
            raise ValueError(f"{len(raw)} bytes are not a number of hashes")
        made = cls(len(raw) // HASH_BYTES)
        starts = range(0, len(raw), HASH_BYTES)
        made._buckets = [int.from_bytes(raw[at : at + HASH_BYTES], "big") for at in starts]
        made.keys_count = keys_count
        return made

    def add(self, key: bytes, value: bytes) -> None:
        """Take in one key with its value."""
        number = bucket_of(key, len(self._buckets))
        self._buckets[number] ^= int.from_bytes(entry_hash(key, value), "big")
        self.keys_count += 1

    def merge(self, other: Digest) -> None:
        """Take in a digest of other keys; the keys of both must differ."""
        assert len(self._buckets) == len(other._buckets), "digests of one width only"
        pairs = zip(self._buckets, other._buckets, strict=True)
        self._buckets = [one ^ another for one, another in pairs]
        self.keys_count += other.keys_count

    def differing(self, other: Digest) -> frozenset[int]:
        """Return the buckets in which the two states differ; none means that they are equal.

        Raises:
            ValueError: the digests are not of the same width.
        """
        if len(self._buckets) != len(other._buckets):
            raise ValueError(
                f"a digest of {len(other._buckets)} buckets beside one of {len(self._buckets)}"
            )
        pairs = enumerate(zip(self._buckets, other._buckets, strict=True))
        return frozenset(number for number, (one, another) in pairs if one != another)

    def to_bytes(self) -> bytes:
        """Return the buckets as bytes, in their order."""
        return b"".join(bucket.to_bytes(HASH_BYTES, "big") for bucket in self._buckets)

    def __eq__(self, other: object) -> bool:
        """Return whether both are digests of the same state."""
        if not isinstance(other, Digest):
            return NotImplemented
        return self._buckets == other._buckets and self.keys_count == other.keys_count

    __hash__ = None  # type: ignore[assignment]
