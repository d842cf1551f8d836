"""What the demo keeps in etcd: objects from a file of JSON lines, or generated ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from meshkit.errors import InvalidInput
from meshkit.keys import RESERVED
from meshkit.prefixes import overlaps

ORDERS_PREFIX = "/orders/"
_OBJECTS_MAX = 100_000
_BATCH_OBJECTS_MAX = 50
_BATCH_BYTES_MAX = 512 * 1024
_SERVICES = ("cart", "catalog", "checkout", "payments", "search", "shipping")
_ZONES = ("a", "b", "c")


@attrs.frozen(kw_only=True)
class StoredObject:
    """One key and its value."""

    key: str
    value: str


def load_objects(path: Path | None) -> list[StoredObject]:
    """Return the objects in a file of JSON lines with `key` and `value`, or generated ones.

    Raises:
        InvalidInput: the file cannot be read, or a line is not such an object; says which.
    """
    if path is None:
        return list(generated())
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error
    parsed = [_parsed(line, f"{path}:{n}") for n, line in enumerate(lines, start=1) if line]
    objects = list({obj.key: obj for obj in parsed}.values())
    if not 1 <= len(objects) <= _OBJECTS_MAX:
        raise InvalidInput(f"{path} has {len(objects)} objects; 1 to {_OBJECTS_MAX} are taken")
    return objects


def batches(objects: Sequence[StoredObject]) -> Iterator[list[StoredObject]]:
    """Yield the objects in transactions that etcd accepts (128 operations, 1.5 MiB)."""
    batch: list[StoredObject] = []
    size = 0
    for obj in objects:
        bytes_ = len(obj.key.encode()) + len(obj.value.encode())
        if batch and (len(batch) == _BATCH_OBJECTS_MAX or size + bytes_ > _BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(obj)
        size += bytes_
    yield batch


def common_prefix(objects: Sequence[StoredObject]) -> str:
    """Return the longest prefix of whole path segments that all keys share.

    Raises:
        InvalidInput: they share none, or it overlaps what the demo or MeshKit needs.
    """
    segments = [obj.key.split("/")[:-1] for obj in objects]
    shared = [parts[0] for parts in zip(*segments, strict=False) if len(set(parts)) == 1]
    prefix = "/".join([*shared, ""])
    if len(prefix.strip("/")) == 0:
        raise InvalidInput("the keys have no common prefix such as /registry/")
    for taken in (ORDERS_PREFIX.encode(), RESERVED):
        if overlaps(prefix.encode(), taken):
            raise InvalidInput(f"the keys' common prefix {prefix} overlaps {taken.decode()}")
    return prefix


def generated() -> Iterator[StoredObject]:
    """Yield a small control plane: routes, feature flags and instances."""
    for number, service in enumerate(_SERVICES):
        route = {"service": service, "weight": 100, "retries": 2, "timeout_ms": 250 * (number + 1)}
        yield _object(f"routes/{service}", route)
        for flag in ("new-pricing", "dark-launch", "read-only"):
            yield _object(f"flags/{service}/{flag}", {"enabled": flag == "dark-launch"})
        for zone in _ZONES:
            for index in range(3):
                instance = {"address": f"10.{number}.{index}.{ord(zone)}:8443", "zone": zone}
                yield _object(f"instances/{service}/{zone}-{index}", instance)


def _object(name: str, value: dict[str, Any]) -> StoredObject:
    return StoredObject(key=f"/config/{name}", value=json.dumps(value, separators=(",", ":")))


def _parsed(line: str, place: str) -> StoredObject:
    try:
        fields = json.loads(line)
        key, value = fields["key"], fields["value"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{place}: expected a JSON object with key and value") from error
    if not isinstance(key, str) or not key.startswith("/"):
        raise InvalidInput(f"{place}: expected a key that begins with /")
    if not isinstance(value, str):
        value = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return StoredObject(key=key, value=value)
