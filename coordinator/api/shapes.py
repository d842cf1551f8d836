"""The words in which the API's shapes are written. Pure."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "integer"}
NUMBER_OR_NULL: Json = {"type": ["integer", "null"]}
TEXT_OR_NULL: Json = {"type": ["string", "null"]}
FLAG: Json = {"type": "boolean"}
TEXTS: Json = {"type": "array", "items": TEXT}
OBJECT: Json = {"type": "object"}


def one_of(values: type[Any]) -> Json:
    """Return the shape of an enumeration's value."""
    return {"type": "string", "enum": [member.value for member in values]}


def ref(name: str) -> Json:
    """Return a reference to a named shape."""
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(name: str) -> Json:
    """Return a named shape that may be missing."""
    return {"oneOf": [ref(name), {"type": "null"}]}


def list_of(name: str) -> Json:
    """Return a list of a named shape."""
    return {"type": "array", "items": ref(name)}


def object_of(**fields: Json) -> Json:
    """Return an object with these fields."""
    return {"type": "object", "properties": fields}
