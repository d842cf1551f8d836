"""Sender and receiver as machines: drop, repeat, reorder, resume, credit, silence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshkit.names import GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence
from meshkit.regional import GroupCheckpoint, JoinPhase
from replicator.batch import MainBatch
from replicator.limits import Limits
from replicator.messages import (
    Ack,
    Frame,
    Head,
    Hello,
    OutOfStep,
    OutOfStepChange,
    SideFrame,
    ToTarget,
    Welcome,
)
from replicator.receiver import GapSeen, Receiver, SourceChanged, SourceSilent
from replicator.record import Record
from replicator.sender import ProtocolBroken, Sender, Silent
from tests.replicator.mesh import A, B, G, H
from tests.replicator.records import record, write

LIMITS = Limits(window_bytes_max=600, frame_bytes_max=200, side_window_bytes_max=400)


def sender(*, credit: int = 600, start: int = 10) -> Sender:
    made = Sender(source=A, incarnation=Incarnation("a-1"), now_ms=0, limits=LIMITS)
    made.receive(Hello(target=B, source=A, credit_bytes=credit), now_ms=0)
    made.events()
    made.welcome(Sequence(start), is_fresh=False)
    made.messages_to_send(now_ms=0)
    return made


def receiver(*, start: int = 10, limits: Limits = LIMITS) -> Receiver:
    made = Receiver(
        source=A,
        target=B,
        incarnation=Incarnation("a-1"),
        position=Sequence(start),
        now_ms=0,
        limits=limits,
    )
    made.receive(welcome(start), now_ms=0)
    made.events()
    return made


def welcome(start: int, incarnation: str = "a-1") -> Welcome:
    return Welcome(source=A, incarnation=Incarnation(incarnation), start=Sequence(start))


def frame(after: int, through: int, *records: Record) -> Frame:
    return Frame(after=Sequence(after), through=Sequence(through), records=records)


def join(group: GroupName = G, phase: JoinPhase = JoinPhase.JOINING) -> GroupCheckpoint:
    return GroupCheckpoint(
        source=A, group=group, incarnation=Incarnation(""), phase=phase, epoch=Epoch(1)
    )


def sequences(batch: object) -> list[int]:
    assert isinstance(batch, MainBatch)
    return [r.sequence for r in batch.records]


def test_a_repeated_frame_is_dropped_and_its_credit_given_back() -> None:
    """Exactly once begins here."""
    target = receiver()
    for _ in range(2):
        target.receive(frame(10, 12, record(11)), now_ms=1)

    assert sequences(target.next_work()) == [11]
    assert target.next_work() is None


def test_an_overlapping_frame_is_taken_from_where_it_is_new() -> None:
    """After a resume the source may begin before what was received."""
    target = receiver()
    target.receive(frame(10, 12, record(11), record(12)), now_ms=1)
    target.receive(frame(10, 14, record(11), record(12), record(14)), now_ms=1)

    assert sequences(target.next_work()) == [11, 12, 14]


def test_a_gap_stops_the_stream() -> None:
    """Going on would skip records; the checkpoint knows where to resume."""
    target = receiver()
    target.receive(frame(12, 14, record(13)), now_ms=1)

    assert target.events() == [GapSeen(Sequence(10), Sequence(12))]
    assert target.next_work() is None


def test_another_history_is_never_resumed() -> None:
    """A restored etcd has the same name and other revisions."""
    made = Receiver(
        source=A, target=B, incarnation=Incarnation("a-1"), position=Sequence(10), now_ms=0
    )
    made.receive(welcome(10, "a-2"), now_ms=0)

    assert isinstance(made.events()[0], SourceChanged)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_whatever_is_repeated_or_lost_work_is_gapless_and_in_order(
    sizes: list[int], rng: object
) -> None:
    """Drop, repeat and reorder frames at will: each record is handed out once, in order."""
    frames, at = [], 10
    for size in sizes:
        records = [record(at + 1 + n) for n in range(size)]
        frames.append(frame(at, at + size + 1, *records))
        at += size + 1
    target = receiver(limits=Limits())
    got: list[int] = []
    position = 10
    for _ in range(60):
        sent = rng.choice(frames)  # type: ignore[attr-defined]
        target.receive(sent, now_ms=1)
        if target.events():
            target = receiver(start=position, limits=Limits())
        while (work := target.next_work()) is not None:
            assert isinstance(work, MainBatch)
            assert work.after == position
            got += sequences(work)
            position = work.through
            target.on_applied(work.through, work.through)

    expected = [r.sequence for f in frames for r in f.records if r.sequence <= position]
    assert got == expected


def test_a_sender_stops_at_its_credit_and_goes_on_with_more() -> None:
    """Bounded memory at the target."""
    source = sender(credit=400)
    for n in range(11, 31):
        source.on_batch(Sequence(n), (record(n, write("/orders/1", "x" * 60)),))
    first = source.messages_to_send(now_ms=1)
    assert not source.has_room
    source.receive(Ack(applied=Sequence(0), durable=Sequence(0), credit_bytes=800), now_ms=2)
    second = source.messages_to_send(now_ms=2)

    assert 0 < len(first) < 20
    assert 0 < len(second) < 20
    afters = [m.after for m in [*first, *second] if isinstance(m, Frame)]
    assert afters == list(range(10, 10 + len(afters)))


def test_a_head_overtakes_what_waits_for_credit() -> None:
    """A target that takes nothing in for minutes must not think that its source is gone."""
    source = sender(credit=100)
    for n in range(11, 14):
        source.on_batch(Sequence(n), (record(n, write("/orders/1", "x" * 100)),))
    source.messages_to_send(now_ms=1)
    source.on_head(Revision(20), wall_ms=5)
    source.on_deadline(now_ms=LIMITS.head_interval_ms + 1)

    sent = source.messages_to_send(now_ms=LIMITS.head_interval_ms + 1)

    assert sent == [Head(revision=Revision(20), at_ms=5)]


def test_a_message_larger_than_the_window_goes_alone() -> None:
    """One transaction may be larger than any window; it must not wait for ever."""
    source = sender(credit=100)
    source.on_batch(Sequence(11), (record(11, write("/orders/1", "x" * 500)),))
    source.on_batch(Sequence(12), (record(12, write("/orders/1", "x" * 500)),))

    assert len(source.messages_to_send(now_ms=1)) == 1
    assert source.messages_to_send(now_ms=1) == []


def test_what_holds_no_record_is_sent_only_now_and_then() -> None:
    """Two idle clusters must not keep each other busy with their own checkpoints."""
    source = sender()
    for n in range(11, 20):
        source.on_batch(Sequence(n), ())
    assert source.messages_to_send(now_ms=1) == []

    source.on_deadline(now_ms=LIMITS.coverage_interval_ms)

    assert source.messages_to_send(now_ms=50) == [frame(10, 19)]


def test_an_idle_sender_says_where_the_head_is() -> None:
    """Silence must mean trouble."""
    source = sender()
    source.on_head(Revision(40), wall_ms=5)
    source.on_deadline(now_ms=LIMITS.head_interval_ms)

    assert source.messages_to_send(now_ms=200) == [Head(revision=Revision(40), at_ms=5)]


def test_a_side_stream_ends_exactly_where_the_main_stream_is() -> None:
    """5.1 rule 2: when both are equal, one transaction merges them."""
    source = sender(credit=10_000)
    source.on_batch(Sequence(20), (record(20),))
    source.follow(1, G, Sequence(12))
    source.on_side_read(1, Sequence(18), (record(15),))
    source.on_side_read(1, Sequence(25), (record(20), record(24)))

    sent: list[ToTarget] = source.messages_to_send(now_ms=1)

    sides = [m for m in sent if isinstance(m, SideFrame)]
    assert [(m.after, m.through, m.is_last) for m in sides] == [(12, 18, False), (18, 20, True)]
    assert [r.sequence for m in sides for r in m.records] == [15, 20]
    assert not source.has_side(1)


def test_a_side_stream_is_never_ahead_of_the_main_stream() -> None:
    """Marks of the main stream must reach the target before what comes after them."""
    source = sender(credit=10_000)
    source.follow(1, G, Sequence(30))
    source.on_side_read(1, Sequence(40), (record(35),))
    assert [m for m in source.messages_to_send(now_ms=1) if isinstance(m, SideFrame)] == []

    source.on_batch(Sequence(36), (record(36),))

    sides = [m for m in source.messages_to_send(now_ms=1) if isinstance(m, SideFrame)]
    assert [(m.through, m.is_last) for m in sides] == [(36, True)]


def test_work_of_a_side_stream_begun_anew_is_dropped() -> None:
    """What belongs to the older request may still be under way."""
    target = receiver(limits=Limits())
    target.join(join())
    side = SideFrame(group=G, number=1, after=Sequence(1), through=Sequence(2))
    target.receive(side, now_ms=1)
    target.join(join())

    assert target.next_work() is None


def test_silence_is_noticed_on_both_sides() -> None:
    """A half-open connection is given up."""
    source, target = sender(), receiver()
    late = LIMITS.silence_ms_max

    source.on_deadline(now_ms=late)
    target.on_deadline(now_ms=late)

    assert Silent() in source.events()
    assert SourceSilent() in target.events()
    assert source.deadline_ms() <= late


def test_a_target_must_say_hello_first_and_once() -> None:
    """Anything else is not this protocol."""
    source = Sender(source=A, incarnation=Incarnation("a-1"), now_ms=0)
    ack = Ack(applied=Sequence(1), durable=Sequence(1), credit_bytes=1)
    source.receive(ack, now_ms=0)
    assert isinstance(source.events()[0], ProtocolBroken)

    twice = sender()
    twice.receive(Hello(target=B, source=A), now_ms=1)

    assert isinstance(twice.events()[0], ProtocolBroken)


def test_acknowledgements_say_what_is_applied_stored_and_taken_in() -> None:
    """Lag, resume and credit all hang on them."""
    target = receiver()
    target.receive(frame(10, 12, record(11)), now_ms=1)
    target.next_work()
    before = [m for m in target.messages_to_send(now_ms=1) if isinstance(m, Ack)]
    target.on_applied(Sequence(12), Sequence(11))
    after = [m for m in target.messages_to_send(now_ms=2) if isinstance(m, Ack)]

    assert [(a.applied, a.durable) for a in after] == [(12, 11)]
    assert after[0].credit_bytes > before[0].credit_bytes


def test_the_first_acknowledgement_that_knows_says_all_that_is_out_of_step_then_what_changed() -> (
    None
):
    """And nothing before somebody has looked: an empty list would be a claim."""
    here = OutOfStep(group=G, why="paused", position=Sequence(5))
    moved = OutOfStep(group=G, why="reconciling", position=Sequence(9))
    other = OutOfStep(group=H, why="joining")
    target = receiver()

    told = []
    for out_of_step in (None, {}, {G: here}, {G: here, H: other}, {G: moved, H: other}, {}):
        target.out_of_step = out_of_step
        acks = [m for m in target.messages_to_send(now_ms=1) if isinstance(m, Ack)]
        told.append([ack.out_of_step for ack in acks])

    assert told == [
        [None],
        [OutOfStepChange()],
        [OutOfStepChange(groups=(here,))],
        [OutOfStepChange(groups=(other,))],
        [OutOfStepChange(groups=(moved,))],
        [OutOfStepChange(back=(G, H))],
    ]
