"""Pieces of protobuf's wire format, put together by hand where millions of them are written. Pure.

A message object for each key costs several times what its bytes do, and each message that holds
another copies it. Everything else goes through the generated classes, which read these bytes too.
"""

from __future__ import annotations

_SMALL = tuple(
    bytes((number,)) if number < 0x80 else bytes((number & 0x7F | 0x80, number >> 7))
    for number in range(0x1000)
)
"""Lengths of keys and of most values: looked up in a fraction of the time."""
_NEGATIVE = 1 << 64


def varint(number: int) -> bytes:
    """Return an integer as protobuf has it; a negative one as 64 bits."""
    if 0 <= number < 0x1000:
        return _SMALL[number]
    if 0 <= number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if number < 0:
        number += _NEGATIVE
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def delimited(tag: bytes, content: bytes) -> bytes:
    """Return a field whose content has a length: bytes, a text or a message."""
    return tag + varint(len(content)) + content
