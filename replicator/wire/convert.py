"""Messages to bytes and back. Pure.

Whatever arrives is checked: what is not a message of this protocol raises `BadMessage`, never
anything else.
"""

from __future__ import annotations

from itertools import pairwise

import attrs
import zstandard
from google.protobuf.message import DecodeError

from meshkit.errors import Refused
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_LEASE, Epoch, Incarnation, LeaseId, Revision, Sequence
from meshkit.protobuf_bytes import delimited
from meshkit.regional import JoinPhase
from replicator.messages import (
    Ack,
    Compared,
    CopyPage,
    Frame,
    Head,
    Hello,
    Join,
    Leave,
    Outline,
    Refusal,
    RefusalCode,
    SideFrame,
    SideRefused,
    ToSource,
    ToTarget,
    Verdict,
    Welcome,
)
from replicator.outline import digests_in
from replicator.record import Record
from replicator.wire import replication_pb2 as pb
from replicator.wire.columns import columns_bytes, records_of
from replicator.wire.out_of_step import change, change_to_wire
from replicator.wire.pieces import (
    content,
    payload,
    put_bytes,
    records,
    records_payload,
    standing,
    standing_to_wire,
    terms,
    terms_to_wire,
)


class BadMessage(Refused):
    """What arrived is not a message of this protocol."""

    code = "bad_message"


def source_bytes(message: ToSource) -> bytes:
    """Return the bytes of a message to a source."""
    wire = pb.ToSource()
    match message:
        case Hello():
            wire.hello.target, wire.hello.source = message.target, message.source
            wire.hello.credit_bytes = message.credit_bytes
            wire.hello.takes_pieces = message.takes_pieces
            wire.hello.takes_columns = message.takes_columns
            if message.incarnation is not None:
                wire.hello.incarnation = message.incarnation
            if message.position is not None:
                wire.hello.position = message.position
            wire.hello.tells_out_of_step = message.tells_out_of_step
            if message.resend_after is not None:
                wire.hello.resend_after = message.resend_after
        case Ack():
            wire.ack.applied, wire.ack.durable = message.applied, message.durable
            wire.ack.credit_bytes, wire.ack.stalled = message.credit_bytes, message.stalled
            wire.ack.apply_ms = message.apply_ms
            if message.out_of_step is not None:
                wire.ack.out_of_step.CopyFrom(change_to_wire(message.out_of_step))
        case Join():
            wire.join.CopyFrom(
                pb.Join(
                    number=message.number,
                    group=message.group,
                    phase=message.phase.value,
                    epoch=message.epoch,
                    sequence=message.sequence,
                    cursor=message.cursor,
                    compares=message.compares,
                    compares_parts=message.compares_parts,
                )
            )
        case Leave():
            wire.leave.number, wire.leave.group = message.number, message.group
        case Compared():
            wire.compared.number, wire.compared.group = message.number, message.group
            wire.compared.start = message.start
            wire.compared.fingerprints = message.fingerprints
            wire.compared.verdict = message.verdict.value
            wire.compared.parts.extend(message.parts)
    return bytes(wire.SerializeToString())


def source_message(raw: bytes) -> ToSource:
    """Return the message to a source in `raw`.

    Raises:
        BadMessage: there is none.
    """
    try:
        wire = pb.ToSource.FromString(raw)
        return _source_message(wire)
    except (DecodeError, ValueError) as error:
        raise BadMessage(f"not a message to a source: {error}") from error


def _source_message(wire: pb.ToSource) -> ToSource:
    match wire.WhichOneof("message"):
        case "hello":
            hello = wire.hello
            return Hello(
                target=ClusterName(hello.target),
                source=ClusterName(hello.source),
                incarnation=(
                    Incarnation(hello.incarnation) if hello.HasField("incarnation") else None
                ),
                position=Sequence(hello.position) if hello.HasField("position") else None,
                credit_bytes=hello.credit_bytes,
                takes_pieces=hello.takes_pieces,
                takes_columns=hello.takes_columns,
                resend_after=(
                    Sequence(hello.resend_after) if hello.HasField("resend_after") else None
                ),
                tells_out_of_step=hello.tells_out_of_step,
            )
        case "ack":
            return Ack(
                applied=Sequence(wire.ack.applied),
                durable=Sequence(wire.ack.durable),
                credit_bytes=wire.ack.credit_bytes,
                stalled=wire.ack.stalled,
                apply_ms=wire.ack.apply_ms,
                out_of_step=(
                    change(wire.ack.out_of_step) if wire.ack.HasField("out_of_step") else None
                ),
            )
        case "join":
            return Join(
                number=wire.join.number,
                group=GroupName(wire.join.group),
                phase=JoinPhase(wire.join.phase),
                epoch=Epoch(wire.join.epoch),
                sequence=Sequence(wire.join.sequence),
                cursor=wire.join.cursor,
                compares=wire.join.compares,
                compares_parts=wire.join.compares_parts,
            )
        case "leave":
            return Leave(number=wire.leave.number, group=GroupName(wire.leave.group))
        case "compared":
            return Compared(
                number=wire.compared.number,
                group=GroupName(wire.compared.group),
                start=wire.compared.start,
                verdict=Verdict(wire.compared.verdict),
                fingerprints=wire.compared.fingerprints,
                parts=tuple(wire.compared.parts),
            )
        case unknown:
            raise ValueError(f"message {unknown} is not known")


def target_bytes(message: ToTarget) -> bytes:
    """Return the bytes of a message to a target."""
    wire = pb.ToTarget()
    match message:
        case Frame():
            wire.frame.CopyFrom(_frame_to_wire(message))
        case SideFrame():
            wire.side_frame.CopyFrom(_side_to_wire(message))
        case CopyPage():
            wire.copy_page.CopyFrom(_page_to_wire(message))
        case Outline():
            wire.outline.CopyFrom(pb.Outline(**attrs.asdict(message)))
        case Head():
            wire.head.revision, wire.head.at_ms = message.revision, message.at_ms
        case Refusal():
            wire.refusal.code, wire.refusal.text = message.code.value, message.text
        case SideRefused():
            refused = wire.side_refused
            refused.group, refused.number = message.group, message.number
            refused.epoch, refused.reason = message.epoch, message.reason
        case Welcome():
            wire.welcome.source, wire.welcome.incarnation = message.source, message.incarnation
            wire.welcome.start, wire.welcome.is_fresh = message.start, message.is_fresh
            wire.welcome.segments.extend(standing_to_wire(s) for s in message.segments)
            wire.welcome.resend_refused = message.resend_refused
    return bytes(wire.SerializeToString())


def _frame_to_wire(frame: Frame) -> pb.Frame:
    wire = pb.Frame(after=frame.after, through=frame.through)
    columns = columns_bytes(frame.records) if frame.in_columns else None
    if columns is not None:
        wire.columns.CopyFrom(payload(columns))
    elif frame.records:
        wire.records.CopyFrom(records_payload(frame.records))
    return wire


def _side_to_wire(side: SideFrame) -> pb.SideFrame:
    return pb.SideFrame(
        group=side.group,
        number=side.number,
        after=side.after,
        through=side.through,
        records=records_payload(side.records) if side.records else None,
        is_last=side.is_last,
    )


def _page_to_wire(page: CopyPage) -> pb.CopyPage:
    leased = page.leased
    items = [
        delimited(b"\x0a", put_bytes(key, value, leased.get(key, NO_LEASE) if leased else NO_LEASE))
        for key, value in page.items
    ]
    if page.leases:
        items.append(pb.Items(leases=terms_to_wire(page.leases)).SerializeToString())
    return pb.CopyPage(
        group=page.group,
        number=page.number,
        cut=page.cut,
        start=page.start,
        end=page.end,
        items=payload(b"".join(items)),
        is_first=page.is_first,
        is_final=page.is_final,
        is_delta=page.is_delta,
        dropped=page.dropped,
        place=page.place,
    )


def target_message(raw: bytes) -> ToTarget:
    """Return the message to a target in `raw`.

    Raises:
        BadMessage: there is none.
    """
    try:
        return _target_message(pb.ToTarget.FromString(raw))
    except (DecodeError, ValueError, zstandard.ZstdError) as error:
        raise BadMessage(f"not a message to a target: {error}") from error


def _target_message(wire: pb.ToTarget) -> ToTarget:
    match wire.WhichOneof("message"):
        case "frame" | "side_frame" | "copy_page":
            return _stretch(wire)
        case "outline":
            return _outline(wire.outline)
        case "head":
            return Head(revision=Revision(wire.head.revision), at_ms=wire.head.at_ms)
        case "refusal":
            return Refusal(code=RefusalCode(wire.refusal.code), text=wire.refusal.text)
        case "side_refused":
            refused = wire.side_refused
            return SideRefused(
                group=GroupName(refused.group),
                number=refused.number,
                epoch=Epoch(refused.epoch),
                reason=refused.reason,
            )
        case "welcome":
            return Welcome(
                source=ClusterName(wire.welcome.source),
                incarnation=Incarnation(wire.welcome.incarnation),
                start=Sequence(wire.welcome.start),
                is_fresh=wire.welcome.is_fresh,
                segments=tuple(standing(s) for s in wire.welcome.segments),
                resend_refused=wire.welcome.resend_refused,
            )
        case unknown:
            raise ValueError(f"message {unknown} is not known")


def _stretch(wire: pb.ToTarget) -> Frame | SideFrame | CopyPage:
    """Return a stretch of the log or of a copy."""
    match wire.WhichOneof("message"):
        case "frame":
            return Frame(
                after=Sequence(wire.frame.after),
                through=Sequence(wire.frame.through),
                records=_frame_records(wire.frame),
            )
        case "side_frame":
            side = wire.side_frame
            return SideFrame(
                group=GroupName(side.group),
                number=side.number,
                after=Sequence(side.after),
                through=Sequence(side.through),
                records=records(side.records) if side.HasField("records") else (),
                is_last=side.is_last,
            )
        case _:
            page = wire.copy_page
            packed = pb.Items.FromString(content(page.items))
            return CopyPage(
                group=GroupName(page.group),
                number=page.number,
                cut=Sequence(page.cut),
                start=page.start,
                end=page.end,
                items=tuple((item.key, item.value) for item in packed.items),
                leased={i.key: LeaseId(i.lease) for i in packed.items if i.lease},
                leases=terms(packed.leases),
                is_first=page.is_first,
                is_final=page.is_final,
                is_delta=page.is_delta,
                dropped=tuple(page.dropped),
                place=page.place if page.HasField("place") else None,
            )


def _frame_records(wire: pb.Frame) -> tuple[Record, ...]:
    if wire.HasField("columns"):
        return records_of(pb.Columns.FromString(content(wire.columns)))
    return records(wire.records) if wire.HasField("records") else ()


def _outline(wire: pb.Outline) -> Outline:
    starts, told = tuple(wire.part_starts), len(digests_in(wire.part_digests))
    if told != len(starts) + bool(starts or told):
        raise ValueError(f"{told} digests of {len(starts) + 1} parts")
    if any(one >= other for one, other in pairwise((wire.start, *starts, wire.end)) if starts):
        raise ValueError("the parts of a stretch do not follow each other")
    return Outline(
        group=GroupName(wire.group),
        number=wire.number,
        cut=Sequence(wire.cut),
        start=wire.start,
        end=wire.end,
        range_end=wire.range_end,
        keys_count=wire.keys_count,
        digest=wire.digest,
        part_starts=starts,
        part_digests=wire.part_digests,
    )
