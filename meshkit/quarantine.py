"""Writes that lost, as they are kept for a person to decide about: entries and their values. Pure.

An entry is one change of one key. It lies in the etcd of the cluster whose write lost, never in the
coordination etcd. Its name is made of the change alone, so whoever sets the same change aside twice
writes the same entry; the first one stands, with what it was compared with at the time.
"""

from __future__ import annotations

import enum
import hashlib
from typing import ClassVar

import attrs

from meshkit.codec import Stored, encode
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Sequence
from meshkit.store.txn import Delete, Operation, Put, prefix_range

INLINE_BYTES_MAX = 4 * 1024
"""A value up to this size is kept in its entry."""
CHUNK_BYTES_MAX = 128 * 1024
"""A larger one is kept in chunks beside it, so that no key outgrows what etcd takes."""


class QuarantineClass(enum.Enum):
    """What differs between the cluster whose write lost and the one that is active."""

    ONLY_HERE = "only here"
    """The key is here, and not there."""
    ONLY_THERE = "only there"
    """The key was deleted here, and is there."""
    CONFLICTING = "conflicting"
    """It has different values."""
    SAME = "same"
    """Both sides came to the same, or a later change here did."""


class Completeness(enum.Enum):
    """How much of what was written is known. The worst of a rejoin's is that of the rejoin."""

    COMPLETE = "complete"
    """Every change is in quarantine."""
    STATE_ONLY = "state-only"
    """The log was compacted: what came of the changes is known, not each of them."""
    UNKNOWN = "unknown"
    """Something may have been written that nobody can find any more."""


class Origin(enum.Enum):
    """How a write came to lose."""

    TAIL = "tail"
    """Written while this cluster was active, past what its successor stands on."""
    EXCESS = "excess"
    """Applied here from a cluster that was active, past what its successor stands on."""
    FOREIGN = "foreign"
    """Written past the cut by something that ignores the permit."""
    EXPIRY = "expiry"
    """Deleted past the end of the epoch because its lease ran out: nobody wrote that."""
    REPLACED = "replaced"
    """Found where a copy was to be made, and not expected there."""


@attrs.frozen(kw_only=True)
class KeptValue:
    """A value as it is kept: in the entry, or in chunks beside it."""

    size: int
    digest: str
    """SHA-256, in hexadecimal."""
    inline: bytes | None = None
    chunks: int = 0


@attrs.frozen(kw_only=True)
class QuarantineEntry(Stored):
    """One change of one key that lost, with what was there instead."""

    SCHEMA: ClassVar[str] = "quarantine-entry"

    group: GroupName
    epoch: Epoch
    """The one in which it was written."""
    sequence: Sequence
    """The revision of this cluster's etcd that made it."""
    key: bytes
    """Empty where nothing is known but that something may be missing."""
    is_delete: bool = False
    origin: Origin
    divergence: QuarantineClass
    completeness: Completeness
    is_newest: bool = True
    """Whether no later entry is of the same key: only such a one can be replayed."""
    here: KeptValue | None = None
    """What this change wrote; None for a delete."""
    there: KeptValue | None = None
    """What the active cluster had; None if it had no such key."""
    there_cluster: ClusterName | None = None
    there_sequence: Sequence | None = None
    """The revision of its etcd at which it was read."""
    parent_sequence: Sequence | None = None
    """Up to where the successor stands on the log this is of."""
    at_ms: int = 0
    """When it was set aside (wall clock)."""
    why: str = ""
    replayed_ms: int | None = None
    replayed_by: str = ""

    @property
    def name(self) -> str:
        """What names it among its group's, in its epoch."""
        return entry_name(self.sequence, self.key)


@attrs.frozen(kw_only=True)
class SetAside:
    """An entry with its values whole, before it is stored or after it was read."""

    entry: QuarantineEntry
    here: bytes | None = None
    there: bytes | None = None


def entry_name(sequence: Sequence, key: bytes) -> str:
    """Return the name of the entry of one change. Sorts by sequence; as long for every key."""
    return f"{sequence:016d}-{hashlib.sha256(key).hexdigest()[:24]}"


def kept(value: bytes | None) -> KeptValue | None:
    """Return how a value is kept."""
    if value is None:
        return None
    is_inline = len(value) <= INLINE_BYTES_MAX
    return KeptValue(
        size=len(value),
        digest=hashlib.sha256(value).hexdigest(),
        inline=value if is_inline else None,
        chunks=0 if is_inline else -(-len(value) // CHUNK_BYTES_MAX),
    )


def set_aside(entry: QuarantineEntry, *, here: bytes | None, there: bytes | None) -> SetAside:
    """Return an entry with its values, and the way they are kept."""
    whole = attrs.evolve(entry, here=kept(here), there=kept(there))
    return SetAside(entry=whole, here=here, there=there)


def classed(here: bytes | None, there: bytes | None) -> QuarantineClass:
    """Return what differs, by what a key has here and there at last."""
    if here == there:
        return QuarantineClass.SAME
    if there is None:
        return QuarantineClass.ONLY_HERE
    return QuarantineClass.ONLY_THERE if here is None else QuarantineClass.CONFLICTING


def puts_of(one: SetAside) -> tuple[Put, ...]:
    """Return what stores an entry: the chunks of its values, then the entry itself."""
    entry = one.entry
    puts = []
    for side, value, how in (("here", one.here, entry.here), ("there", one.there, entry.there)):
        for number in range(how.chunks if how else 0):
            start = number * CHUNK_BYTES_MAX
            key = RegionalKeys.quarantine_chunk(
                entry.group, entry.epoch, entry.name, f"{side}-{number:04d}"
            )
            puts.append(Put(key, (value or b"")[start : start + CHUNK_BYTES_MAX]))
    puts.append(Put(key_of(entry), encode(entry)))
    return tuple(puts)


def key_of(entry: QuarantineEntry) -> bytes:
    """Return the key of an entry."""
    return RegionalKeys.quarantine(entry.group, entry.epoch, entry.name)


def chunks_range(entry: QuarantineEntry) -> tuple[bytes, bytes]:
    """Return the range of the chunks of an entry's values."""
    return prefix_range(RegionalKeys.quarantine_chunk(entry.group, entry.epoch, entry.name, ""))


def deletes_of(entry: QuarantineEntry) -> tuple[Operation, ...]:
    """Return what removes an entry with its values."""
    return (Delete(key_of(entry)), Delete(*chunks_range(entry)))


def unknown_entry(
    group: GroupName, epoch: Epoch, sequence: Sequence, *, origin: Origin, why: str, now_ms: int
) -> SetAside:
    """Return the entry that says that something may have been written and cannot be found."""
    entry = QuarantineEntry(
        group=group,
        epoch=epoch,
        sequence=sequence,
        key=b"",
        origin=origin,
        divergence=QuarantineClass.SAME,
        completeness=Completeness.UNKNOWN,
        parent_sequence=sequence,
        at_ms=now_ms,
        why=why,
    )
    return SetAside(entry=entry)


def worst(kinds: list[Completeness]) -> Completeness:
    """Return the least complete of some; complete if there are none."""
    order = (Completeness.COMPLETE, Completeness.STATE_ONLY, Completeness.UNKNOWN)
    return max(kinds, key=order.index, default=Completeness.COMPLETE)
