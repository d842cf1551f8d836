"""The wire: every message survives the way there and back, and nothing else gets through."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.names import GroupName
from meshkit.ordinals import Epoch, Incarnation, LeaseId, Revision, Sequence
from meshkit.regional import JoinPhase
from meshkit.store.txn import Delete, Put
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
    SegmentStanding,
    SideFrame,
    SideRefused,
    ToSource,
    ToTarget,
    Verdict,
    Welcome,
)
from replicator.record import Cut, GroupPart, LeaseTerm, Opened, Record, Resumed, Scoped
from replicator.wire import replication_pb2 as pb
from replicator.wire.convert import (
    BadMessage,
    source_bytes,
    source_message,
    target_bytes,
    target_message,
)
from tests.replicator.mesh import A, B, G, H
from tests.replicator.records import TOKEN, lineage

RECORD = Record(
    sequence=Sequence(2**53),
    parts=(
        GroupPart(
            group=G,
            epoch=Epoch(3),
            writes=(Put(b"\x00\xff", b"", LeaseId(7)), Delete(b"k"), Put(b"z", b"v" * 3000)),
            leases=(LeaseTerm(LeaseId(7), 30),),
        ),
        GroupPart(group=H, epoch=Epoch(1), writes=(Delete(b"u"),)),
    ),
    marks=(
        Opened(group=G, epoch=Epoch(3), token=TOKEN, lineage=lineage(A, 9), prefixes=(b"/a",)),
        Opened(group=H, epoch=Epoch(1), token=TOKEN),
        Cut(group=G, epoch=Epoch(3)),
        Resumed(group=G, epoch=Epoch(3), is_dirty=True),
        Resumed(group=G, epoch=Epoch(3)),
        Scoped(group=G, epoch=Epoch(3), prefixes=(b"/a", b"/b")),
        Scoped(group=G, epoch=Epoch(3)),
    ),
)

TO_SOURCE: list[ToSource] = [
    Hello(target=B, source=A, credit_bytes=5),
    Hello(target=B, source=A, incarnation=Incarnation("i"), position=Sequence(0), credit_bytes=1),
    Ack(applied=Sequence(4), durable=Sequence(3), credit_bytes=2),
    Ack(applied=Sequence(4), durable=Sequence(3), credit_bytes=2, stalled="it is full"),
    Join(number=1, group=G, phase=JoinPhase.JOINING, epoch=Epoch(1)),
    Join(
        number=2,
        group=G,
        phase=JoinPhase.COPYING,
        epoch=Epoch(1),
        sequence=Sequence(7),
        cursor=b"\xff",
    ),
    Join(number=1, group=G, phase=JoinPhase.JOINING, epoch=Epoch(1), compares=True),
    Join(
        number=1,
        group=G,
        phase=JoinPhase.JOINING,
        epoch=Epoch(1),
        compares=True,
        compares_parts=True,
    ),
    Leave(number=3, group=G),
    Compared(
        number=4,
        group=G,
        start=b"/",
        verdict=Verdict.DIFFERENT,
        fingerprints=b"m" * 12,
        parts=(0, 2**20),
    ),
    *(
        Compared(number=4, group=G, start=b"/\xff", verdict=verdict, fingerprints=b"m" * 24)
        for verdict in Verdict
    ),
]
TO_TARGET: list[ToTarget] = [
    *(Refusal(code=code, text="why") for code in RefusalCode),
    Outline(
        group=G,
        number=2,
        cut=Sequence(9),
        start=b"/a",
        end=b"/b",
        range_end=b"/c",
        keys_count=2**20,
        digest=b"\x00\xff",
    ),
    Outline(
        group=G,
        number=2,
        cut=Sequence(9),
        start=b"/a",
        end=b"/b",
        range_end=b"/c",
        keys_count=40,
        digest=b"",
        part_starts=(b"/a\x00", b"/aa"),
        part_digests=bytes(range(48)),
    ),
    CopyPage(
        group=G,
        number=2,
        cut=Sequence(9),
        start=b"/a",
        end=b"/b",
        items=((b"/a1", b""),),
        is_delta=True,
        dropped=(0, 70_000),
    ),
    Welcome(source=A, incarnation=Incarnation("i"), start=Sequence(1)),
    Welcome(
        source=A,
        incarnation=Incarnation("i"),
        start=Sequence(1),
        is_fresh=True,
        segments=(
            SegmentStanding(group=G, epoch=Epoch(1), token=TOKEN, lineage=lineage(B, 4)),
            SegmentStanding(group=H, epoch=Epoch(1), token=TOKEN, cut=Sequence(3)),
        ),
    ),
    Frame(after=Sequence(1), through=Sequence(2)),
    Frame(after=Sequence(1), through=Sequence(2), records=(RECORD,)),
    SideFrame(group=G, number=1, after=Sequence(1), through=Sequence(1), is_last=True),
    SideFrame(group=G, number=1, after=Sequence(1), through=Sequence(2), records=(RECORD,)),
    CopyPage(group=G, number=1, cut=Sequence(4), start=b"", end=b"", items=(), is_first=True),
    CopyPage(
        group=G,
        number=1,
        cut=Sequence(4),
        start=b"a",
        end=b"b",
        items=((b"a1", b"x" * 2000), (b"a2", b"")),
        leased={b"a2": LeaseId(2**62)},
        leases=(LeaseTerm(LeaseId(2**62), 9),),
        is_final=True,
    ),
    SideRefused(group=G, number=2, epoch=Epoch(5), reason="why"),
    Head(revision=Revision(9), at_ms=12),
]


@pytest.mark.parametrize("message", TO_SOURCE, ids=lambda m: type(m).__name__)
def test_what_is_said_to_a_source_arrives_as_it_was(message: ToSource) -> None:
    """Zero and absent are different things."""
    assert source_message(source_bytes(message)) == message


@pytest.mark.parametrize("message", TO_TARGET, ids=lambda m: type(m).__name__)
def test_what_is_said_to_a_target_arrives_as_it_was(message: ToTarget) -> None:
    """Compressed or not."""
    assert target_message(target_bytes(message)) == message


def test_large_records_travel_compressed() -> None:
    """Values in a control plane are text and shrink well."""
    frame = Frame(after=Sequence(1), through=Sequence(2), records=(RECORD,))

    assert len(target_bytes(frame)) < 1000


@given(st.binary(max_size=200))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    """Whatever a peer sends, the answer is one error."""
    for read in (source_message, target_message):
        try:
            read(noise)
        except BadMessage:
            continue


def test_a_parent_that_may_go_on_is_known_as_such_over_the_wire() -> None:
    """S6: a target that is ahead of an emergency's epoch must not just go on with it."""
    for may_go_on in (False, True):
        on = attrs.evolve(lineage(A, 5), may_go_on=may_go_on)
        mark = Opened(group=G, epoch=Epoch(2), token=TOKEN, lineage=on)
        frame = Frame(
            after=Sequence(1),
            through=Sequence(2),
            records=(Record(sequence=Sequence(2), marks=(mark,)),),
        )

        assert target_message(target_bytes(frame)) == frame


def puts(*sequences: int, group: GroupName = G, epoch: int = 2) -> tuple[Record, ...]:
    return tuple(
        Record.of_put(Sequence(s), group, Epoch(epoch), b"/k\xff%d" % s, b"v" * (s % 7))
        for s in sequences
    )


PLAIN = puts(2**40, 2**40 + 1, 2**40 + 900)
LEASED = GroupPart(
    group=G,
    epoch=Epoch(2),
    writes=(Put(b"k", b"v", LeaseId(7)),),
    leases=(LeaseTerm(LeaseId(7), 30),),
)
NOT_PLAIN = {
    "a delete": (
        Record(
            sequence=Sequence(2**41),
            parts=(GroupPart(group=G, epoch=Epoch(2), writes=(Delete(b"k"),)),),
        ),
    ),
    "a lease": (Record(sequence=Sequence(2**41), parts=(LEASED,)),),
    "another epoch": puts(2**41, epoch=3),
    "another group": puts(2**41, group=H),
    "several writes, and marks": (attrs.evolve(RECORD, sequence=Sequence(2**41)),),
    "nothing but a mark": (
        Record(sequence=Sequence(2**41), marks=(Cut(group=G, epoch=Epoch(2)),)),
    ),
}


def test_a_frame_of_plain_puts_travels_by_columns() -> None:
    """Nearly all do; a message for each record costs several times as much."""
    frame = Frame(after=Sequence(3), through=Sequence(2**41), records=PLAIN, in_columns=True)

    raw = target_bytes(frame)

    assert pb.ToTarget.FromString(raw).frame.HasField("columns")
    read = target_message(raw)
    assert read == frame
    assert [r.weight_bytes for r in read.records] == [r.weight_bytes for r in PLAIN]
    assert [r.weight_bytes for r in read.records] == [attrs.evolve(r).weight_bytes for r in PLAIN]


@pytest.mark.parametrize("why", NOT_PLAIN)
def test_what_is_no_plain_put_travels_as_records(why: str) -> None:
    """Nothing of a record may be lost because it was taken for a plain one."""
    records = (*PLAIN, *NOT_PLAIN[why])
    frame = Frame(after=Sequence(3), through=Sequence(2**42), records=records, in_columns=True)

    raw = target_bytes(frame)

    assert not pb.ToTarget.FromString(raw).frame.HasField("columns")
    assert target_message(raw) == frame


def test_a_target_that_reads_no_columns_gets_records() -> None:
    """Regions are upgraded one after the other."""
    frame = Frame(after=Sequence(3), through=Sequence(2**41), records=PLAIN)

    assert not pb.ToTarget.FromString(target_bytes(frame)).frame.HasField("columns")


def test_columns_of_different_lengths_are_no_message() -> None:
    columns = pb.Columns(group=G, epoch=1, sequences=[1, 1], keys=[b"k"], values=[b"v", b"w"])
    wire = pb.ToTarget()
    wire.frame.columns.content = columns.SerializeToString()

    with pytest.raises(BadMessage):
        target_message(wire.SerializeToString())
