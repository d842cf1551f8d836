"""YAML files to frozen attrs records, with errors that say where and what was expected.

The YAML is read as a node tree, not as plain objects, so that every complaint carries its line.
All problems of a file are reported together. Field types understood: `str`, `int`, `float`,
`bool`, `Path` (relative to the file), enums, names, attrs classes, `tuple[X, ...]`, `Mapping[str,
X]`, `X | None`, and any class with a `parse(text)` classmethod raising `ValueError`.
"""

from __future__ import annotations

import difflib
import enum
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import yaml

from meshkit import names
from meshkit.errors import InvalidConfig, InvalidInput

R = TypeVar("R")

_BYTES_MAX = 1_000_000
_CORRECT_IT = "correct the file; mesh config validate FILE checks it and starts nothing"
_MISSING = object()
_NULL = "tag:yaml.org,2002:null"
_NAMES: Mapping[Any, Callable[[str], str]] = {
    names.ClusterName: names.cluster_name,
    names.GroupName: names.group_name,
    names.FailoverId: names.failover_id,
}
_EXPECTED: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "the path of a file",
    names.ClusterName: "a cluster name",
    names.GroupName: "a group name",
}


def load_record(cls: type[R], path: Path) -> R:
    """Return the record in the file `path`.

    Raises:
        InvalidConfig: the file cannot be read, is not YAML, or does not fit; every place is named.
    """
    return parse_record(cls, read_text(path), source=str(path), directory=path.parent)


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        InvalidConfig: it is not there, not readable, not text or larger than a megabyte.
    """
    try:
        raw = path.read_bytes()
        if len(raw) > _BYTES_MAX:
            raise InvalidConfig(f"{path} has {len(raw)} bytes; at most {_BYTES_MAX} are read")
        return raw.decode()
    except OSError as error:
        raise InvalidConfig(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path} is not UTF-8 text") from error


def parse_record(cls: type[R], text: str, *, source: str, directory: Path) -> R:
    """Return the record in YAML `text`; `source` names it in errors.

    Raises:
        InvalidConfig: it is not YAML or does not fit; every place is named.
    """
    node = compose(text, source=source)
    if node is None:
        raise InvalidConfig(f"{source} is empty")
    return record_of(cls, node, source=source, directory=directory)


def record_of(cls: type[R], node: yaml.Node, *, source: str, directory: Path) -> R:
    """Return the record in a YAML node of `source`.

    Raises:
        InvalidConfig: it does not fit; every place is named.
    """
    reader = _Reader(directory)
    record = reader.read(cls, node, "")
    if reader.problems:
        problems = "\n".join(f"{source}:{problem}" for problem in reader.problems)
        raise InvalidConfig(problems, hint=_CORRECT_IT)
    return typing.cast("R", record)


def compose(text: str, *, source: str) -> yaml.Node | None:
    """Return the one document in `text` as a node tree, or None if it is empty.

    Raises:
        InvalidConfig: it is not YAML; says the line and column.
    """
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1"
        words = f"{source}:{place}: not valid YAML: {error.problem}"
        raise InvalidConfig(words, hint=_CORRECT_IT) from error
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{source}: not valid YAML: {error}", hint=_CORRECT_IT) from error


def documents(text: str, *, source: str) -> list[yaml.Node]:
    """Return every document in `text` as a node tree; empty documents are left out.

    Raises:
        InvalidConfig: it is not YAML; says the line and column.
    """
    try:
        return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1"
        words = f"{source}:{place}: not valid YAML: {error.problem}"
        raise InvalidConfig(words, hint=_CORRECT_IT) from error


def plain_of(node: yaml.Node) -> Any:
    """Return a node tree as plain lists, dicts and scalars."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Reader:
    """Walks a node tree along the types of a record, gathering problems."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.problems: list[str] = []

    def read(self, wanted: Any, node: yaml.Node, path: str) -> Any:
        """Return the value of `node` as `wanted`, or `_MISSING` after noting a problem."""
        origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
        if origin in (typing.Union, types.UnionType):
            if node.tag == _NULL:
                return None
            return self.read(next(a for a in arguments if a is not types.NoneType), node, path)
        if origin is tuple:
            return self._list(arguments[0], node, path)
        if origin is not None and issubclass(origin, Mapping):
            return self._mapping(arguments[1], node, path)
        if attrs.has(wanted) and not hasattr(wanted, "parse"):
            return self._record(wanted, node, path)
        return self._scalar(wanted, node, path)

    def _problem(self, node: yaml.Node, path: str, message: str) -> Any:
        where = f"{path}: " if path else ""
        self.problems.append(f"{node.start_mark.line + 1}: {where}{message}")
        return _MISSING

    def _record(self, cls: type[Any], node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._problem(node, path, f"expected fields, found {_shown(node)}")
        fields = _fields(cls)
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        before = len(self.problems)
        seen: set[str] = set()
        for key_node, value_node in node.value:
            name = str(key_node.value)
            below = f"{path}.{name}" if path else name
            if name not in fields:
                self._problem(key_node, below, f"unknown field{_suggestion(name, fields)}")
            elif name in seen:
                self._problem(key_node, below, "given twice")
            else:
                seen.add(name)
                values[name] = self.read(hints[name], value_node, below)
        for name, field in fields.items():
            if name not in seen and field.default is attrs.NOTHING:
                below = f"{path}.{name}" if path else name
                self._problem(node, below, f"is required: {expectation(hints[name])}")
        if len(self.problems) > before:
            return _MISSING
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            return self._problem(node, path, str(error.args[0] if error.args else error))

    def _list(self, wanted: Any, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self._problem(
                node, path, f"expected a list of {expectation(wanted)}, found {_shown(node)}"
            )
        return tuple(self.read(wanted, n, f"{path}[{i}]") for i, n in enumerate(node.value))

    def _mapping(self, wanted: Any, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._problem(
                node, path, f"expected name: {expectation(wanted)}, found {_shown(node)}"
            )
        return {str(k.value): self.read(wanted, v, f"{path}.{k.value}") for k, v in node.value}

    def _scalar(self, wanted: Any, node: yaml.Node, path: str) -> Any:
        problem = f"expected {expectation(wanted)}, found {_shown(node)}"
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            return self._problem(node, path, problem)
        if wanted is Path:
            return (self._directory / Path(node.value).expanduser()).absolute()
        parse = _NAMES.get(wanted) or getattr(wanted, "parse", None)
        try:
            if parse:
                return parse(node.value)
            return _plain_scalar(wanted, node)
        except (ValueError, InvalidInput) as error:
            return self._problem(node, path, str(error) if parse else problem)


def _plain_scalar(wanted: Any, node: yaml.ScalarNode) -> Any:
    wanted = getattr(wanted, "__supertype__", wanted)
    if issubclass(wanted, enum.Enum):
        return wanted(node.value)
    if wanted is str:
        return node.value
    plain = plain_of(node)
    if wanted is float and type(plain) is int:
        return float(plain)
    if type(plain) is not wanted:
        raise ValueError
    return plain


def _fields(cls: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """Return what people write of a record: not what a newer version may have left in it."""
    return {a.name: a for a in attrs.fields(cls) if a.init and a.alias != "unknown"}


def expectation(wanted: Any) -> str:
    """Return words for what a field of this type takes."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return expectation(next(a for a in arguments if a is not types.NoneType))
    if origin is not None:
        return f"a list of {expectation(arguments[0])}" if origin is tuple else "a mapping"
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in wanted)
    if attrs.has(wanted) and not hasattr(wanted, "EXPECTED"):
        return "fields " + ", ".join(_fields(wanted))
    default = _EXPECTED.get(getattr(wanted, "__supertype__", wanted), "a value")
    return str(getattr(wanted, "EXPECTED", _EXPECTED.get(wanted, default)))


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if node.tag == _NULL:
        return "nothing"
    return repr(node.value)


def _suggestion(name: str, fields: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, fields, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(sorted(fields))}"
