"""Transactions as data: guards, operations and outcomes. Pure."""

from __future__ import annotations

import attrs

from meshkit.ordinals import NO_LEASE, LeaseId, Revision

KeyRange = tuple[bytes, bytes]
"""`[start, end)` of raw key bytes. An empty `end` means exactly the key `start`."""

WHOLE_STORE: KeyRange = (b"\x00", b"\x00")
"""etcd's way of naming every key: from `\\0` with range end `\\0` (etcd API, key ranges)."""


def prefix_range(prefix: bytes) -> KeyRange:
    """Return the range of every key that starts with `prefix` (etcd's `--prefix`)."""
    for index in range(len(prefix) - 1, -1, -1):
        if prefix[index] < 0xFF:
            return prefix, prefix[:index] + bytes([prefix[index] + 1])
    return prefix or b"\x00", b"\x00"


@attrs.frozen(kw_only=True)
class KeyValue:
    """One key as etcd holds it."""

    key: bytes
    value: bytes
    mod_revision: Revision
    create_revision: Revision
    version: int
    lease: LeaseId = NO_LEASE


# --- guards: what must hold for the transaction to be applied -----------------------------------


@attrs.frozen
class ModRevisionIs:
    """The key was last changed at exactly this revision; 0 means it must not exist."""

    key: bytes
    revision: Revision


@attrs.frozen
class CreateRevisionIs:
    """The key was created at exactly this revision; 0 means it must not exist."""

    key: bytes
    revision: Revision


@attrs.frozen
class ValueIs:
    """The key exists with exactly this value. Only for values that are tokens (the permit)."""

    key: bytes
    value: bytes


@attrs.frozen
class Exists:
    """The key exists, whatever its value."""

    key: bytes


@attrs.frozen
class NoneModifiedSince:
    """No key in the range has been created or changed at a revision above `revision`.

    Deletions are not seen by it (etcd compares only live keys).
    """

    key_range: KeyRange
    revision: Revision


Guard = ModRevisionIs | CreateRevisionIs | ValueIs | Exists | NoneModifiedSince


def absent(key: bytes) -> ModRevisionIs:
    """Return the guard that demands that `key` does not exist."""
    return ModRevisionIs(key, Revision(0))


# --- operations ---------------------------------------------------------------------------------


@attrs.frozen
class Put:
    """Set a key. With `keep_value` only the lease is changed (etcd's ignore_value)."""

    key: bytes
    value: bytes
    lease: LeaseId = NO_LEASE
    keep_value: bool = False


@attrs.frozen
class Delete:
    """Delete a key, or a range when `end` is not empty."""

    key: bytes
    end: bytes = b""


@attrs.frozen
class Get:
    """Read a key, or a range when `end` is not empty, inside the transaction."""

    key: bytes
    end: bytes = b""
    limit: int = 0
    keys_only: bool = False


@attrs.frozen
class Nest:
    """Operations of a nested transaction: the way past etcd's 128-operation limit."""

    operations: tuple[Operation, ...]


@attrs.frozen
class Attempt:
    """A transaction inside another: its own guards decide about its own operations alone.

    Only at the top level, and not inside each other. All guards look at the state before the whole;
    no key is written twice by it. What is applied has one revision. The keys that one attempt
    compares must not be written beside it: etcd's evidence for a refusal would show them as new.
    """

    txn: Txn


Operation = Put | Delete | Get | Nest | Attempt


@attrs.frozen(kw_only=True)
class Txn:
    """If every guard holds, `operations` happen at one revision; else only `otherwise` is read."""

    guards: tuple[Guard, ...] = ()
    operations: tuple[Operation, ...]
    otherwise: tuple[Get, ...] = ()


# --- outcomes -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Committed:
    """The guards held and the operations were applied.

    `revision` is the transaction's own revision if it wrote anything; `reads` has one tuple of
    keys for each `Get` among the top-level operations, in their order; `deleted` is the number of
    keys removed; `attempts` has the outcome of each `Attempt`, in their order.
    """

    revision: Revision
    reads: tuple[tuple[KeyValue, ...], ...] = ()
    deleted: int = 0
    attempts: tuple[Outcome, ...] = ()


@attrs.frozen(kw_only=True)
class Rejected:
    """At least one guard did not hold; nothing was written.

    `broken` names the guards that did not hold when read in the same transaction; `reads` answers
    `Txn.otherwise`.
    """

    revision: Revision
    broken: tuple[Guard, ...]
    reads: tuple[tuple[KeyValue, ...], ...] = ()


Outcome = Committed | Rejected
