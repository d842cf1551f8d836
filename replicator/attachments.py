"""Which keys of a passive copy hang on which lease at the active cluster. Pure.

A copy carries no lease, or it would run out here by itself (ADR 9). What its promotion will need is
stored beside it, one key per leased key, in the transactions that apply the copy. Most keys hang on
no lease, so appliers remember which do: a plain put then costs nothing more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from meshkit.keys import RegionalKeys, parts_below
from meshkit.names import GroupName
from meshkit.ordinals import NO_LEASE
from meshkit.regional import Attachment
from meshkit.store.txn import Delete, Put
from replicator.messages import CopyPage
from replicator.record import GroupPart, LeaseTerm, Write

ATTACHED_KEYS_MAX = 10_000
"""So many are remembered, of all groups together. With more, every put says where its key hangs."""


def place_of(group: GroupName, key: bytes) -> bytes:
    """Return the key under which the attachment of an application's key is stored."""
    return RegionalKeys.attachment(group, hashlib.sha256(key).hexdigest()[:32])


class KnownAttachments:
    """What an applier knows of the attachments stored in its region.

    Invariant: while `is_whole`, a key that is not in it is not attached. What one hangs on is known
    only if it was attached by this applier.
    """

    def __init__(self) -> None:
        self.is_whole = True
        self._terms: dict[GroupName, dict[bytes, LeaseTerm | None]] = {}
        self._count = 0

    @classmethod
    def of(cls, places: Iterable[bytes]) -> KnownAttachments:
        """Return what the keys of the stored attachments tell."""
        known = cls()
        for place in places:
            known._add(place, None)
        return known

    def copy(self) -> KnownAttachments:
        """Return the same knowledge, to be changed without changing this."""
        other = KnownAttachments()
        other.is_whole, other._count = self.is_whole, self._count
        other._terms = {group: dict(terms) for group, terms in self._terms.items()}
        return other

    def may_have(self, group: GroupName) -> bool:
        """Return whether any key of the group may be attached."""
        return not self.is_whole or bool(self._terms.get(group))

    def may_hold(self, group: GroupName, place: bytes) -> bool:
        """Return whether an attachment may be stored under `place`."""
        return not self.is_whole or place in self._terms.get(group, ())

    def term(self, group: GroupName, place: bytes) -> LeaseTerm | None:
        """Return what is stored under `place`, if that is known."""
        return self._terms.get(group, {}).get(place)

    def take(self, changes: Mapping[bytes, Attachment | None]) -> None:
        """Take in what a committed transaction has changed."""
        for place, attachment in changes.items():
            if attachment is None:
                self._drop(place)
            else:
                self._add(place, LeaseTerm(attachment.lease, attachment.ttl_s))

    def _add(self, place: bytes, term: LeaseTerm | None) -> None:
        own = self._terms.setdefault(_group(place), {})
        if place not in own:
            if self._count >= ATTACHED_KEYS_MAX:
                self.is_whole = False
                return
            self._count += 1
        own[place] = term

    def _drop(self, place: bytes) -> None:
        own = self._terms.get(_group(place), {})
        if place in own:
            del own[place]
            self._count -= 1


class AttachmentChanges:
    """What an apply transaction changes about attachments, as it grows."""

    def __init__(self, known: KnownAttachments) -> None:
        self.changed: dict[bytes, Attachment | None] = {}
        self._known = known

    def take(self, part: GroupPart) -> None:
        """Take in the writes of one revision in one group."""
        if not part.leases and not self.changed and not self._known.may_have(part.group):
            return
        terms = {term.lease: term for term in part.leases}
        for write in part.writes:
            term = terms.get(write.lease) if isinstance(write, Put) and write.lease else None
            self._hang(part.group, write.key, term)

    def take_page(
        self, page: CopyPage, writes: Mapping[bytes, Write], *, start: bytes, end: bytes
    ) -> None:
        """Take in `[start, end)` of a page of a copy, which `writes` bring about."""
        if not page.leases and not self._known.may_have(page.group):
            return
        terms = {term.lease: term for term in page.leases}
        for key, _ in page.items:
            if start <= key < end:
                self._hang(page.group, key, terms.get(page.leased.get(key, NO_LEASE)))
        for write in writes.values():
            if isinstance(write, Delete):
                self._hang(page.group, write.key, None)

    def _hang(self, group: GroupName, key: bytes, term: LeaseTerm | None) -> None:
        place = place_of(group, key)
        if term is None:
            if self.changed.get(place) is not None or self._known.may_hold(group, place):
                self.changed[place] = None
        elif place in self.changed or self._known.term(group, place) != term:
            self.changed[place] = Attachment(
                group=group, key=key, lease=term.lease, ttl_s=term.ttl_s
            )


def _group(place: bytes) -> GroupName:
    parts = parts_below(RegionalKeys.attachments, place)
    assert parts is not None, "an attachment lies below its prefix"
    return GroupName(parts[0])
