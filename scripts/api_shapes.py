"""Writes every shape of the automation API from the description that the API itself serves."""

from __future__ import annotations

from typing import Any

from coordinator.api.openapi import SCHEMAS

Json = dict[str, Any]

HEAD = """# Shapes of the automation API

What each object of [the automation API](api.md) holds, made from the same description as
`GET /openapi.json`. A field that may be `null` says so; what the fields mean is in
[the automation API](api.md) and, for words, in [the glossary](glossary.md).
"""
WORDS = {"string": "text", "integer": "whole number", "boolean": "true or false"}


def text() -> str:
    """Return the document."""
    objects = {name: shape for name, shape in SCHEMAS.items() if shape.get("properties")}
    return HEAD + "".join(_section(name, objects[name]) for name in sorted(objects))


def _section(name: str, shape: Json) -> str:
    rows = [f"| `{field}` | {of(kind)} |\n" for field, kind in shape["properties"].items()]
    return f"\n## {name}\n\n| Field | Holds |\n|---|---|\n" + "".join(rows)


def of(kind: Json) -> str:
    """Return a shape in words."""
    match kind:
        case {"$ref": reference}:
            return _referred(reference.rsplit("/", 1)[1])
        case {"oneOf": choices}:
            said = " or ".join(of(each) for each in choices)
        case {"enum": values}:
            said = " or ".join("null" if each is None else f"`{each}`" for each in values)
        case {"type": list(types)}:
            said = " or ".join(_named(each) for each in types)
        case {"type": "array", "items": items}:
            said = f"list of {of(items)}"
        case {"properties": fields}:
            said = "object: " + ", ".join(f"`{name}` {of(each)}" for name, each in fields.items())
        case {"additionalProperties": dict(values)}:
            said = f"object of {of(values)}"
        case _:
            said = _named(kind.get("type", "anything"))
    return said


def _referred(name: str) -> str:
    has_section = bool(SCHEMAS[name].get("properties"))
    return f"[{name}](#{name.lower()})" if has_section else of(SCHEMAS[name])


def _named(kind: str) -> str:
    return WORDS.get(kind, kind)
