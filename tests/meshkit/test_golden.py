"""Every stored record has a golden sample, and readers go on reading the old ones.

A failure here means that the bytes in somebody's etcd change. If that is meant: raise `VERSION`
and write `upcast` (or add only fields with defaults), then `make golden` and review the difference.
"""

import json
from pathlib import Path

import attrs
import pytest

from meshkit.codec import SCHEMA_FIELD, Stored, decode, encode
from scripts import golden, records

CLASSES: list[type[Stored]] = records.stored_classes()
SAMPLES = sorted(golden.FOLDER.glob("*.json"))


def by_schema(cls: type[Stored]) -> str:
    return cls.SCHEMA


def test_there_are_stored_records() -> None:
    assert len(CLASSES) > 20


def test_no_two_classes_share_a_schema_name() -> None:
    """Else one would read the other's bytes."""
    names = [cls.SCHEMA for cls in CLASSES]

    assert sorted(set(names)) == sorted(names)
    assert all(names)


@pytest.mark.parametrize("cls", CLASSES, ids=by_schema)
def test_every_record_reads_and_writes_its_golden_sample_identically(cls: type[Stored]) -> None:
    path = golden.path_of(cls)
    assert path.exists(), f"{cls.__name__} has no golden sample: make golden"
    raw = path.read_bytes().rstrip(b"\n")

    assert encode(decode(cls, raw)) == raw


@pytest.mark.parametrize("cls", CLASSES, ids=by_schema)
def test_every_golden_sample_means_what_it_meant(cls: type[Stored]) -> None:
    """Reading and writing alike is not enough: a field might be read into the wrong place."""
    raw = golden.path_of(cls).read_bytes()

    assert decode(cls, raw) == records.sample_of(cls)


@pytest.mark.parametrize("cls", CLASSES, ids=by_schema)
def test_every_golden_sample_sets_every_field(cls: type[Stored]) -> None:
    fields = json.loads(golden.path_of(cls).read_bytes())

    wanted = {a.name for a in attrs.fields(cls)} - {"_unknown"}
    assert {*fields} == wanted | {SCHEMA_FIELD}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_golden_sample_is_of_a_record_and_version_still_read(path: Path) -> None:
    """Readers accept today's version and those before; a sample is removed with its upcast."""
    schema, _, version = path.stem.rpartition("-")
    cls = {c.SCHEMA: c for c in CLASSES}.get(schema)

    assert cls is not None, f"no record has schema {schema!r} any more: remove {path.name}"
    assert int(version) <= cls.VERSION
    decode(cls, path.read_bytes())


@pytest.mark.parametrize("cls", CLASSES, ids=by_schema)
def test_every_record_keeps_fields_it_does_not_know(cls: type[Stored]) -> None:
    """An older process must not erase what a newer one wrote."""
    fields = json.loads(golden.path_of(cls).read_bytes())
    fields["from_the_future"] = {"deep": [1, {"deeper": None}]}
    raw = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    assert encode(decode(cls, raw)) == raw
