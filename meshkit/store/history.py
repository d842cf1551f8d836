"""A multi-version key space with etcd's rules for revisions, compaction and guards. Pure.

It knows nothing of leases (beyond the id a key carries), of time, or of who watches.
"""

from __future__ import annotations

import bisect
from collections.abc import Container, Sequence

import attrs

from meshkit.errors import Compacted, InvalidInput, LeaseLost
from meshkit.ordinals import ABSENT, NO_LEASE, LeaseId, Revision
from meshkit.store.port import Change, RangeResult, RevisionChanges
from meshkit.store.shape import is_in_range
from meshkit.store.txn import (
    Attempt,
    Committed,
    CreateRevisionIs,
    Delete,
    Exists,
    Get,
    Guard,
    KeyRange,
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

_FIRST_REVISION = Revision(1)
"""The revision of an empty store."""


def _is_tombstone(item: KeyValue) -> bool:
    return item.version == 0


def _revision_of(item: KeyValue) -> Revision:
    return item.mod_revision


def _log_revision(entry: RevisionChanges) -> Revision:
    return entry.revision


def without_value(item: KeyValue) -> KeyValue:
    """Return the key as a keys-only read shows it."""
    return attrs.evolve(item, value=b"")


@attrs.define
class History:
    """Every version of every key since the last compaction.

    Invariant: the versions of a key and the log rise strictly in revision, and nothing is newer
    than `revision`.
    """

    revision: Revision = _FIRST_REVISION
    compact_revision: Revision = ABSENT
    _keys: list[bytes] = attrs.field(factory=list, init=False)
    _versions: dict[bytes, list[KeyValue]] = attrs.field(factory=dict, init=False)
    _log: list[RevisionChanges] = attrs.field(factory=list, init=False)
    _open: list[Change] = attrs.field(factory=list, init=False)

    def lookup(self, key: bytes) -> KeyValue | None:
        """Return the newest version of the key, if it is alive."""
        versions = self._versions.get(key)
        if versions is None or _is_tombstone(versions[-1]):
            return None
        return versions[-1]

    def live(self, key_range: KeyRange, *, revision: Revision | None = None) -> list[KeyValue]:
        """Return the keys of the range that are alive, now or as of `revision`, in key order."""
        if not key_range[1]:
            item = self._at(key_range[0], revision)
            return [] if item is None else [item]
        first, last = self._bounds(key_range)
        found = (self._at(key, revision) for key in self._keys[first:last])
        return [item for item in found if item is not None]

    def select(
        self,
        key_range: KeyRange,
        *,
        revision: Revision | None = None,
        limit: int = 0,
        keys_only: bool = False,
        modified_after: Revision | None = None,
        count_only: bool = False,
    ) -> RangeResult:
        """Return what etcd's Range would.

        Raises:
            Compacted: `revision` is below the compacted one.
            InvalidInput: `revision` has not happened yet, or the key is empty.
        """
        if not key_range[0]:
            raise InvalidInput("a range starts at an empty key")
        if revision is not None and revision > self.revision:
            raise InvalidInput(f"revision {revision} is in the future of {self.revision}")
        if revision is not None and revision < self.compact_revision:
            raise Compacted(revision=revision, compact_revision=self.compact_revision)
        items = self.live(key_range, revision=revision)
        as_of = self.revision if revision is None else revision
        count = len(items)
        if count_only:
            return RangeResult(revision=as_of, items=(), count=count)
        if modified_after is not None:
            items = [item for item in items if item.mod_revision > modified_after]
        more = 0 < limit < len(items)
        if more:
            items = items[:limit]
        if keys_only:
            items = [without_value(item) for item in items]
        return RangeResult(revision=as_of, items=tuple(items), more=more, count=count)

    def since(self, start: Revision) -> Sequence[RevisionChanges]:
        """Return the changes of every revision from `start` on.

        Raises:
            Compacted: some of them are gone.
        """
        if start < self.compact_revision:
            raise Compacted(revision=start, compact_revision=self.compact_revision)
        return self._log[bisect.bisect_left(self._log, start, key=_log_revision) :]

    def apply(
        self, txn: Txn, *, leases: Container[LeaseId]
    ) -> tuple[Outcome, RevisionChanges | None]:
        """Apply a transaction and return its outcome, with the changes if it changed anything.

        Raises:
            InvalidInput: a put keeps the value of a key that does not exist.
            LeaseLost: a put names a lease that is not among `leases`.
        """
        rejected = self._rejected(txn)
        if rejected is not None:
            return rejected, None
        chosen = self._chosen(txn.operations)
        self._check_puts(chosen, leases)
        reads: list[tuple[KeyValue, ...]] = []
        outcomes: list[Outcome] = []
        deleted = self._run(chosen, reads, outcomes)
        changes = self._seal()
        settled = tuple(attrs.evolve(o, revision=self.revision) for o in outcomes)
        outcome = Committed(
            revision=self.revision, reads=tuple(reads), deleted=deleted, attempts=settled
        )
        return outcome, changes

    def _chosen(self, operations: Sequence[Operation]) -> Sequence[Operation | Rejected]:
        """Return the operations, with the refusal of each attempt whose guards do not hold."""
        return [
            (self._rejected(operation.txn) or operation)
            if isinstance(operation, Attempt)
            else operation
            for operation in operations
        ]

    def _rejected(self, txn: Txn) -> Rejected | None:
        broken = tuple(guard for guard in txn.guards if not self.holds(guard))
        if not broken:
            return None
        reads = tuple(self._read(get) for get in txn.otherwise)
        return Rejected(revision=self.revision, broken=broken, reads=reads)

    def _attempted(self, txn: Txn) -> Committed:
        reads: list[tuple[KeyValue, ...]] = []
        deleted = self._run(txn.operations, reads, [])
        return Committed(revision=self.revision, reads=tuple(reads), deleted=deleted)

    def delete_keys(self, keys: Sequence[bytes]) -> RevisionChanges | None:
        """Delete the keys at one revision, as the end of a lease does."""
        for key in keys:
            self._delete((key, b""))
        return self._seal()

    def holds(self, guard: Guard) -> bool:
        """Return whether a guard holds now."""
        match guard:
            case NoneModifiedSince():
                return all(i.mod_revision <= guard.revision for i in self.live(guard.key_range))
            case Exists():
                return self.lookup(guard.key) is not None
            case ValueIs():
                item = self.lookup(guard.key)
                return item is not None and item.value == guard.value
            case ModRevisionIs():
                item = self.lookup(guard.key)
                return guard.revision == (0 if item is None else item.mod_revision)
            case CreateRevisionIs():
                item = self.lookup(guard.key)
                return guard.revision == (0 if item is None else item.create_revision)

    def compact(self, revision: Revision) -> None:
        """Forget every version that was superseded at or below `revision`.

        Raises:
            InvalidInput: the revision has not happened yet.
        """
        if revision > self.revision:
            raise InvalidInput(f"revision {revision} is in the future of {self.revision}")
        if revision <= self.compact_revision:
            return
        self.compact_revision = revision
        for key, versions in list(self._versions.items()):
            at = bisect.bisect_right(versions, revision, key=_revision_of) - 1
            if at >= 0:
                del versions[: at + 1 if _is_tombstone(versions[at]) else at]
            if not versions:
                del self._versions[key]
                del self._keys[bisect.bisect_left(self._keys, key)]
        del self._log[: bisect.bisect_left(self._log, revision, key=_log_revision)]

    def _bounds(self, key_range: KeyRange) -> tuple[int, int]:
        start, end = key_range
        first = bisect.bisect_left(self._keys, start)
        last = len(self._keys) if end == b"\x00" else bisect.bisect_left(self._keys, end)
        return first, last

    def _at(self, key: bytes, revision: Revision | None) -> KeyValue | None:
        if revision is None or revision >= self.revision:
            return self.lookup(key)
        versions = self._versions.get(key, [])
        at = bisect.bisect_right(versions, revision, key=_revision_of) - 1
        if at < 0 or _is_tombstone(versions[at]):
            return None
        return versions[at]

    def _check_puts(
        self, operations: Sequence[Operation | Rejected], leases: Container[LeaseId]
    ) -> None:
        """Refuse, in the order of the operations, before anything is written."""
        for operation in operations:
            match operation:
                case Put():
                    if operation.keep_value and self.lookup(operation.key) is None:
                        raise InvalidInput(f"key not found: {operation.key!r} has no value to keep")
                    if operation.lease != NO_LEASE and operation.lease not in leases:
                        raise LeaseLost(operation.lease)
                case Nest():
                    self._check_puts(operation.operations, leases)
                case Attempt():
                    self._check_puts(operation.txn.operations, leases)

    def _run(
        self,
        operations: Sequence[Operation | Rejected],
        reads: list[tuple[KeyValue, ...]] | None,
        attempts: list[Outcome],
    ) -> int:
        deleted = 0
        for operation in operations:
            match operation:
                case Put():
                    self._put(operation)
                case Delete():
                    deleted += self._delete((operation.key, operation.end))
                case Get() if reads is not None:
                    reads.append(self._read(operation))
                case Nest():
                    deleted += self._run(operation.operations, None, [])
                case Attempt():
                    attempts.append(attempted := self._attempted(operation.txn))
                    deleted += attempted.deleted
                case Rejected():
                    attempts.append(operation)
        return deleted

    def _read(self, get: Get) -> tuple[KeyValue, ...]:
        items = self.live((get.key, get.end))
        if get.limit:
            items = items[: get.limit]
        return tuple(without_value(i) if get.keys_only else i for i in items)

    def _put(self, put: Put) -> None:
        before = self.lookup(put.key)
        revision = Revision(self.revision + 1)
        if before is None:
            item = KeyValue(
                key=put.key,
                value=put.value,
                mod_revision=revision,
                create_revision=revision,
                version=1,
                lease=put.lease,
            )
        else:
            item = attrs.evolve(
                before,
                value=before.value if put.keep_value else put.value,
                mod_revision=revision,
                version=before.version + 1,
                lease=put.lease,
            )
        self._append(item, is_delete=False)

    def _delete(self, key_range: KeyRange) -> int:
        doomed = self.live(key_range)
        for item in doomed:
            tombstone = KeyValue(
                key=item.key,
                value=b"",
                mod_revision=Revision(self.revision + 1),
                create_revision=Revision(0),
                version=0,
                lease=NO_LEASE,
            )
            self._append(tombstone, is_delete=True)
        return len(doomed)

    def _append(self, item: KeyValue, *, is_delete: bool) -> None:
        versions = self._versions.get(item.key)
        if versions is None:
            bisect.insort(self._keys, item.key)
            versions = self._versions[item.key] = []
        if versions and versions[-1].mod_revision == item.mod_revision:
            versions.pop()
        versions.append(item)
        self._open.append(Change(item=item, is_delete=is_delete))

    def _seal(self) -> RevisionChanges | None:
        if not self._open:
            return None
        self.revision = Revision(self.revision + 1)
        changes = RevisionChanges(revision=self.revision, changes=tuple(self._open))
        self._open.clear()
        self._log.append(changes)
        return changes


def changes_within(changes: RevisionChanges, key_range: KeyRange) -> RevisionChanges | None:
    """Return the part of a revision that a watcher of `key_range` sees, if any."""
    seen = tuple(c for c in changes.changes if is_in_range(c.key, key_range))
    return RevisionChanges(revision=changes.revision, changes=seen) if seen else None


def has_put(operations: Sequence[Operation]) -> bool:
    """Return whether any operation, at any depth, is a put."""
    return any(
        isinstance(o, Put)
        or (isinstance(o, Nest) and has_put(o.operations))
        or (isinstance(o, Attempt) and has_put(o.txn.operations))
        for o in operations
    )
