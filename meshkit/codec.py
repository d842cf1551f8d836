"""Stored records: frozen attrs classes to canonical JSON and back, with schema versions. Pure.

Canonical means: keys sorted, no spaces, UTF-8. So equal records are equal bytes, and a record can
be compared or hashed as bytes. Fields a reader does not know are kept and written back, so that a
newer writer loses nothing when an older one updates its record; this holds for the fields of the
record itself, so a nested value that grows needs a new schema version. A record of a newer
*schema* is refused by name; `upcast` brings the previous one up to date.
"""

from __future__ import annotations

import base64
import enum
import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, cast

import attrs
import cattrs
import msgspec
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from meshkit.errors import CorruptRecord, NewerSchema
from meshkit.vector import ClusterVersionVector

SCHEMA_FIELD = "schema"
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@attrs.frozen(kw_only=True)
class Stored:
    """Base of every record kept in etcd. `SCHEMA` is its name, `VERSION` its schema version."""

    SCHEMA: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1

    _unknown: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False)
    """Fields this version does not know, carried through unchanged: `unknown` to whoever makes one.

    Neither converter shows it: msgspec passes over names like this, cattrs is told to.
    """

    @property
    def unknown(self) -> Mapping[str, Any]:
        """The fields of a newer version."""
        return self._unknown

    @classmethod
    def upcast(cls, _version: int, fields: dict[str, object]) -> dict[str, object]:
        """Return `fields` of schema `_version` (the one before `VERSION`) in today's shape."""
        return fields


S = TypeVar("S", bound=Stored)

_REMEMBERED_BYTES_MAX = 2_048
"""Larger records are decoded each time; so what is remembered stays below some 100 MiB."""
_HUGE_BYTES_MIN = 16_384
_HUGE_REMEMBERED = 8
"""So many records of at least so many bytes are remembered nevertheless."""


def encode(record: Stored) -> bytes:
    """Return the record as canonical JSON bytes."""
    known = _names(type(record))  # type: ignore[arg-type] # a class has a hash
    named = {**record.unknown, **{name: getattr(record, name) for name in known}}
    named[SCHEMA_FIELD] = f"{record.SCHEMA}/{record.VERSION}"
    return _ENCODER.encode(named)


def decode(cls: type[S], raw: bytes) -> S:
    """Return the record in `raw`. Records are immutable, so the same bytes may be the same object.

    Raises:
        NewerSchema: it was written by a newer MeshKit.
        CorruptRecord: it is not a record of this class at all.
    """
    if _REMEMBERED_BYTES_MAX < len(raw) < _HUGE_BYTES_MIN:
        return _decode(cls, raw)
    # Mirrors show thousands of small records again and again: groups, authorities, fences. And the
    # few that tell of every group of a region are read by everybody who looks at the mesh.
    remember = _remembered if len(raw) <= _REMEMBERED_BYTES_MAX else _remembered_huge
    remembered = remember(cls, raw)  # type: ignore[arg-type] # a class has a hash
    return cast("S", remembered)


def _decode(cls: type[S], raw: bytes) -> S:
    try:
        fields = _TOP_LEVEL.decode(raw)
        name, _, version_text = str(msgspec.json.decode(fields.pop(SCHEMA_FIELD))).partition("/")
        version = int(version_text)
    except (ValueError, KeyError) as error:
        raise CorruptRecord(f"not a {cls.SCHEMA} record: {raw[:80]!r}") from error
    if name != cls.SCHEMA:
        raise CorruptRecord(f"expected a {cls.SCHEMA} record, found {name!r}")
    if version > cls.VERSION:
        raise NewerSchema(
            f"{name} record has schema {version}; this MeshKit reads up to {cls.VERSION}",
            hint="upgrade this process: another one has already been upgraded",
        )
    try:
        if version < cls.VERSION:
            return _decode_older(cls, version, raw)
        record: S = _decoder(cls).decode(raw)  # type: ignore[arg-type] # a class has a hash
        strange = fields.keys() - _names(cls)  # type: ignore[arg-type] # a class has a hash
        unknown = {key: json.loads(bytes(fields[key])) for key in strange}
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptRecord(f"{name} record is damaged: {error} in {raw[:200]!r}") from error
    return attrs.evolve(record, unknown=unknown) if unknown else record


def _decode_older(cls: type[S], version: int, raw: bytes) -> S:
    fields: dict[str, Any] = json.loads(raw)
    del fields[SCHEMA_FIELD]
    fields = cls.upcast(version, fields)
    known = _names(cls)  # type: ignore[arg-type] # a class has a hash
    unknown = {key: value for key, value in fields.items() if key not in known}
    record = msgspec.convert(fields, cls, dec_hook=_from_json)
    return attrs.evolve(record, unknown=unknown) if unknown else record


@functools.cache
def _names(cls: type[Stored]) -> frozenset[str]:
    return frozenset(field.name for field in attrs.fields(cls)) - {"_unknown"}


@functools.cache
def _decoder(cls: type[Stored]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(cls, dec_hook=_from_json)


def _to_json(value: object) -> object:
    if isinstance(value, ClusterVersionVector):
        return value.to_json()
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"no stored form of {type(value).__name__}")


def _from_json(cls: type[Any], value: Any) -> object:
    if cls is ClusterVersionVector:
        if not isinstance(value, dict):
            raise ValueError(f"a vector is an object, not {type(value).__name__}")
        return ClusterVersionVector.from_json(value)
    raise NotImplementedError(f"no stored form of {cls.__name__}")


_ENCODER = msgspec.json.Encoder(enc_hook=_to_json, order="sorted")
_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])


@functools.lru_cache(maxsize=16_384)
def _remembered(cls: type[Stored], raw: bytes) -> Stored:
    return _decode(cls, raw)


@functools.lru_cache(maxsize=_HUGE_REMEMBERED)
def _remembered_huge(cls: type[Stored], raw: bytes) -> Stored:
    return _decode(cls, raw)


def canonical(fields: object) -> bytes:
    """Return any JSON value as canonical bytes."""
    return _CANONICAL.encode(fields).encode()


def to_plain(record: object) -> Any:
    """Return an attrs value as plain JSON-ready data, without the schema (for APIs and tables)."""
    return _converter().unstructure(record)


def from_plain(cls: type[Any], plain: object) -> Any:
    """Return the attrs value of plain data that came from outside.

    Raises:
        ValueError: it does not fit; the message lists every place that does not.
    """
    try:
        return _converter().structure(plain, cls)
    except cattrs.BaseValidationError as error:
        raise ValueError("; ".join(cattrs.transform_error(error))) from error


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=False)
    converter.register_unstructure_hook(ClusterVersionVector, lambda v: v.to_json())
    converter.register_structure_hook(
        ClusterVersionVector, lambda v, _: ClusterVersionVector.from_json(v)
    )
    converter.register_unstructure_hook(bytes, lambda b: base64.b64encode(b).decode())
    converter.register_structure_hook(bytes, lambda b, _: base64.b64decode(b, validate=True))
    converter.register_unstructure_hook(enum.Enum, lambda member: member.value)
    converter.register_structure_hook_factory(
        lambda cls: isinstance(cls, type) and issubclass(cls, Stored),
        lambda cls: make_dict_structure_fn(cls, converter, _unknown=override(omit=True)),
    )
    converter.register_unstructure_hook_factory(
        lambda cls: isinstance(cls, type) and issubclass(cls, Stored),
        lambda cls: make_dict_unstructure_fn(cls, converter, _unknown=override(omit=True)),
    )
    return converter
