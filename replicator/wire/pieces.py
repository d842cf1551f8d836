"""The parts of messages as protobuf and back: records, marks, payloads, segments. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import zstandard

from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, LeaseId, Revision, Sequence, Token
from meshkit.protobuf_bytes import delimited, varint
from meshkit.store.txn import Delete, Put
from replicator.limits import DEFAULT_LIMITS
from replicator.messages import SegmentStanding
from replicator.record import (
    Cut,
    GroupPart,
    LeaseTerm,
    Mark,
    Opened,
    Piece,
    Record,
    Resumed,
    Scoped,
    Write,
)
from replicator.wire import replication_pb2 as pb

COMPRESS_BYTES_MIN = 1024
"""Smaller payloads are sent as they are."""
COMPRESS_LEVEL = 1


def records_payload(log: Iterable[Record]) -> pb.Payload:
    """Return records as a payload."""
    return payload(records_bytes(log))


def records_bytes(log: Iterable[Record]) -> bytes:
    """Return records as a `Records` message has them."""
    heads: dict[tuple[GroupName, Epoch], bytes] = {}
    return b"".join([delimited(b"\x0a", _record_bytes(record, heads)) for record in log])


def _record_bytes(record: Record, heads: dict[tuple[GroupName, Epoch], bytes]) -> bytes:
    """Return a `Record`; its marks and its piece, which few have, by their classes."""
    pieces = [b"\x08", varint(record.sequence)]
    for part in record.parts:
        place = (part.group, part.epoch)
        head = heads.get(place)
        if head is None:
            head = pb.GroupPart(group=part.group, epoch=part.epoch).SerializeToString()
            heads[place] = head
        content = [head]
        content += [delimited(b"\x1a", write_bytes(write)) for write in part.writes]
        if part.leases:
            content.append(pb.GroupPart(leases=terms_to_wire(part.leases)).SerializeToString())
        pieces.append(delimited(b"\x12", b"".join(content)))
    if record.marks:
        marks = pb.Record(marks=[_mark_to_wire(mark) for mark in record.marks])
        pieces.append(marks.SerializeToString())
    if record.piece is not None:
        piece = pb.Piece(number=record.piece.number, is_last=record.piece.is_last)
        pieces.append(pb.Record(piece=piece).SerializeToString())
    return b"".join(pieces)


def write_bytes(write: Write) -> bytes:
    """Return a `Write`."""
    key = write.key
    if isinstance(write, Delete):
        return b"\x0a%b%b\x20\x01" % (varint(len(key)), key)
    return put_bytes(key, write.value, write.lease)


def put_bytes(key: bytes, value: bytes, lease: LeaseId) -> bytes:
    """Return the `Write` of a put."""
    put = b"\x0a%b%b\x12%b%b" % (varint(len(key)), key, varint(len(value)), value)
    return put + b"\x18" + varint(lease) if lease else put


def records(packed: pb.Payload) -> tuple[Record, ...]:
    """Return the records in a payload."""
    return tuple([_record(record) for record in pb.Records.FromString(content(packed)).records])


def _record(wire: pb.Record) -> Record:
    parts = [_part(part) for part in wire.parts]
    if len(parts) == 1 and not wire.marks and not wire.HasField("piece"):
        return Record.of_one(Sequence(wire.sequence), parts[0])
    return Record(
        sequence=Sequence(wire.sequence),
        parts=tuple(parts),
        marks=tuple(_mark(mark) for mark in wire.marks),
        piece=(
            Piece(number=wire.piece.number, is_last=wire.piece.is_last)
            if wire.HasField("piece")
            else None
        ),
    )


def _part(wire: pb.GroupPart) -> GroupPart:
    return GroupPart.made(
        GroupName(wire.group),
        Epoch(wire.epoch),
        tuple([_write(write) for write in wire.writes]),
        terms(wire.leases) if wire.leases else (),
    )


def _write(wire: pb.Write) -> Write:
    return Delete(wire.key) if wire.is_delete else Put(wire.key, wire.value, LeaseId(wire.lease))


def terms_to_wire(leases: Iterable[LeaseTerm]) -> list[pb.LeaseTerm]:
    """Return what leases were granted for, for the wire."""
    return [pb.LeaseTerm(lease=term.lease, ttl_s=term.ttl_s) for term in leases]


def terms(wire: Iterable[pb.LeaseTerm]) -> tuple[LeaseTerm, ...]:
    """Return what leases were granted for, from the wire."""
    return tuple([LeaseTerm(LeaseId(term.lease), term.ttl_s) for term in wire])


def _mark_to_wire(mark: Mark) -> pb.Mark:
    wire = pb.Mark(group=mark.group, epoch=mark.epoch)
    match mark:
        case Opened():
            wire.opened.token.CopyFrom(_token_to_wire(mark.token))
            if mark.lineage is not None:
                wire.opened.lineage.CopyFrom(_lineage_to_wire(mark.lineage))
            wire.opened.prefixes.extend(mark.prefixes)
        case Cut():
            wire.cut.SetInParent()
            if mark.token != NO_TOKEN:
                wire.cut.token.CopyFrom(_token_to_wire(mark.token))
        case Resumed():
            wire.resumed.SetInParent()
            wire.resumed.is_dirty = mark.is_dirty
        case Scoped():
            wire.scoped.SetInParent()
            wire.scoped.prefixes.extend(mark.prefixes)
    return wire


def _mark(wire: pb.Mark) -> Mark:
    group, epoch = GroupName(wire.group), Epoch(wire.epoch)
    match wire.WhichOneof("mark"):
        case "opened":
            opened = wire.opened
            return Opened(
                group=group,
                epoch=epoch,
                token=_token(opened.token),
                lineage=_lineage(opened.lineage) if opened.HasField("lineage") else None,
                prefixes=tuple(opened.prefixes),
            )
        case "cut":
            token = _token(wire.cut.token) if wire.cut.HasField("token") else NO_TOKEN
            return Cut(group=group, epoch=epoch, token=token)
        case "resumed":
            return Resumed(group=group, epoch=epoch, is_dirty=wire.resumed.is_dirty)
        case "scoped":
            return Scoped(group=group, epoch=epoch, prefixes=tuple(wire.scoped.prefixes))
        case unknown:
            # A mark that is not understood must never be skipped: it changes what records mean.
            raise ValueError(f"mark {unknown} is not known")


# --- pieces -------------------------------------------------------------------------------------


def payload(raw: bytes) -> pb.Payload:
    """Return bytes as a payload, compressed if that makes them fewer."""
    if len(raw) >= COMPRESS_BYTES_MIN:
        squeezed = zstandard.ZstdCompressor(level=COMPRESS_LEVEL).compress(raw)
        if len(squeezed) < len(raw):
            return pb.Payload(content=squeezed, raw_bytes=len(raw))
    return pb.Payload(content=raw)


def content(packed: pb.Payload) -> bytes:
    """Return the bytes in a payload; `ValueError` if it is not what it says."""
    if not packed.raw_bytes:
        return packed.content
    if packed.raw_bytes > DEFAULT_LIMITS.message_bytes_max:
        raise ValueError(f"payload of {packed.raw_bytes} bytes is larger than any we send")
    whole = zstandard.ZstdDecompressor().decompress(
        packed.content, max_output_size=packed.raw_bytes
    )
    if len(whole) != packed.raw_bytes:
        raise ValueError(f"payload of {len(whole)} bytes said to be {packed.raw_bytes}")
    return whole


def _token_to_wire(token: Token) -> pb.Token:
    return pb.Token(incarnation=token.incarnation, revision=token.revision)


def _token(wire: pb.Token) -> Token:
    return Token(incarnation=wire.incarnation, revision=Revision(wire.revision))


def _lineage_to_wire(lineage: Lineage) -> pb.Lineage:
    return pb.Lineage(
        parent=lineage.parent,
        parent_incarnation=lineage.parent_incarnation,
        parent_epoch=lineage.parent_epoch,
        sequence=lineage.sequence,
        prefixes=lineage.prefixes,
        may_go_on=lineage.may_go_on,
    )


def _lineage(wire: pb.Lineage) -> Lineage:
    return Lineage(
        parent=ClusterName(wire.parent),
        parent_incarnation=Incarnation(wire.parent_incarnation),
        parent_epoch=Epoch(wire.parent_epoch),
        sequence=Sequence(wire.sequence),
        prefixes=tuple(wire.prefixes),
        may_go_on=wire.may_go_on,
    )


def standing_to_wire(segment: SegmentStanding) -> pb.SegmentStanding:
    """Return a segment's standing for the wire."""
    wire = pb.SegmentStanding(
        group=segment.group, epoch=segment.epoch, token=_token_to_wire(segment.token)
    )
    if segment.lineage is not None:
        wire.lineage.CopyFrom(_lineage_to_wire(segment.lineage))
    if segment.cut is not None:
        wire.cut = segment.cut
    return wire


def standing(wire: pb.SegmentStanding) -> SegmentStanding:
    """Return a segment's standing from the wire."""
    return SegmentStanding(
        group=GroupName(wire.group),
        epoch=Epoch(wire.epoch),
        token=_token(wire.token),
        lineage=_lineage(wire.lineage) if wire.HasField("lineage") else None,
        cut=Sequence(wire.cut) if wire.HasField("cut") else None,
    )
