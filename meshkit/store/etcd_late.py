"""What etcd answers as keys and changes, made only as far as they are asked for. Pure.

Copies and streams read millions of keys, and of most no more than a column is looked at. An object
that is made for a key costs more than all that the protobuf library does for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.port import Change, Columns, LateChanges, LateItems, RevisionChanges
from meshkit.store.txn import KeyValue

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


class RangeItems(LateItems):
    """Keys as the answers to a read have them, which it keeps alive."""

    def __init__(self, kvs: Sequence[Any]) -> None:
        self._kvs = kvs
        self._columns: Columns | None = None
        self._made: tuple[KeyValue, ...] | None = None

    @property
    def columns(self) -> Columns:
        """The keys by what they are made of."""
        if self._columns is None:
            kvs = self._kvs
            self._columns = Columns(
                keys=[kv.key for kv in kvs],
                values=[kv.value for kv in kvs],
                leases=[kv.lease for kv in kvs],
                mod_revisions=[kv.mod_revision for kv in kvs],
            )
        return self._columns

    def __len__(self) -> int:
        return len(self._kvs)

    @overload
    def __getitem__(self, place: int) -> KeyValue: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[KeyValue]: ...
    def __getitem__(self, place: int | slice) -> KeyValue | Sequence[KeyValue]:
        if isinstance(place, slice):
            return RangeItems(self._kvs[place])
        return decode_kv(self._kvs[place])

    def __iter__(self) -> Iterator[KeyValue]:
        if self._made is None:
            self._made = tuple(map(decode_kv, self._kvs))
        return iter(self._made)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def decode_kvs(kvs: Sequence[Any]) -> Sequence[KeyValue]:
    """Return keys as etcd holds them; many are made when they are asked for."""
    return RangeItems(kvs) if len(kvs) >= LATE_FROM else tuple(map(decode_kv, kvs))


class EventChanges(LateChanges):
    """The changes of one revision as a response of the watch has them, which it keeps alive."""

    def __init__(self, events: Sequence[wire.Event]) -> None:
        self._events = events
        self._keys: tuple[bytes, ...] | None = None
        self._data_bytes: int | None = None
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
        if self._data_bytes is None:
            values = sum([len(event.kv.value) for event in self._events])
            self._data_bytes = sum(map(len, self.keys)) + values
        return self._data_bytes

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
