"""Messages about comparing to bytes and back. Pure.

What is not a message of this protocol raises `BadMessage`, never anything else.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence
from replicator.digest import BUCKETS_COUNT, Digest
from replicator.verify_messages import (
    Entries,
    GroupDigest,
    ToVerifier,
    VerifyRefusal,
    VerifyRefusalCode,
    VerifyRequest,
)
from replicator.wire import replication_pb2 as pb
from replicator.wire.convert import BadMessage

_BITMAP_BYTES = BUCKETS_COUNT // 8


def request_bytes(request: VerifyRequest) -> bytes:
    """Return the bytes of a request."""
    wire = pb.VerifyRequest(
        target=request.target,
        source=request.source,
        incarnation=request.incarnation,
        group=request.group,
        epoch=request.epoch,
        revision=request.sequence,
        buckets=b"" if request.buckets is None else _bitmap(request.buckets),
    )
    return bytes(wire.SerializeToString())


def request_message(raw: bytes) -> VerifyRequest:
    """Return the request in `raw`.

    Raises:
        BadMessage: there is none.
    """
    try:
        wire = pb.VerifyRequest.FromString(raw)
    except (DecodeError, ValueError) as error:
        raise BadMessage(f"not a request to compare: {error}") from error
    if wire.buckets and len(wire.buckets) != _BITMAP_BYTES:
        raise BadMessage(f"{len(wire.buckets)} bytes do not name {BUCKETS_COUNT} buckets")
    return VerifyRequest(
        target=ClusterName(wire.target),
        source=ClusterName(wire.source),
        incarnation=Incarnation(wire.incarnation),
        group=GroupName(wire.group),
        epoch=Epoch(wire.epoch),
        sequence=Sequence(wire.revision),
        buckets=_bits(wire.buckets) if wire.buckets else None,
    )


def answer_bytes(answer: ToVerifier) -> bytes:
    """Return the bytes of an answer."""
    wire = pb.ToVerifier()
    match answer:
        case GroupDigest():
            wire.digest.prefixes.extend(answer.prefixes)
            wire.digest.keys_count = answer.digest.keys_count
            wire.digest.buckets = answer.digest.to_bytes()
        case Entries():
            wire.entries.CopyFrom(
                pb.Entries(entries=[pb.Entry(key=k, hash=h) for k, h in answer.entries])
            )
        case VerifyRefusal():
            wire.refusal.code, wire.refusal.text = answer.code.value, answer.text
    return bytes(wire.SerializeToString())


def answer_message(raw: bytes) -> ToVerifier:
    """Return the answer in `raw`.

    Raises:
        BadMessage: there is none.
    """
    try:
        return _answer_message(pb.ToVerifier.FromString(raw))
    except (DecodeError, ValueError) as error:
        raise BadMessage(f"not an answer about a comparison: {error}") from error


def _answer_message(wire: pb.ToVerifier) -> ToVerifier:
    match wire.WhichOneof("message"):
        case "digest":
            return GroupDigest(
                prefixes=tuple(wire.digest.prefixes),
                digest=Digest.from_bytes(wire.digest.buckets, keys_count=wire.digest.keys_count),
            )
        case "entries":
            return Entries(entries=tuple((e.key, e.hash) for e in wire.entries.entries))
        case "refusal":
            return VerifyRefusal(code=VerifyRefusalCode(wire.refusal.code), text=wire.refusal.text)
        case unknown:
            raise ValueError(f"message {unknown} is not known")


def _bitmap(buckets: Iterable[int]) -> bytes:
    made = bytearray(_BITMAP_BYTES)
    for number in buckets:
        made[number // 8] |= 1 << number % 8
    return bytes(made)


def _bits(bitmap: bytes) -> frozenset[int]:
    return frozenset(n for n in range(BUCKETS_COUNT) if bitmap[n // 8] >> n % 8 & 1)
