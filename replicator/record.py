"""What moves between clusters: records of a source's log, and the marks that travel in them. Pure.

A record is one committed revision of the source's etcd restricted to the groups whose log it is
part of, never split. Marks say where a segment of a group's log opens, ends, goes on or changes
its scope, so that "sealed" is a position in the log and not a message beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from meshkit.model import Lineage
from meshkit.names import GroupName
from meshkit.ordinals import NO_LEASE, NO_TOKEN, Epoch, LeaseId, Sequence, Token
from meshkit.store.txn import Delete, Put

Write = Put | Delete
"""One change of one key. A put carries the lease id it had at the source; a delete has no end."""

WRITE_OVERHEAD_BYTES = 16


@attrs.frozen(kw_only=True)
class Opened:
    """A segment of the group's log opens here, on top of exactly its lineage."""

    group: GroupName
    epoch: Epoch
    token: Token
    lineage: Lineage | None = None
    prefixes: tuple[bytes, ...] = ()


@attrs.frozen(kw_only=True)
class Cut:
    """The segment ends: nothing of the group's log follows here under this epoch.

    `token` is that of the command, or of the seal, that ended it; a later one may have undone it.
    """

    group: GroupName
    epoch: Epoch
    token: Token = NO_TOKEN


@attrs.frozen(kw_only=True)
class Resumed:
    """The segment goes on: its cut was undone, or a revision too large for any message is over.

    `is_dirty` says that writes are in no record (those of something that ignores permits between
    drain and undrain, or those of that revision), so the copy must be made anew.
    """

    group: GroupName
    epoch: Epoch
    is_dirty: bool = False


@attrs.frozen(kw_only=True)
class Scoped:
    """The segment's prefixes changed: what they now cover must be copied anew."""

    group: GroupName
    epoch: Epoch
    prefixes: tuple[bytes, ...] = ()


Mark = Opened | Cut | Resumed | Scoped


@attrs.frozen
class LeaseTerm:
    """What a lease was granted for at the source."""

    lease: LeaseId
    ttl_s: int


@attrs.frozen(kw_only=True)
class GroupPart:
    """What one revision changed in one group, under the epoch it was written in."""

    group: GroupName
    epoch: Epoch
    writes: tuple[Write, ...]
    leases: tuple[LeaseTerm, ...] = ()
    """The leases that these writes name."""

    @classmethod
    def made(
        cls,
        group: GroupName,
        epoch: Epoch,
        writes: tuple[Write, ...],
        leases: tuple[LeaseTerm, ...] = (),
    ) -> GroupPart:
        """Return a part, like the constructor, in a third of the time: there are millions."""
        part = _new(cls)
        _set_group(part, group)
        _set_epoch(part, epoch)
        _set_writes(part, writes)
        _set_leases(part, leases)
        return part

    def only(self, writes: Iterable[Write]) -> GroupPart:
        """Return the part with only these of its writes."""
        terms = {term.lease: term for term in self.leases}
        kept = tuple(writes)
        return attrs.evolve(self, writes=kept, leases=_named(kept, terms) if terms else ())


@attrs.frozen(kw_only=True)
class Piece:
    """Which piece of a record it is that was too large to travel whole."""

    number: int
    """From 0."""
    is_last: bool


@attrs.frozen(kw_only=True)
class Record:
    """One revision of the source, as far as it belongs to its groups' logs.

    With `piece` only a stretch of it: by group, then by key, the pieces follow each other.
    """

    sequence: Sequence
    parts: tuple[GroupPart, ...] = ()
    marks: tuple[Mark, ...] = ()
    piece: Piece | None = None
    weight_bytes: int = attrs.field(init=False, eq=False, repr=False)
    """What it weighs in memory and on the wire, roughly; equal on both sides of a link."""
    writes_count: int = attrs.field(init=False, eq=False, repr=False)

    @classmethod
    def of_one(cls, sequence: Sequence, part: GroupPart) -> Record:
        """Return a whole record of one part, in a fraction of the constructor's time."""
        weight_bytes = WRITE_OVERHEAD_BYTES * (1 + len(part.leases))
        for write in part.writes:
            weight_bytes += len(write.key) + WRITE_OVERHEAD_BYTES
            if isinstance(write, Put):
                weight_bytes += len(write.value)
        record = _new(cls)
        _set_sequence(record, sequence)
        _set_parts(record, (part,))
        _set_marks(record, ())
        _set_piece(record, None)
        _set_weight_bytes(record, weight_bytes)
        _set_writes_count(record, len(part.writes))
        return record

    @classmethod
    def of_put(
        cls, sequence: Sequence, group: GroupName, epoch: Epoch, key: bytes, value: bytes
    ) -> Record:
        """Return a whole record of one put without a lease: nearly all are."""
        put = _new(Put)
        _set_key(put, key)
        _set_value(put, value)
        _set_lease(put, NO_LEASE)
        _set_keep_value(put, False)
        record = _new(cls)
        _set_sequence(record, sequence)
        _set_parts(record, (GroupPart.made(group, epoch, (put,)),))
        _set_marks(record, ())
        _set_piece(record, None)
        _set_weight_bytes(record, len(key) + len(value) + 2 * WRITE_OVERHEAD_BYTES)
        _set_writes_count(record, 1)
        return record

    @weight_bytes.default
    def _weigh(self) -> int:
        total = WRITE_OVERHEAD_BYTES * (1 + 8 * len(self.marks))
        for part in self.parts:
            total += WRITE_OVERHEAD_BYTES * len(part.leases)
            for write in part.writes:
                total += write_bytes(write)
        return total

    @property
    def data_bytes(self) -> int:
        """The keys and values of the group in it: what its writer wrote."""
        units = 1 + 8 * len(self.marks) + self.writes_count
        units += sum(len(part.leases) for part in self.parts)
        return self.weight_bytes - WRITE_OVERHEAD_BYTES * units

    @writes_count.default
    def _count(self) -> int:
        return sum(len(part.writes) for part in self.parts)

    def bounded(self, bytes_max: int) -> Record:
        """Return this record, or marks that say to copy its groups if it is larger than that.

        A range delete, or a lease that ends, is a small request with any number of changes.
        """
        if self.weight_bytes <= bytes_max:
            return self
        gaps = (Resumed(group=p.group, epoch=p.epoch, is_dirty=True) for p in self.parts)
        return Record(sequence=self.sequence, marks=(*self.marks, *gaps))

    def pieces(self, *, bytes_max: int, writes_max: int) -> tuple[Record, ...]:
        """Return this record, which has no marks, in pieces no larger than that.

        A write that is larger is a piece alone.
        """
        assert not self.marks, "a mark is never part of a piece"
        stretches: list[list[GroupPart]] = [[]]
        size = count = 0
        for part in sorted(self.parts, key=lambda p: p.group):
            taken: list[Write] = []
            for write in sorted(part.writes, key=lambda w: w.key):
                weight = write_bytes(write)
                if count and (size + weight > bytes_max or count >= writes_max):
                    if taken:
                        stretches[-1].append(part.only(taken))
                    stretches.append([])
                    taken, size, count = [], 0, 0
                taken.append(write)
                size += weight
                count += 1
            stretches[-1].append(part.only(taken))
        last = len(stretches) - 1
        return tuple(
            attrs.evolve(self, parts=tuple(parts), piece=Piece(number=n, is_last=n == last))
            for n, parts in enumerate(stretches)
        )

    def with_terms(self, terms: Mapping[LeaseId, LeaseTerm]) -> Record:
        """Return this record saying of the leases it names what they were granted for."""
        parts = (attrs.evolve(part, leases=_named(part.writes, terms)) for part in self.parts)
        return attrs.evolve(self, parts=tuple(parts))

    def restricted(self, group: GroupName) -> Record | None:
        """Return what of this record is about `group`, or None."""
        parts = tuple(part for part in self.parts if part.group == group)
        marks = tuple(mark for mark in self.marks if mark.group == group)
        if not parts and not marks:
            return None
        return Record(sequence=self.sequence, parts=parts, marks=marks)


_new = object.__new__
_set_group, _set_epoch, _set_writes, _set_leases = (
    getattr(GroupPart, name).__set__ for name in ("group", "epoch", "writes", "leases")
)
_set_key, _set_value, _set_lease, _set_keep_value = (
    getattr(Put, name).__set__ for name in ("key", "value", "lease", "keep_value")
)
_set_sequence, _set_parts, _set_marks, _set_piece, _set_weight_bytes, _set_writes_count = (
    getattr(Record, name).__set__
    for name in ("sequence", "parts", "marks", "piece", "weight_bytes", "writes_count")
)


def _named(writes: Iterable[Write], terms: Mapping[LeaseId, LeaseTerm]) -> tuple[LeaseTerm, ...]:
    leases = {write.lease for write in writes if isinstance(write, Put) and write.lease}
    return tuple(terms[lease] for lease in sorted(leases) if lease in terms)


def write_bytes(write: Write) -> int:
    """Return what a write weighs in memory and on the wire, roughly."""
    if isinstance(write, Put):
        return len(write.key) + len(write.value) + WRITE_OVERHEAD_BYTES
    return len(write.key) + WRITE_OVERHEAD_BYTES


def records_bytes(records: Iterable[Record]) -> int:
    """Return what the records weigh together."""
    return sum(record.weight_bytes for record in records)
