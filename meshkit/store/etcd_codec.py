"""Translates MeshKit's transactions and records to etcd's wire messages and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from meshkit.ordinals import LeaseId, Revision
from meshkit.store.etcd_bytes import TxnBytes
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.port import Change, LateChanges, RevisionChanges
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

# Millions of keys are decoded: filling the slots takes half the time that `KeyValue(...)` does.
_new = object.__new__
_set_key, _set_value, _set_mod_revision, _set_create_revision, _set_version, _set_lease = (
    getattr(KeyValue, name).__set__
    for name in ("key", "value", "mod_revision", "create_revision", "version", "lease")
)
_set_item, _set_is_delete = (getattr(Change, name).__set__ for name in ("item", "is_delete"))
_set_revision, _set_changes = (
    getattr(RevisionChanges, name).__set__ for name in ("revision", "changes")
)
_DELETE = wire.Event.DELETE

LATE_FROM = 8
"""A revision of so many changes is decoded only when they are asked for."""


def encode_txn(txn: Txn) -> wire.TxnRequest:
    """Return the request. Its else branch reads the evidence for each guard, then `otherwise`."""
    valued = {guard.key for guard in txn.guards if isinstance(guard, ValueIs)}
    return wire.TxnRequest(
        compare=[_encode_guard(guard) for guard in txn.guards],
        success=[_encode_operation(operation) for operation in txn.operations],
        failure=[
            *(_encode_evidence(guard, valued) for guard in evidence(txn.guards)),
            *(_encode_operation(get) for get in txn.otherwise),
        ],
    )


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
            deleted=_count_deleted(response.responses),
            attempts=tuple(
                _outcome(operation.txn, answer.response_txn, revision)
                for operation, answer in zip(txn.operations, response.responses, strict=True)
                if isinstance(operation, Attempt)
            ),
        )
    witnesses = evidence(txn.guards)
    shown = response.responses[: len(witnesses)]
    facts = {
        _identity(guard): _decode_read(answer)
        for guard, answer in zip(witnesses, shown, strict=True)
    }
    return Rejected(
        revision=revision,
        broken=tuple(g for g in txn.guards if not _held(g, facts[_identity(g)])),
        reads=tuple(_decode_read(answer) for answer in response.responses[len(witnesses) :]),
    )


def decode_kv(kv: Any) -> KeyValue:
    """Return a key as etcd holds it."""
    made = _new(KeyValue)
    _set_key(made, kv.key)
    _set_value(made, kv.value)
    _set_mod_revision(made, kv.mod_revision)
    _set_create_revision(made, kv.create_revision)
    _set_version(made, kv.version)
    _set_lease(made, kv.lease)
    return made


class EventChanges(LateChanges):
    """The changes of one revision as a response of the watch has them, which it keeps alive."""

    def __init__(self, events: Sequence[wire.Event]) -> None:
        self._events = events
        self._keys: tuple[bytes, ...] | None = None
        self._made: tuple[Change, ...] | None = None

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The keys that changed, in order."""
        if self._keys is None:
            self._keys = tuple([event.kv.key for event in self._events])
        return self._keys

    @property
    def data_bytes(self) -> int:
        """What the keys and values weigh together."""
        return sum(map(len, self.keys)) + sum([len(event.kv.value) for event in self._events])

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, place: int) -> Change: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Change]: ...
    def __getitem__(self, place: int | slice) -> Change | Sequence[Change]:
        if self._made is not None:
            return self._made[place]
        if isinstance(place, slice):
            return tuple(map(_decode_event, self._events[place]))
        return _decode_event(self._events[place])

    def __iter__(self) -> Iterator[Change]:
        if self._made is None:
            self._made = tuple(map(_decode_event, self._events))
        return iter(self._made)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def decode_events(events: Iterable[wire.Event]) -> Iterator[RevisionChanges]:
    """Group the events of complete watch responses by revision, in their order.

    The changes of a revision that has many are made when they are asked for: as a rule it is an
    apply, of which only MeshKit's own keys are looked at.
    """
    own: list[wire.Event] = []
    revision = 0
    for event in events:
        at: int = event.kv.mod_revision
        if at != revision:
            if own:
                yield _revision_of(revision, own)
                own = []
            revision = at
        own.append(event)
    if own:
        yield _revision_of(revision, own)


def _revision_of(revision: int, events: list[wire.Event]) -> RevisionChanges:
    made = _new(RevisionChanges)
    _set_revision(made, revision)
    if len(events) >= LATE_FROM:
        _set_changes(made, EventChanges(events))
    else:
        _set_changes(made, tuple([_decode_event(event) for event in events]))
    return made


def _decode_event(event: wire.Event) -> Change:
    made = _new(Change)
    _set_item(made, decode_kv(event.kv))
    _set_is_delete(made, event.type == _DELETE)
    return made


def first_lease(operations: Sequence[Operation]) -> LeaseId:
    """Return the first lease that a put names, or 0."""
    for operation in operations:
        match operation:
            case Put(lease=lease) if lease:
                return lease
            case Nest() | Attempt():
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


def _encode_evidence(guard: Guard, valued: set[bytes]) -> wire.RequestOp:
    if isinstance(guard, NoneModifiedSince):
        read = wire.RangeRequest(
            key=guard.key_range[0],
            range_end=guard.key_range[1],
            min_mod_revision=guard.revision + 1,
            limit=1,
            keys_only=True,
        )
    else:
        read = wire.RangeRequest(key=guard.key, keys_only=guard.key not in valued)
    return wire.RequestOp(request_range=read)


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
            read = wire.RangeRequest(
                key=operation.key,
                range_end=operation.end,
                limit=operation.limit,
                keys_only=operation.keys_only,
            )
            return wire.RequestOp(request_range=read)
        case Nest():
            nested = wire.TxnRequest(success=[_encode_operation(o) for o in operation.operations])
            return wire.RequestOp(request_txn=nested)
        case Attempt():
            return wire.RequestOp(request_txn=encode_txn(operation.txn))


def _decode_read(answer: wire.ResponseOp) -> tuple[KeyValue, ...]:
    return tuple(decode_kv(kv) for kv in answer.response_range.kvs)


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
