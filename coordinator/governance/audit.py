"""The audit of a group, and one of the mesh: entries chained by hash, so changes show. Pure.

Entry n holds the hash of the stored bytes of entry n-1; the tip holds number and hash of the
newest. Editing, deleting, inserting, reordering or truncating breaks the chain or misses the tip.
It does not protect against somebody who rewrites every later entry and the tip: export the tip's
hash to somewhere else for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs

from meshkit.codec import Stored, decode, encode
from meshkit.errors import CorruptRecord
from meshkit.keys import CoordinationKeys, last_part
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.store.txn import Get, KeyValue, ModRevisionIs, Put

MESH_AUDIT = GroupName("_mesh")
"""The audit of what concerns no group, such as clusters. No group can have this name."""

NO_HASH = ""
"""What the first entry holds for the hash of the entry before it."""


@attrs.frozen(kw_only=True)
class AuditEntry(Stored):
    """Who did what, on the coordinator's wall clock."""

    SCHEMA: ClassVar[str] = "audit-entry"

    n: int
    prev_hash: str
    at_ms: int
    actor: str
    action: str
    facts: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class AuditTip(Stored):
    """Number and hash of the newest entry."""

    SCHEMA: ClassVar[str] = "audit-tip"

    n: int = 0
    hash: str = NO_HASH


@attrs.frozen(kw_only=True)
class Tip:
    """The tip as it was read, with the revision that appending compares."""

    tip: AuditTip = AuditTip()
    revision: Revision = ABSENT


@attrs.frozen(kw_only=True)
class Act:
    """What is to be entered, before it has a place in the chain."""

    actor: str
    action: str
    facts: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Appending:
    """The part of a transaction that appends entries: a guard and some puts."""

    guard: ModRevisionIs
    puts: tuple[Put, ...]
    tip: AuditTip


def hash_of(raw: bytes) -> str:
    """Return the hash by which the next entry names the stored bytes of this one."""
    return hashlib.sha256(raw).hexdigest()


def tip_read(group: GroupName) -> Get:
    """Return the read whose answer `tip_of` understands."""
    return Get(CoordinationKeys.audit_tip(group))


def tip_of(items: Sequence[KeyValue]) -> Tip:
    """Return the tip from what `tip_read` returned; the empty chain's if there is none."""
    if not items:
        return Tip()
    return Tip(tip=decode(AuditTip, items[0].value), revision=items[0].mod_revision)


def appending(group: GroupName, tip: Tip, acts: Sequence[Act], *, now_ms: int) -> Appending:
    """Return what appends `acts` after `tip`, in the transaction of the acts themselves."""
    puts: list[Put] = []
    after = tip.tip
    for act in acts:
        entry = AuditEntry(
            n=after.n + 1,
            prev_hash=after.hash,
            at_ms=now_ms,
            actor=act.actor,
            action=act.action,
            facts=act.facts,
        )
        raw = encode(entry)
        puts.append(Put(CoordinationKeys.audit(group, entry.n), raw))
        after = AuditTip(n=entry.n, hash=hash_of(raw))
    tip_key = CoordinationKeys.audit_tip(group)
    return Appending(
        guard=ModRevisionIs(tip_key, tip.revision),
        puts=(*puts, Put(tip_key, encode(after))),
        tip=after,
    )


def verify(entries: Sequence[KeyValue], tip: AuditTip) -> tuple[str, ...]:
    """Return every break of the chain, in order; nothing if it is whole.

    `entries` are all the group's entries in key order, as stored.
    """
    problems: list[str] = []
    expected_n, previous = 1, NO_HASH
    for item in entries:
        try:
            entry = decode(AuditEntry, item.value)
        except CorruptRecord as error:
            problems.append(f"entry {last_part(item.key)} cannot be read: {error}")
            expected_n, previous = expected_n + 1, hash_of(item.value)
            continue
        if last_part(item.key) != f"{entry.n:010d}":
            problems.append(f"entry {entry.n} lies at {last_part(item.key)}: moved")
        if entry.n != expected_n:
            problems.append(f"entry {expected_n} is missing: {entry.n} follows {expected_n - 1}")
        if entry.prev_hash != previous:
            problems.append(f"entry {entry.n} does not continue the entry before it: one changed")
        expected_n, previous = entry.n + 1, hash_of(item.value)
    if tip.n != expected_n - 1:
        problems.append(f"the tip names entry {tip.n}, the last entry is {expected_n - 1}")
    elif tip.hash != previous:
        problems.append(f"the tip does not match entry {tip.n}: the last entry changed")
    return tuple(problems)
