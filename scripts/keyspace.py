"""Writes `docs/keyspace.md` from `meshkit/keys.py` and the classes of the stored records."""

from __future__ import annotations

import ast
import enum
import inspect
import itertools
import sys
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import attrs

from meshkit.codec import Stored
from meshkit.keys import CoordinationKeys, RegionalKeys
from scripts.records import PACKAGES, stored_classes

ROOT = Path(__file__).resolve().parent.parent

# Which record lies at the key that a builder or constant of meshkit/keys.py names.
RECORD_AT: Mapping[str, Mapping[str, str]] = {
    "CoordinationKeys": {
        "cluster": "cluster",
        "group": "group",
        "authority": "authority",
        "seal": "seal",
        "routing": "routing",
        "holder": "holder",
        "failover_active": "failover-active",
        "failover": "failover",
        "failover_event": "failover-event",
        "command": "command",
        "answer": "answer",
        "health": "cluster-health",
        "stream_status": "stream-status",
        "head": "log-head",
        "audit": "audit-entry",
        "audit_tip": "audit-tip",
        "observation": "observation",
        "standby_position": "standby-position",
        "verify": "verify",
        "verify_result": "verify-result",
        "replay": "replay",
        "replay_result": "replay-result",
        "rejoin": "rejoin",
        "automation_pause": "automation-pause",
        "pause_of_all": "replication-pause",
        "group_pause": "replication-pause",
        "stream_pause": "replication-pause",
        "pact": "pact",
        "incarnation": "coordination-incarnation",
        "suspension": "suspension",
        "adoption": "adoption",
        "adopted": "coordination-adoption",
        "automatic": "automatic",
    },
    "RegionalKeys": {
        "permit": "permit",
        "fence": "fence",
        "fence_index": "fence-index",
        "segment_opened": "segment-opened",
        "segment_scope": "segment-scope",
        "segment_cut": "segment-cut",
        "beat": "beat",
        "checkpoint": "checkpoint",
        "findings": "verify-findings",
        "quarantine": "quarantine-entry",
        "group_checkpoint": "group-checkpoint",
        "foreign": "foreign-writes",
        "attachment": "attachment",
        "lease_claim": "lease-claim",
        "routing": "routing",
        "incarnation": "region-incarnation",
        "leases": "chain-leases",
        "pact": "pact",
        "promise": "promise",
        "promises_refused": "promises-refused",
        "parts": "parts-checkpoint",
        "parked": "parked-write",
        "witness": "witness",
        "coordination_seen": "observation",
        "suspended": "suspension",
        "replaced": "suspension",
    },
}

# What lies at the keys that hold no record.
PLAIN_AT: Mapping[str, Mapping[str, str]] = {
    "CoordinationKeys": {"coordinator_leader": "the name of a coordinator"},
    "RegionalKeys": {
        "replicator_leader": "the name of a replicator",
        "quarantine_chunk": "bytes",
    },
}

INTRODUCTION = """\
# The keyspace

Everything MeshKit keeps in etcd lies under `/mesh/v1/`; no group's prefix may overlap `/mesh/`.
Values are canonical JSON (keys sorted, no spaces, UTF-8), so equal records are equal bytes, and
`etcdctl get` shows them. Raw key bytes inside a record are base64. Each value names its schema and
version in `schema`, as `permit/1`. A reader keeps the fields it does not know and writes them back;
a record of a newer *version* it refuses by name. Golden samples of all lie in `tests/golden/`.

The permit, the beat and the routing record are a contract with clients: see
[guarded writes](guarded-writes.md). Words are those of the [glossary](glossary.md).

A key marked *reserved* has its name fixed, and nothing in this version writes or reads it.
"""


class _Placeholder(int):
    """Stands for a number in a key, however it is formatted."""

    name: str

    def __new__(cls, name: str) -> Self:
        made = super().__new__(cls, 0)
        made.name = name
        return made

    def __format__(self, format_spec: str) -> str:
        return f"<{self.name}>"


def text() -> str:
    """Return the document."""
    parts = [INTRODUCTION]
    for title, keyspace in (
        ("The coordination etcd", CoordinationKeys),
        ("Each regional etcd", RegionalKeys),
    ):
        parts.append(f"## {title}\n\n| Key | Record | Holds |\n|---|---|---|\n")
        parts[-1] += "".join(f"| {' | '.join(row)} |\n" for row in _rows(keyspace))
    parts.append("## The records\n")
    parts += [_section(cls) for cls in stored_classes()]
    parts.append("## Values inside records\n")
    parts += [_section(cls) for cls in sorted(_nested(), key=lambda cls: cls.__name__)]
    return "\n".join(parts)


# --- keys ---------------------------------------------------------------------------------------


def forgotten() -> list[str]:
    """Return the keys in use of which nobody says what lies there."""
    return [
        f"{keyspace.__name__}.{name}"
        for keyspace in (CoordinationKeys, RegionalKeys)
        for _, name, _ in _keys(keyspace)
        if _is_used(keyspace, name) and not _holds(keyspace, name)
    ]


def _rows(keyspace: type) -> Iterator[tuple[str, str, str]]:
    for key, name, doc in sorted(_keys(keyspace)):
        reserved = "" if _is_used(keyspace, name) else " *Reserved.*"
        yield f"`{key}`", _holds(keyspace, name), _one_line(doc) + reserved


def _holds(keyspace: type, name: str) -> str:
    """Return what lies at a key; nothing if nobody says."""
    schema = RECORD_AT[keyspace.__name__].get(name, "")
    return f"[`{schema}`](#{schema})" if schema else PLAIN_AT[keyspace.__name__].get(name, "")


def _keys(keyspace: type) -> list[tuple[str, str, str]]:
    """Return every key that is not a prefix, as it is shown, with its name and its docstring."""
    said = _field_docs(keyspace)
    rows = []
    for name, member in vars(keyspace).items():
        if isinstance(member, bytes) and not member.endswith(b"/"):
            rows.append((member.decode(), name, said.get(name, "")))
        elif isinstance(member, staticmethod):
            key = _shown_key(member.__func__)
            if not key.endswith("/"):
                rows.append((key, name, inspect.getdoc(member.__func__) or ""))
    return rows


def _shown_key(builder: Any) -> str:
    """Return the key that a builder makes, with its parameters in angle brackets."""
    arguments = []
    for parameter in inspect.signature(builder).parameters.values():
        kind = parameter.annotation.removesuffix("Name").removesuffix("Id").lower()
        is_number = parameter.annotation in {"int", "Epoch"}
        shown = kind if parameter.name == "name" and kind != "str" else parameter.name
        arguments.append(_Placeholder(shown) if is_number else f"<{shown}>")
    key = builder(*arguments)
    assert isinstance(key, bytes), "a builder builds a key"
    return key.decode()


def _is_used(keyspace: type, name: str) -> bool:
    return f"{keyspace.__name__}.{name}" in _names_used()


@cache
def _names_used() -> frozenset[str]:
    """Return `RegionalKeys.permit` and so on, for every key that the product's code names."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            known_as = {
                alias.asname or alias.name: alias.name
                for node in nodes
                if isinstance(node, ast.ImportFrom) and node.module == "meshkit.keys"
                for alias in node.names
            }
            for node in nodes:
                match node:
                    case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in known_as:
                        found.add(f"{known_as[name]}.{attr}")
    return frozenset(found)


# --- records ------------------------------------------------------------------------------------


def _nested() -> set[type[Any]]:
    """Return the attrs classes and enumerations that records are made of."""
    found: set[type[Any]] = set()
    todo: list[Any] = list(stored_classes())
    while todo:
        for hint in typing.get_type_hints(todo.pop()).values():
            for cls in _classes_in(hint):
                if cls not in found and not issubclass(cls, Stored):
                    found.add(cls)
                    todo += [cls] if attrs.has(cls) else []
    return found


def _classes_in(hint: Any) -> Iterator[type[Any]]:
    for argument in typing.get_args(hint):
        yield from _classes_in(argument)
    plain = getattr(hint, "__supertype__", hint)
    if isinstance(plain, type) and plain.__module__.partition(".")[0] in PACKAGES:
        yield plain


def _section(cls: type[Any]) -> str:
    is_record = issubclass(cls, Stored)
    title = cls.SCHEMA if is_record else cls.__name__
    version = f" version {cls.VERSION}," if is_record else ""
    lines = [f"### {title}\n", f"`{cls.__module__}.{cls.__name__}`,{version}".rstrip(",") + "\n"]
    lines.append((inspect.getdoc(cls) or "") + "\n")
    said = _field_docs(cls)
    if issubclass(cls, enum.Enum):
        lines += ["| Value | Means |", "|---|---|"]
        lines += [f"| `{m.value}` | {_one_line(said.get(m.name, ''))} |" for m in cls]
    elif title != "ClusterVersionVector":
        lines += ["| Field | Type | Means |", "|---|---|---|"]
        annotations = _annotations(cls)
        for field in attrs.fields(cls):
            if field.name in annotations:
                shown = annotations[field.name].replace("|", "\\|")
                lines.append(
                    f"| `{field.name}` | {shown} | {_one_line(said.get(field.name, ''))} |"
                )
    return "\n".join(lines).replace(" |  |", " | |") + "\n"


def _one_line(doc: str) -> str:
    return " ".join(doc.split()).replace("|", "\\|")


def _body(cls: type[Any]) -> list[ast.stmt]:
    source = Path(str(sys.modules[cls.__module__].__file__)).read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            return node.body
    raise LookupError(cls)


def _annotations(cls: type[Any]) -> dict[str, str]:
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in _body(cls)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _field_docs(cls: type[Any]) -> dict[str, str]:
    """Return the string beneath each field, by field."""
    docs: dict[str, str] = {}
    body = _body(cls)
    for node, after in itertools.pairwise(body):
        match node, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                docs[name] = inspect.cleandoc(doc)
    return docs
