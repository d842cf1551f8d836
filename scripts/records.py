"""Finds every class of stored record there is, and makes a sample of each with all fields set."""

from __future__ import annotations

import enum
import importlib
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from meshkit.codec import Stored
from meshkit.vector import ClusterVersionVector

PACKAGES = ("meshkit", "fencing", "coordinator", "replicator")


def stored_classes() -> list[type[Stored]]:
    """Return every class of stored record of the product, by schema name."""
    for module_name in sorted(_modules()):
        importlib.import_module(module_name)
    return sorted((c for c in _subclasses(Stored) if _is_ours(c)), key=lambda cls: cls.SCHEMA)


def sample_of(cls: type[Any], *, salt: str = "") -> Any:
    """Return an instance with every field set to something that is not its default.

    The same class gives the same sample, whatever else changes.
    """
    hints = typing.get_type_hints(cls)
    values = {
        field.alias: _value(hints[field.name], f"{salt}{field.name}")
        for field in attrs.fields(cls)
        if field.init and field.alias != "unknown"
    }
    return cls(**values)


def _modules() -> Iterator[str]:
    for package_name in PACKAGES:
        package = importlib.import_module(package_name)
        yield package_name
        for found in pkgutil.walk_packages(package.__path__, f"{package_name}."):
            if not found.name.endswith("__main__"):
                yield found.name


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def _is_ours(cls: type[Any]) -> bool:
    """Tell the class that its module names from the one attrs made it from, and from tests'."""
    named = getattr(sys.modules[cls.__module__], cls.__name__, None)
    return named is cls and cls.__module__.partition(".")[0] in PACKAGES


def _value(wanted: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return _value(next(a for a in arguments if a is not types.NoneType), name)
    if origin is tuple:
        return (_value(arguments[0], f"{name}-1"), _value(arguments[0], f"{name}-2"))
    if origin is not None and issubclass(origin, Mapping):
        return {_value(arguments[0], f"{name}-key"): _value(arguments[1], f"{name}-value")}
    plain = getattr(wanted, "__supertype__", wanted)
    if plain is ClusterVersionVector:
        return ClusterVersionVector.from_json({"us-east#a1": 1000})
    if attrs.has(plain):
        return sample_of(plain, salt=f"{name}-")
    return _scalar(plain, name)


def _scalar(wanted: Any, name: str) -> Any:
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return list(wanted)[-1]
    samples: dict[Any, Any] = {
        Any: f"any {name}",
        bool: True,
        int: 100 + sum(name.encode()),
        float: 0.5,
        bytes: name.encode() + b"\x00\xff",
        str: f"{name} ü",
    }
    assert wanted in samples, f"no sample for a field of type {wanted!r}"
    return samples[wanted]
