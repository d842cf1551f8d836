"""The bytes of etcd's requests for transactions, made without a message for each part. Pure.

Thousands of groups that move together send transactions of hundreds of small parts, each of which
costs as a message object several times what its bytes do. What is rare goes through the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshkit.protobuf_bytes import delimited, varint
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.shape import evidence
from meshkit.store.txn import (
    Attempt,
    CreateRevisionIs,
    Delete,
    Get,
    Guard,
    ModRevisionIs,
    Nest,
    NoneModifiedSince,
    Operation,
    Put,
    Txn,
    ValueIs,
)

Messages = Callable[[Operation], wire.RequestOp]
Compares = Callable[[Guard], wire.Compare]
Evidences = Callable[[Guard, set[bytes]], wire.RangeRequest]


class TxnBytes:
    """Makes the bytes; whatever is not frequent enough is left to the messages."""

    def __init__(self, operation: Messages, guard: Compares, shown: Evidences) -> None:
        self._operation_message = operation
        self._guard_message = guard
        self._evidence_message = shown

    def of(self, txn: Txn) -> bytes:
        """Return a TxnRequest."""
        guards = txn.guards
        parts = [delimited(b"\x0a", self._guard(guard)) for guard in guards]
        parts += [delimited(b"\x12", self._operation(o)) for o in txn.operations]
        if guards:
            valued = {guard.key for guard in guards if isinstance(guard, ValueIs)}
            parts += [delimited(b"\x1a", self._evidence(g, valued)) for g in evidence(guards)]
        parts += [delimited(b"\x1a", self._operation(get)) for get in txn.otherwise]
        return b"".join(parts)

    def _guard(self, guard: Guard) -> bytes:
        """Return a Compare."""
        match guard:
            case ModRevisionIs():
                return _compare(b"\x10\x02", guard.key, b"\x30", guard.revision)
            case CreateRevisionIs():
                return _compare(b"\x10\x01", guard.key, b"\x28", guard.revision)
        encoded: bytes = self._guard_message(guard).SerializeToString()
        return encoded

    def _evidence(self, guard: Guard, valued: set[bytes]) -> bytes:
        if isinstance(guard, NoneModifiedSince):
            return delimited(b"\x0a", self._evidence_message(guard, valued).SerializeToString())
        return delimited(b"\x0a", _range(guard.key, keys_only=guard.key not in valued))

    def _operation(self, operation: Operation) -> bytes:
        """Return a RequestOp."""
        match operation:
            case Put(keep_value=False):
                return delimited(b"\x12", _put(operation))
            case Get():
                read = _range(
                    operation.key,
                    end=operation.end,
                    limit=operation.limit,
                    keys_only=operation.keys_only,
                )
                return delimited(b"\x0a", read)
            case Delete(end=b""):
                return delimited(b"\x1a", delimited(b"\x0a", operation.key))
            case Nest():
                return delimited(b"\x22", self._nested(operation.operations))
            case Attempt():
                return delimited(b"\x22", self.of(operation.txn))
        encoded: bytes = self._operation_message(operation).SerializeToString()
        return encoded

    def _nested(self, operations: Sequence[Operation]) -> bytes:
        pieces: list[bytes] = []
        for operation in operations:
            if isinstance(operation, Put) and not operation.keep_value and not operation.lease:
                # RequestOp{request_put: PutRequest{key, value}}, copied once: there are millions.
                key, value = operation.key, operation.value
                head = b"\x0a" + varint(len(key))
                middle = b"\x12" + varint(len(value))
                size = len(head) + len(key) + len(middle) + len(value)
                put = b"\x12" + varint(size)
                pieces += (b"\x12", varint(len(put) + size), put, head, key, middle, value)
            else:
                pieces.append(delimited(b"\x12", self._operation(operation)))
        return b"".join(pieces)


def _compare(target: bytes, key: bytes, field: bytes, number: int) -> bytes:
    return target + delimited(b"\x1a", key) + field + varint(number)


def _put(put: Put) -> bytes:
    key, value = put.key, put.value
    key_size, value_size = varint(len(key)), varint(len(value))
    encoded = b"\x0a%b%b\x12%b%b" % (key_size, key, value_size, value)
    return encoded + b"\x18" + varint(put.lease) if put.lease else encoded


def _range(key: bytes, *, end: bytes = b"", limit: int = 0, keys_only: bool = False) -> bytes:
    encoded = delimited(b"\x0a", key)
    if end:
        encoded += delimited(b"\x12", end)
    if limit:
        encoded += b"\x18" + varint(limit)
    return encoded + b"\x40\x01" if keys_only else encoded
