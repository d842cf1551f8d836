"""Translates MeshKit's transactions and records to etcd's wire messages and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meshkit.ordinals import LeaseId, Revision
from meshkit.store.etcd_bytes import TxnBytes
from meshkit.store.etcd_late import decode_kv
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.shape import evidence
from meshkit.store.txn import (
    Attempt,
    Committed,
    CreateRevisionIs,
    Delete,
    Exists,
    Get,
    Guard,
    KeyValue,
    ModRevisionIs,
    Nest,
    NoneModifiedSince,
    Operation,
    Outcome,
    Put,
    Rejected,
    Txn,
    ValueIs,
)


def encode_txn(txn: Txn) -> wire.TxnRequest:
    """Return the request. Its else branch reads the evidence for each guard, then `otherwise`."""
    shown = (*encode_evidence(txn.guards), *encode_reads(txn.otherwise))
    return wire.TxnRequest(
        compare=[_encode_guard(guard) for guard in txn.guards],
        success=[_encode_operation(operation) for operation in txn.operations],
        failure=[wire.RequestOp(request_range=read) for read in shown],
    )


def encode_evidence(guards: Sequence[Guard]) -> list[wire.RangeRequest]:
    """Return the reads that show which of the guards hold."""
    valued = {guard.key for guard in guards if isinstance(guard, ValueIs)}
    return [_encode_evidence(guard, valued) for guard in evidence(guards)]


def encode_reads(gets: Iterable[Operation]) -> list[wire.RangeRequest]:
    """Return the reads of operations that only read."""
    return [_encode_get(get) for get in gets if isinstance(get, Get)]


def is_held_by(guards: Sequence[Guard], shown: Sequence[wire.ResponseOp]) -> bool:
    """Return whether every guard holds, by the answers to `encode_evidence`."""
    facts = _facts(guards, shown)
    return all(_held(guard, facts[_identity(guard)]) for guard in guards)


class EncodedTxn:
    """The bytes of `encode_txn`, made without a message for each write."""

    def __init__(self, txn: Txn) -> None:
        self._bytes = _BYTES.of(txn)

    def SerializeToString(self) -> bytes:  # noqa: N802 -- as messages have it
        """Return the request."""
        return self._bytes


def decode_outcome(txn: Txn, response: wire.TxnResponse) -> Outcome:
    """Return what became of the transaction that `response` answers."""
    return _outcome(txn, response, Revision(response.header.revision))


def _outcome(txn: Txn, response: wire.TxnResponse, revision: Revision) -> Outcome:
    """Return what became of a transaction; the answer to a nested one has no revision itself."""
    if response.succeeded:
        return Committed(
            revision=revision,
            reads=tuple(
                _decode_read(answer)
                for operation, answer in zip(txn.operations, response.responses, strict=True)
                if isinstance(operation, Get)
            ),
            deleted=_count_deleted(response.responses) if _deletes(txn.operations) else 0,
            attempts=tuple(
                _outcome(operation.txn, answer.response_txn, revision)
                for operation, answer in zip(txn.operations, response.responses, strict=True)
                if isinstance(operation, Attempt)
            ),
        )
    width = len(evidence(txn.guards))
    facts = _facts(txn.guards, response.responses[:width])
    return Rejected(
        revision=revision,
        broken=tuple(g for g in txn.guards if not _held(g, facts[_identity(g)])),
        reads=tuple(_decode_read(answer) for answer in response.responses[width:]),
    )


def _facts(
    guards: Sequence[Guard], shown: Sequence[wire.ResponseOp]
) -> dict[object, tuple[KeyValue, ...]]:
    return {
        _identity(guard): _decode_read(answer)
        for guard, answer in zip(evidence(guards), shown, strict=True)
    }


def first_lease(operations: Sequence[Operation]) -> LeaseId:
    """Return the first lease that a put names, or 0."""
    for operation in operations:
        if isinstance(operation, Put):
            if operation.lease:
                return operation.lease
        elif isinstance(operation, Nest | Attempt):
            inner = operation.txn if isinstance(operation, Attempt) else operation
            nested = first_lease(inner.operations)
            if nested:
                return nested
    return LeaseId(0)


def _identity(guard: Guard) -> object:
    return guard if isinstance(guard, NoneModifiedSince) else guard.key


def _encode_guard(guard: Guard) -> wire.Compare:
    match guard:
        case ModRevisionIs():
            return wire.Compare(
                result=wire.Compare.EQUAL,
                target=wire.Compare.MOD,
                key=guard.key,
                mod_revision=guard.revision,
            )
        case CreateRevisionIs():
            return wire.Compare(
                result=wire.Compare.EQUAL,
                target=wire.Compare.CREATE,
                key=guard.key,
                create_revision=guard.revision,
            )
        case ValueIs():
            return wire.Compare(
                result=wire.Compare.EQUAL,
                target=wire.Compare.VALUE,
                key=guard.key,
                value=guard.value,
            )
        case Exists():
            return wire.Compare(
                result=wire.Compare.GREATER,
                target=wire.Compare.CREATE,
                key=guard.key,
                create_revision=0,
            )
        case NoneModifiedSince():
            return wire.Compare(
                result=wire.Compare.LESS,
                target=wire.Compare.MOD,
                key=guard.key_range[0],
                range_end=guard.key_range[1],
                mod_revision=guard.revision + 1,
            )


def _encode_evidence(guard: Guard, valued: set[bytes]) -> wire.RangeRequest:
    if isinstance(guard, NoneModifiedSince):
        return wire.RangeRequest(
            key=guard.key_range[0],
            range_end=guard.key_range[1],
            min_mod_revision=guard.revision + 1,
            limit=1,
            keys_only=True,
        )
    return wire.RangeRequest(key=guard.key, keys_only=guard.key not in valued)


def _encode_get(get: Get) -> wire.RangeRequest:
    return wire.RangeRequest(
        key=get.key, range_end=get.end, limit=get.limit, keys_only=get.keys_only
    )


def _encode_operation(operation: Operation) -> wire.RequestOp:
    match operation:
        case Put():
            put = wire.PutRequest(
                key=operation.key,
                value=b"" if operation.keep_value else operation.value,
                lease=operation.lease,
                ignore_value=operation.keep_value,
            )
            return wire.RequestOp(request_put=put)
        case Delete():
            delete = wire.DeleteRangeRequest(key=operation.key, range_end=operation.end)
            return wire.RequestOp(request_delete_range=delete)
        case Get():
            return wire.RequestOp(request_range=_encode_get(operation))
        case Nest():
            nested = wire.TxnRequest(success=[_encode_operation(o) for o in operation.operations])
            return wire.RequestOp(request_txn=nested)
        case Attempt():
            return wire.RequestOp(request_txn=encode_txn(operation.txn))


def _decode_read(answer: wire.ResponseOp) -> tuple[KeyValue, ...]:
    return tuple(decode_kv(kv) for kv in answer.response_range.kvs)


def _deletes(operations: Sequence[Operation]) -> bool:
    """Return whether any of them deletes; most that are many do not, nor do their answers say."""
    return any(
        isinstance(operation, Delete)
        or (isinstance(operation, Nest) and _deletes(operation.operations))
        or (isinstance(operation, Attempt) and _deletes(operation.txn.operations))
        for operation in operations
    )


def _count_deleted(answers: Iterable[wire.ResponseOp]) -> int:
    return sum(
        _count_deleted(answer.response_txn.responses)
        if answer.HasField("response_txn")
        else answer.response_delete_range.deleted
        for answer in answers
    )


def _held(guard: Guard, found: tuple[KeyValue, ...]) -> bool:
    item = found[0] if found else None
    match guard:
        case NoneModifiedSince():
            return item is None
        case Exists():
            return item is not None
        case ValueIs():
            return item is not None and item.value == guard.value
        case ModRevisionIs():
            return guard.revision == (0 if item is None else item.mod_revision)
        case CreateRevisionIs():
            return guard.revision == (0 if item is None else item.create_revision)


_BYTES = TxnBytes(_encode_operation, _encode_guard, _encode_evidence)
