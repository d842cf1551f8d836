"""What is put together by hand is what the generated classes would have made of it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.ordinals import LeaseId, Revision
from meshkit.protobuf_bytes import varint
from meshkit.store.etcd_codec import EncodedTxn, encode_txn
from meshkit.store.etcd_late import LATE_FROM, decode_events
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.port import Change, LateChanges, RevisionChanges
from meshkit.store.txn import (
    Attempt,
    CreateRevisionIs,
    Delete,
    Exists,
    Get,
    KeyValue,
    ModRevisionIs,
    Nest,
    NoneModifiedSince,
    Put,
    Txn,
    ValueIs,
)

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.binary(min_size=1, max_size=200)
VALUES = st.one_of(st.binary(max_size=300), st.just(b"v" * 20_000))
PUTS = st.builds(Put, KEYS, VALUES, st.sampled_from([LeaseId(0), LeaseId(1 << 62), LeaseId(7)]))
SINGLE = st.one_of(
    PUTS,
    st.builds(Put, KEYS, st.just(b""), st.just(LeaseId(3)), st.just(True)),
    st.builds(Delete, KEYS, st.one_of(st.just(b""), KEYS)),
    st.builds(Get, KEYS),
    st.builds(Get, KEYS, st.one_of(st.just(b""), KEYS), st.integers(0, 300), st.booleans()),
)
REVISIONS = st.integers(0, 1 << 40)
GUARDS = st.one_of(
    st.builds(ModRevisionIs, KEYS, REVISIONS),
    st.builds(CreateRevisionIs, KEYS, REVISIONS),
    st.builds(ValueIs, KEYS, st.binary(max_size=5)),
    st.builds(Exists, KEYS),
    st.builds(NoneModifiedSince, st.tuples(KEYS, KEYS), REVISIONS),
)
NESTS = st.builds(Nest, st.lists(SINGLE, max_size=5).map(tuple))
DEEP = st.builds(Nest, st.lists(st.one_of(SINGLE, NESTS), max_size=4).map(tuple))
ATTEMPTS = st.builds(
    Attempt,
    st.builds(
        Txn,
        guards=st.lists(GUARDS, max_size=3).map(tuple),
        operations=st.lists(SINGLE, max_size=3).map(tuple),
        otherwise=st.lists(st.builds(Get, KEYS), max_size=2).map(tuple),
    ),
)
TXNS = st.builds(
    Txn,
    guards=st.lists(GUARDS, max_size=3).map(tuple),
    operations=st.lists(st.one_of(SINGLE, DEEP, ATTEMPTS), max_size=6).map(tuple),
    otherwise=st.lists(st.builds(Get, KEYS), max_size=2).map(tuple),
)


@PATIENT
@given(TXNS)
def test_a_transaction_has_the_bytes_of_its_message(txn: Txn) -> None:
    parsed = wire.TxnRequest.FromString(EncodedTxn(txn).SerializeToString())

    assert parsed == encode_txn(txn)


@PATIENT
@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_an_integer_has_the_bytes_that_protobuf_gives_it(number: int) -> None:
    message = wire.PutRequest(lease=number)

    assert wire.PutRequest.FromString(b"\x18" + varint(number)) == message


def _events(changes: int, revision: int) -> list[wire.Event]:
    events = []
    for number in range(changes):
        event = wire.Event(type=number % 2)
        event.kv.key, event.kv.mod_revision = b"/k/%d" % number, revision
        if event.type == wire.Event.PUT:
            event.kv.value, event.kv.version, event.kv.lease = b"v" * number, number + 1, number
            event.kv.create_revision = 3
        events.append(event)
    return events


def _expected(changes: int, revision: int) -> RevisionChanges:
    return RevisionChanges(
        revision=Revision(revision),
        changes=tuple(
            Change(
                is_delete=bool(number % 2),
                item=KeyValue(
                    key=b"/k/%d" % number,
                    value=b"" if number % 2 else b"v" * number,
                    mod_revision=Revision(revision),
                    create_revision=Revision(0 if number % 2 else 3),
                    version=0 if number % 2 else number + 1,
                    lease=LeaseId(0 if number % 2 else number),
                ),
            )
            for number in range(changes)
        ),
    )


def test_events_are_grouped_by_revision_whether_they_are_decoded_late_or_at_once() -> None:
    sizes = [1, LATE_FROM, 2, LATE_FROM - 1, 3 * LATE_FROM]
    events = [e for at, size in enumerate(sizes) for e in _events(size, 10 + at)]

    found = list(decode_events(events))

    assert found == [_expected(size, 10 + at) for at, size in enumerate(sizes)]
    late = [isinstance(changes.changes, LateChanges) for changes in found]
    assert late == [size >= LATE_FROM for size in sizes]


@pytest.mark.parametrize("size", [1, LATE_FROM - 1, LATE_FROM, 40])
def test_what_is_asked_of_late_changes_is_what_the_others_say(size: int) -> None:
    (found,) = decode_events(_events(size, 9))
    expected = _expected(size, 9)

    assert list(found.keys) == list(expected.keys)
    assert found.data_bytes == expected.data_bytes
    assert found.under(b"/k/3") == expected.under(b"/k/3")
    assert found.changes[-1] == expected.changes[-1]
    assert tuple(found.changes[:2]) == expected.changes[:2]
    assert len(found.changes) == size
    assert tuple(found.changes) == expected.changes
    assert found.changes[-1] == expected.changes[-1]
    assert list(decode_events([])) == []
