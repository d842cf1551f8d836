"""Prefixes of keys. Pure."""

from __future__ import annotations


def overlaps(one: bytes, other: bytes) -> bool:
    """Return whether some key could start with both prefixes."""
    return one.startswith(other) or other.startswith(one)
