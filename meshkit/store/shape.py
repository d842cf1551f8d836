"""The shape a transaction must have for etcd to look at it: limits and duplicate keys. Pure.

The rules are etcd's own (`server/etcdserver/api/v3rpc/key.go`: checkTxnRequest, checkIntervals).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meshkit.errors import InvalidInput, TooLarge
from meshkit.store.txn import (
    Attempt,
    Delete,
    Get,
    Guard,
    KeyRange,
    Nest,
    NoneModifiedSince,
    Operation,
    Put,
    Txn,
)

OPERATIONS_MAX = 128
"""etcd's default `--max-txn-ops`, per level of nesting."""

REQUEST_BYTES_MAX = 1_572_864
"""etcd's default `--max-request-bytes`."""

_OPERATION_OVERHEAD_BYTES = 12


def is_in_range(key: bytes, key_range: KeyRange) -> bool:
    """Return whether `key` lies in the range, by etcd's rules for the range end."""
    start, end = key_range
    if not end:
        return key == start
    return start <= key and (end == b"\x00" or key < end)


def guard_range(guard: Guard) -> KeyRange:
    """Return the range of keys a guard looks at."""
    if isinstance(guard, NoneModifiedSince):
        return guard.key_range
    return guard.key, b""


def evidence(guards: Iterable[Guard]) -> tuple[Guard, ...]:
    """Return one guard for each different read that shows which guards are broken."""
    seen: dict[object, Guard] = {}
    for guard in guards:
        identity = guard if isinstance(guard, NoneModifiedSince) else guard.key
        seen.setdefault(identity, guard)
    return tuple(seen.values())


def check_shape(
    txn: Txn,
    *,
    operations_max: int = OPERATIONS_MAX,
    request_bytes_max: int = REQUEST_BYTES_MAX,
) -> None:
    """Refuse a transaction that etcd would refuse without looking at its store.

    Raises:
        InvalidInput: too many operations, an empty key, or a key written twice.
        TooLarge: the request would be larger than etcd accepts.
    """
    _check_widths(txn, operations_max)
    _check_intervals(txn.operations)
    size = request_bytes(txn)
    if size > request_bytes_max:
        raise TooLarge(f"the transaction has {size} bytes, etcd accepts {request_bytes_max}")


def written_keys(operations: Iterable[Operation]) -> set[bytes]:
    """Return the keys that operations put or delete by name, at any depth."""
    keys: set[bytes] = set()
    for operation in operations:
        match operation:
            case Put() | Delete():
                keys.add(operation.key)
            case Nest():
                keys |= written_keys(operation.operations)
            case Attempt():
                keys |= written_keys(operation.txn.operations)
    return keys


def _check_widths(txn: Txn, operations_max: int) -> None:
    if any(not guard_range(guard)[0] for guard in txn.guards):
        raise InvalidInput("a guard names an empty key")
    width = max(
        len(txn.guards),
        len(txn.operations),
        len(evidence(txn.guards)) + len(txn.otherwise),
    )
    if width > operations_max:
        raise InvalidInput(f"too many operations in txn request: {width} > {operations_max}")
    _check_operations(txn.operations, operations_max - width)
    _check_operations(txn.otherwise, operations_max - width)


def _check_operations(operations: Sequence[Operation], operations_max: int) -> None:
    for operation in operations:
        if isinstance(operation, Nest):
            width = len(operation.operations)
            if width > operations_max:
                raise InvalidInput(f"too many operations in nested txn: {width} > {operations_max}")
            _check_operations(operation.operations, operations_max - width)
        elif isinstance(operation, Attempt):
            _check_widths(operation.txn, operations_max)
        elif not operation.key:
            raise InvalidInput("an operation names an empty key")


def _check_intervals(operations: Sequence[Operation]) -> tuple[set[bytes], list[KeyRange]]:
    """Refuse a key written twice, or written and deleted; return what was put and deleted."""
    deletes: list[KeyRange] = [(o.key, o.end) for o in operations if isinstance(o, Delete)]
    puts: set[bytes] = set()
    for operation in operations:
        if isinstance(operation, Nest | Attempt):
            inner = operation.txn if isinstance(operation, Attempt) else operation
            nested_puts, nested_deletes = _check_intervals(inner.operations)
            for key in nested_puts:
                _add_put(puts, deletes, key)
            deletes += nested_deletes
    for operation in operations:
        if isinstance(operation, Put):
            _add_put(puts, deletes, operation.key)
    return puts, deletes


def _add_put(puts: set[bytes], deletes: list[KeyRange], key: bytes) -> None:
    if key in puts or any(is_in_range(key, deleted) for deleted in deletes):
        raise InvalidInput(f"duplicate key given in txn request: {key!r}")
    puts.add(key)


def request_bytes(txn: Txn) -> int:
    """Return about how large the request is."""
    guards = sum(len(guard_range(g)[0]) + _OPERATION_OVERHEAD_BYTES for g in txn.guards)
    return guards + _operations_bytes(txn.operations)


def _operations_bytes(operations: Sequence[Operation]) -> int:
    total = 0
    for operation in operations:
        total += _OPERATION_OVERHEAD_BYTES
        match operation:
            case Put():
                total += len(operation.key) + len(operation.value)
            case Delete() | Get():
                total += len(operation.key) + len(operation.end)
            case Nest():
                total += _operations_bytes(operation.operations)
            case Attempt():
                total += request_bytes(operation.txn)
    return total
