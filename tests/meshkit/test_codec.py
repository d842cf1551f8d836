"""Records as canonical JSON: what survives, what is refused, and in which words."""

import enum
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.codec import Stored, canonical, decode, encode, from_plain, to_plain
from meshkit.errors import CorruptRecord, NewerSchema
from meshkit.model import Group, GroupPolicy, Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence, Token
from meshkit.regional import Checkpoint, GroupCheckpoint, JoinPhase, Permit
from meshkit.vector import ClusterVersionVector, LogName


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen(kw_only=True)
class Paint(Stored):
    """Version 2 renamed `tint` to `colour` and added `litres`."""

    SCHEMA: ClassVar[str] = "paint"
    VERSION: ClassVar[int] = 2

    colour: Colour
    litres: int = 1

    @classmethod
    def upcast(cls, _version: int, fields: dict[str, object]) -> dict[str, object]:
        fields["colour"] = fields.pop("tint")
        return fields


PERMIT = Permit(
    group=GroupName("orders"), epoch=Epoch(3), token=Token(incarnation=1, revision=Revision(57))
)
PERMIT_BYTES = (
    b'{"epoch":3,"group":"orders","schema":"permit/1","token":{"incarnation":1,"revision":57}}'
)


def test_the_bytes_of_a_permit_are_the_documented_ones() -> None:
    """Any etcd client compares these bytes (docs/guarded-writes.md); they must not change."""
    assert encode(PERMIT) == PERMIT_BYTES
    assert decode(Permit, PERMIT_BYTES) == PERMIT


@given(
    source=st.text(),
    sequence=st.integers(0, 2**63 - 1),
    entries=st.dictionaries(st.sampled_from(["a#1", "b#1", "b#2"]), st.integers(1, 2**63 - 1)),
)
def test_a_record_reads_back_as_itself_and_writes_back_as_the_same_bytes(
    source: str, sequence: int, entries: dict[str, int]
) -> None:
    record = Checkpoint(
        source=ClusterName(source),
        incarnation=Incarnation("i"),
        sequence=Sequence(sequence),
        vector=ClusterVersionVector.from_json(entries),
    )
    raw = encode(record)

    assert decode(Checkpoint, raw) == record
    assert encode(decode(Checkpoint, raw)) == raw


@given(st.binary())
def test_raw_bytes_survive(cursor: bytes) -> None:
    """A cursor is an application's key: it need not be text."""
    record = GroupCheckpoint(
        source=ClusterName("us-east"),
        group=GroupName("orders"),
        incarnation=Incarnation("i"),
        phase=JoinPhase.COPYING,
        epoch=Epoch(1),
        cursor=cursor,
    )

    assert decode(GroupCheckpoint, encode(record)) == record


# --- canonical ----------------------------------------------------------------------------------


def test_canonical_bytes_do_not_depend_on_the_order_of_fields() -> None:
    assert (
        canonical({"b": 1, "a": {"d": [1, 2], "c": "ü"}})
        == '{"a":{"c":"ü","d":[1,2]},"b":1}'.encode()
    )


@given(st.dictionaries(st.text(), st.integers()))
def test_equal_values_are_equal_bytes(value: dict[str, int]) -> None:
    shuffled = dict(reversed(value.items()))

    assert canonical(value) == canonical(shuffled)
    assert json.loads(canonical(value)) == value


# --- what a reader does not know ----------------------------------------------------------------


def test_unknown_fields_survive_a_change_by_an_older_process() -> None:
    raw = canonical({**json.loads(PERMIT_BYTES), "colour": {"rgb": [1, None]}})

    changed = attrs.evolve(decode(Permit, raw), epoch=Epoch(4))

    assert json.loads(encode(changed)) == {**json.loads(raw), "epoch": 4}


def test_unknown_fields_do_not_make_records_different() -> None:
    """A newer process's extra field is no reason to see a change."""
    raw = canonical({**json.loads(PERMIT_BYTES), "colour": "red"})

    assert decode(Permit, raw) == PERMIT


def test_an_unknown_field_never_replaces_a_known_one() -> None:
    record = attrs.evolve(PERMIT, unknown={"epoch": 99, "schema": "other/9"})

    assert encode(record) == PERMIT_BYTES


def test_unknown_fields_inside_a_nested_value_are_dropped_on_rewrite() -> None:
    """Only whole records carry unknown fields: a nested value that grows needs a new version."""
    fields = json.loads(PERMIT_BYTES)
    fields["token"]["colour"] = "red"

    record = decode(Permit, canonical(fields))

    assert record == PERMIT
    assert encode(record) == PERMIT_BYTES


def test_missing_fields_take_their_defaults() -> None:
    raw = canonical({"schema": "group/1", "name": "orders", "prefixes": ["/o/"], "members": ["a"]})

    assert decode(Group, raw).policy == GroupPolicy()


# --- versions -----------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_by_name() -> None:
    with pytest.raises(NewerSchema) as refused:
        decode(Permit, b'{"schema":"permit/2","anything":"at all"}')

    assert str(refused.value) == "permit record has schema 2; this MeshKit reads up to 1"
    assert "upgrade this process" in refused.value.hint
    assert refused.value.code == "newer_schema"


def test_the_schema_before_is_brought_up_to_date_with_what_it_does_not_know() -> None:
    raw = canonical({"schema": "paint/1", "tint": "red", "gloss": True})

    paint = decode(Paint, raw)

    assert paint == Paint(colour=Colour.RED)
    assert json.loads(encode(paint)) == {
        "schema": "paint/2",
        "colour": "red",
        "litres": 1,
        "gloss": True,
    }


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"17",
        b'"permit/1"',
        b"{}",
        b'{"schema":"permit"}',
        b'{"schema":"permit/one"}',
        b'{"schema":null}',
        PERMIT_BYTES[:-1],
    ],
)
def test_bytes_that_are_no_record_are_refused_and_shown(raw: bytes) -> None:
    with pytest.raises(CorruptRecord) as refused:
        decode(Permit, raw)

    assert str(refused.value) == f"not a permit record: {raw[:80]!r}"


def test_a_record_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(CorruptRecord, match="expected a checkpoint record, found 'permit'"):
        decode(Checkpoint, PERMIT_BYTES)


@pytest.mark.parametrize(
    "damage",
    [
        {"epoch": "three"},
        {"epoch": None},
        {"token": 57},
        {"token": {"incarnation": 1}},
        {"token": {"incarnation": -1, "revision": 57}},
    ],
)
def test_a_record_with_a_damaged_field_is_refused(damage: Mapping[str, Any]) -> None:
    raw = canonical({**json.loads(PERMIT_BYTES), **damage})

    with pytest.raises(CorruptRecord, match="permit record is damaged"):
        decode(Permit, raw)


@pytest.mark.parametrize("field", ["group", "epoch", "token"])
def test_a_record_without_a_required_field_is_refused(field: str) -> None:
    fields = json.loads(PERMIT_BYTES)
    del fields[field]

    with pytest.raises(CorruptRecord, match="permit record is damaged"):
        decode(Permit, canonical(fields))


@pytest.mark.parametrize("cursor", ["not base64!", 7, "Zg"])
def test_damaged_raw_bytes_are_refused(cursor: object) -> None:
    raw = canonical(
        {
            "schema": "group-checkpoint/1",
            "source": "a",
            "group": "g",
            "incarnation": "i",
            "phase": "copying",
            "epoch": 1,
            "cursor": cursor,
        }
    )

    with pytest.raises(CorruptRecord):
        decode(GroupCheckpoint, raw)


def test_an_unknown_member_of_an_enumeration_is_refused() -> None:
    with pytest.raises(CorruptRecord, match="paint record is damaged"):
        decode(Paint, canonical({"schema": "paint/2", "colour": "ultraviolet"}))


@pytest.mark.parametrize("vector", [None, [], "x", 7, {"a#i": "x"}])
def test_a_vector_that_is_no_object_of_numbers_is_refused(vector: object) -> None:
    fields = {"schema": "checkpoint/1", "source": "a", "incarnation": "i", "sequence": 1}

    with pytest.raises(CorruptRecord, match="checkpoint record is damaged"):
        decode(Checkpoint, canonical({**fields, "vector": vector}))


@pytest.mark.parametrize("more", [b'"\xff"', b"1" * 5_000, b"[1,"])
def test_an_unknown_field_that_cannot_be_read_makes_the_record_unreadable(more: bytes) -> None:
    """It could not be carried through unchanged."""
    with pytest.raises(CorruptRecord):
        decode(Permit, PERMIT_BYTES[:-1] + b',"strange":' + more + b"}")


def test_plain_data_from_outside_brings_no_unknown_fields() -> None:
    plain = {**to_plain(PERMIT), "_unknown": {"colour": "red"}, "unknown": {"colour": "red"}}

    assert encode(from_plain(Permit, plain)) == PERMIT_BYTES


# --- plain data for people ----------------------------------------------------------------------


def test_plain_data_has_neither_schema_nor_unknown_fields() -> None:
    record = attrs.evolve(PERMIT, unknown={"colour": "red"})

    assert to_plain(record) == {
        "group": "orders",
        "epoch": 3,
        "token": {"incarnation": 1, "revision": 57},
    }


def test_plain_data_reads_back() -> None:
    lineage = Lineage(
        parent=ClusterName("us-east"),
        parent_incarnation=Incarnation("i"),
        parent_epoch=Epoch(1),
        sequence=Sequence(1000),
    )

    assert from_plain(Lineage, to_plain(lineage)) == lineage


def test_a_vector_is_plain_as_cluster_and_incarnation() -> None:
    log = LogName(cluster=ClusterName("us-east"), incarnation=Incarnation("a"))

    assert to_plain(ClusterVersionVector.of({log: Sequence(5)})) == {"us-east#a": 5}


def test_plain_data_that_does_not_fit_names_every_place() -> None:
    with pytest.raises(ValueError, match="parent") as refused:
        from_plain(Lineage, {"parent_epoch": "x", "sequence": 1, "parent_incarnation": "i"})

    assert "parent_epoch" in str(refused.value)
