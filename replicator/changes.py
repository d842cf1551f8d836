"""What must be written to make a stretch of keys as it is at the source, and over what. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from meshkit.ordinals import ABSENT, Revision
from meshkit.store.txn import Delete, Guard, KeyValue, ModRevisionIs, NoneModifiedSince, Put
from replicator.looking import Looked
from replicator.messages import CopyPage
from replicator.record import Write

GUARDS_MAX = 60
"""More keys than this are guarded by their range: etcd takes 128 compares in a transaction."""


@attrs.frozen(kw_only=True)
class Changes:
    """The writes that make `[start, end)` equal to a page, over what was looked at.

    Invariant: the guards hold only while every key to be written is still as it was looked at.
    """

    start: bytes
    end: bytes
    writes: dict[bytes, Write]
    found: Mapping[bytes, Revision]
    """What each key to be written was last changed at; one that is not there is missing."""
    revision: Revision
    """Of this etcd when it was looked at."""
    kept: Mapping[bytes, Put] = attrs.field(factory=dict)
    """Entries of quarantine that belong with the writes of these keys."""

    @property
    def all_writes(self) -> dict[bytes, Write]:
        """The writes, with the entries that tell what they overwrite."""
        return {**self.writes, **{put.key: put for put in self.kept.values()}}

    @property
    def guards(self) -> tuple[Guard, ...]:
        """The guards of the transaction that writes them."""
        if not self.writes:
            return ()
        if len(self.writes) > GUARDS_MAX:
            return (NoneModifiedSince((self.start, self.end), self.revision),)
        return tuple(ModRevisionIs(key, self.found.get(key, ABSENT)) for key in self.writes)

    def split(self) -> tuple[Changes, Changes]:
        """Return the changes in two halves, lower keys first."""
        keys = sorted(self.writes)
        return self.split_at(keys[len(keys) // 2])

    def split_at(self, key: bytes) -> tuple[Changes, Changes]:
        """Return the changes below a key, and those from it on."""
        return self._part(self.start, key), self._part(key, self.end)

    def _part(self, start: bytes, end: bytes) -> Changes:
        return attrs.evolve(
            self,
            start=start,
            end=end,
            writes={key: write for key, write in self.writes.items() if start <= key < end},
            found={key: was for key, was in self.found.items() if start <= key < end},
            kept={key: put for key, put in self.kept.items() if start <= key < end},
        )


def changes_of(
    page: CopyPage, here: Iterable[KeyValue], *, start: bytes, end: bytes, revision: Revision
) -> Changes:
    """Return what makes `[start, end)` equal to a whole page, over everything that is there."""
    wanted = {key: value for key, value in page.items if start <= key < end}
    known = {item.key: item for item in here}
    writes: dict[bytes, Write] = {key: Delete(key) for key in known if key not in wanted}
    for key, value in wanted.items():
        own = known.get(key)
        if own is None or own.value != value or own.lease:
            writes[key] = Put(key, value)
    found = {key: known[key].mod_revision for key in writes if key in known}
    return Changes(start=start, end=end, writes=writes, found=found, revision=revision)


def changes_of_delta(page: CopyPage, looked: Looked) -> Changes:
    """Return what a delta says to do, over what was looked at when it was asked for."""
    found = dict(looked.keys)
    writes: dict[bytes, Write] = {key: Put(key, value) for key, value in page.items}
    for place in page.dropped:
        key, _ = looked.keys[place]
        writes.setdefault(key, Delete(key))
    return Changes(
        start=page.start,
        end=page.end,
        writes=writes,
        found={key: found[key] for key in writes if key in found},
        revision=looked.revision,
    )
