"""What a spool file holds: a header and blocks of revisions, each with a checksum. Pure.

A file can be read by itself: its header has the segments as they were where the file begins, and
blocks carry all that the fold over the log depends on (`essence`), and nothing else. Blocks state
the range of revisions they cover, so that a gap cannot be overlooked.
"""

from __future__ import annotations

import struct
import zlib
from typing import ClassVar

import attrs
import zstandard

from meshkit.codec import Stored, decode, encode
from meshkit.errors import CorruptRecord
from meshkit.keys import ROOT, RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, LeaseId, Revision, Sequence
from meshkit.store.port import Change, RevisionChanges
from meshkit.store.txn import KeyValue
from replicator.segments import Segment, SegmentMap

MAGIC = b"meshspool1\n"

FRAME = struct.Struct(">II")
"""Before each payload: its length and its CRC-32."""
_BLOCK = struct.Struct(">QQI")
_REVISION = struct.Struct(">QI")
_CHANGE = struct.Struct(">BIIQQQ")
_PUT, _DELETE = 0, 1


class BlockDamaged(CorruptRecord):
    """A block of the spool is not what was written: its checksum or its shape is wrong."""

    code = "block_damaged"


@attrs.frozen(kw_only=True)
class SpoolHeader(Stored):
    """Begins a spool file: whose log it is, after which revision it goes on, and the segments."""

    SCHEMA: ClassVar[str] = "spool-header"

    cluster: ClusterName
    incarnation: Incarnation
    after: Sequence
    segments: tuple[Segment, ...] = ()


@attrs.frozen(kw_only=True)
class Block:
    """Everything of the log in `(after, through]`, as far as the fold depends on it."""

    after: Sequence
    through: Sequence
    revisions: tuple[RevisionChanges, ...] = ()

    def past(self, position: Sequence) -> Block:
        """Return what of this block comes after `position`, which lies in it."""
        assert self.after <= position <= self.through
        kept = tuple(changes for changes in self.revisions if changes.revision > position)
        return Block(after=position, through=self.through, revisions=kept)


def essence(changes: RevisionChanges, segments: SegmentMap) -> RevisionChanges | None:
    """Fold a revision in, and return what of it the fold depends on; None if it is nothing.

    Of an apply only the marks are left, and the name of a checkpoint, which says that it was one.
    Changes under a scope stay though its segment is closed: they make it dirty, and they are what
    is looked for after an emergency.
    """
    segments.advance(changes)
    applied = changes.under(RegionalKeys.checkpoints)
    marks = changes.under(RegionalKeys.segments)
    if applied:
        kept = [*marks, _bare(applied[0])] if marks else []
    else:
        kept = [
            change
            for change in changes.changes
            if change.key.startswith(RegionalKeys.segments)
            or (not change.key.startswith(ROOT) and segments.owner_of(change.key) is not None)
        ]
    return RevisionChanges(revision=changes.revision, changes=tuple(kept)) if kept else None


def _bare(change: Change) -> Change:
    return Change(item=attrs.evolve(change.item, value=b""), is_delete=change.is_delete)


# --- bytes --------------------------------------------------------------------------------------


def framed(payload: bytes) -> bytes:
    """Return a payload with its length and checksum before it."""
    return FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def header_bytes(header: SpoolHeader) -> bytes:
    """Return how a file begins."""
    return MAGIC + framed(encode(header))


def header_of(payload: bytes) -> SpoolHeader:
    """Return the header in a payload.

    Raises:
        CorruptRecord: it is none.
    """
    return decode(SpoolHeader, payload)


def block_bytes(block: Block) -> bytes:
    """Return a block as it is appended to a file."""
    parts = [_BLOCK.pack(block.after, block.through, len(block.revisions))]
    for changes in block.revisions:
        parts.append(_REVISION.pack(changes.revision, len(changes.changes)))
        for change in changes.changes:
            item = change.item
            parts.append(
                _CHANGE.pack(
                    _DELETE if change.is_delete else _PUT,
                    len(item.key),
                    len(item.value),
                    item.lease,
                    item.create_revision,
                    item.version,
                )
            )
            parts += (item.key, item.value)
    return framed(zstandard.ZstdCompressor(level=1).compress(b"".join(parts)))


def range_of(payload: bytes) -> tuple[Sequence, Sequence]:
    """Return `(after, through)` of the block in a payload.

    Raises:
        BlockDamaged: it is none.
    """
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(payload)
        after, through, _ = _BLOCK.unpack(reader.read(_BLOCK.size))
    except (zstandard.ZstdError, struct.error) as error:
        raise BlockDamaged(f"a block cannot be read: {error}") from error
    return Sequence(after), Sequence(through)


def block_of(payload: bytes) -> Block:
    """Return the block in a payload whose checksum is right.

    Raises:
        BlockDamaged: it is none.
    """
    try:
        body = zstandard.ZstdDecompressor().decompress(payload)
        after, through, count = _BLOCK.unpack_from(body)
        at = _BLOCK.size
        revisions = []
        for _ in range(count):
            changes, at = _revision_of(body, at)
            revisions.append(changes)
    except (zstandard.ZstdError, struct.error) as error:
        raise BlockDamaged(f"a block cannot be read: {error}") from error
    if at != len(body):
        raise BlockDamaged("a block is longer than what is in it")
    return Block(after=Sequence(after), through=Sequence(through), revisions=tuple(revisions))


def _revision_of(body: bytes, at: int) -> tuple[RevisionChanges, int]:
    number, count = _REVISION.unpack_from(body, at)
    at += _REVISION.size
    changes = []
    for _ in range(count):
        kind, key_size, value_size, lease, create_revision, version = _CHANGE.unpack_from(body, at)
        at += _CHANGE.size
        item = KeyValue(
            key=body[at : at + key_size],
            value=body[at + key_size : at + key_size + value_size],
            mod_revision=Revision(number),
            create_revision=Revision(create_revision),
            version=version,
            lease=LeaseId(lease),
        )
        at += key_size + value_size
        changes.append(Change(item=item, is_delete=kind == _DELETE))
    return RevisionChanges(revision=Revision(number), changes=tuple(changes)), at
