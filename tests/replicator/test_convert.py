"""The wire: every message survives the way there and back, and nothing else gets through."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    OutOfStep,
    OutOfStepChange,
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
    Hello(target=B, source=A, credit_bytes=5, tells_out_of_step=True),
    Ack(applied=Sequence(4), durable=Sequence(3), credit_bytes=2, out_of_step=OutOfStepChange()),
    Ack(
        applied=Sequence(4),
        durable=Sequence(3),
        credit_bytes=2,
        out_of_step=OutOfStepChange(
            groups=(
                OutOfStep(group=G, why="paused", position=Sequence(0), text="by alice"),
                OutOfStep(group=G, why="joining"),
            ),
            back=(G,),
        ),
    ),
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
    Leave(number=3, group=G),
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
