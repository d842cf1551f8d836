"""Records are written by hand and made without their constructors: nothing may tell it."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.names import GroupName
from meshkit.ordinals import Epoch, LeaseId, Sequence
from meshkit.store.txn import Delete, Put
from replicator.record import Cut, GroupPart, LeaseTerm, Mark, Piece, Record, Resumed
from replicator.wire import replication_pb2 as pb
from replicator.wire.pieces import records, records_payload

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.binary(max_size=150)
LEASES = st.sampled_from([LeaseId(0), LeaseId(5), LeaseId(1 << 62)])
WRITES = st.one_of(
    st.builds(Put, KEYS, st.one_of(st.binary(max_size=150), st.just(b"x" * 17_000)), LEASES),
    st.builds(Delete, KEYS),
)
GROUPS = st.sampled_from([GroupName("orders"), GroupName("a-group")])
EPOCHS = st.builds(Epoch, st.sampled_from([1, 127, 128, 1 << 40]))
TERMS = st.builds(LeaseTerm, LEASES, st.integers(0, 1 << 40))
PARTS = st.builds(
    GroupPart,
    group=GROUPS,
    epoch=EPOCHS,
    writes=st.lists(WRITES, max_size=4).map(tuple),
    leases=st.lists(TERMS, max_size=2).map(tuple),
)
MARKS: st.SearchStrategy[Mark] = st.one_of(
    st.builds(Cut, group=GROUPS, epoch=EPOCHS),
    st.builds(Resumed, group=GROUPS, epoch=EPOCHS, is_dirty=st.booleans()),
)
RECORDS = st.builds(
    Record,
    sequence=st.builds(Sequence, st.integers(0, 1 << 62)),
    parts=st.lists(PARTS, max_size=3).map(tuple),
    marks=st.lists(MARKS, max_size=2).map(tuple),
    piece=st.none() | st.builds(Piece, number=st.integers(0, 300), is_last=st.booleans()),
)


@PATIENT
@given(st.lists(RECORDS, max_size=5).map(tuple))
def test_records_come_out_as_they_went_in(log: tuple[Record, ...]) -> None:
    found = records(records_payload(log))

    assert found == log
    for one, other in zip(found, log, strict=True):
        assert one.weight_bytes == other.weight_bytes
        assert one.writes_count == other.writes_count
        assert one.data_bytes == other.data_bytes


@PATIENT
@given(PARTS, st.integers(1, 1 << 50))
def test_a_record_of_one_part_is_what_the_constructor_makes(part: GroupPart, at: int) -> None:
    made = Record.of_one(Sequence(at), part)
    expected = Record(sequence=Sequence(at), parts=(part,))

    assert made == expected
    assert (made.weight_bytes, made.writes_count) == (expected.weight_bytes, expected.writes_count)
    assert GroupPart.made(part.group, part.epoch, part.writes, part.leases) == part


def test_a_peer_with_the_generated_classes_reads_the_same() -> None:
    part = GroupPart(
        group=GroupName("g"),
        epoch=Epoch(3),
        writes=(Put(b"k", b"v", LeaseId(9)), Delete(b"gone")),
        leases=(LeaseTerm(LeaseId(9), 60),),
    )

    payload = records_payload([Record(sequence=Sequence(300), parts=(part,))])

    assert pb.Records.FromString(payload.content) == pb.Records(
        records=[
            pb.Record(
                sequence=300,
                parts=[
                    pb.GroupPart(
                        group="g",
                        epoch=3,
                        writes=[
                            pb.Write(key=b"k", value=b"v", lease=9),
                            pb.Write(key=b"gone", is_delete=True),
                        ],
                        leases=[pb.LeaseTerm(lease=9, ttl_s=60)],
                    )
                ],
            )
        ]
    )
