"""The target's side of a copy: makes stretch after stretch as it is at the source.

Each transaction compares what it overwrites with what was looked at, so that nothing else that
writes here meanwhile is lost without having been looked at.
"""

from __future__ import annotations

import attrs

from meshkit.clock import Clock
from meshkit.errors import RevisionConflict
from meshkit.keys import RESERVED
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, Sequence
from meshkit.store.port import Store
from replicator.applier import Applier, StreamBroken
from replicator.attachments import place_of
from replicator.changes import Changes, changes_of, changes_of_delta
from replicator.draft import Hold, Overtaken, Stale
from replicator.in_parts import REFUSALS, parked
from replicator.keeper import Keeper
from replicator.looking import EXTRA_KEYS_MAX, Looking, NotLookedAt
from replicator.messages import Compared, CopyPage, Outline
from replicator.pulse import Pulse
from replicator.receiver import Receiver

EXTRA_KEYS_ALONE_MAX = 1_000
"""So many keys at a time are deleted where the source has none: then no values are read."""
EQUAL_PAGES_MAX = 32
"""So many pages that were equal pass before the group's checkpoint is moved past them."""
ATTEMPTS_MAX = 20
"""So often a stretch is looked at again because something else writes to it."""

_RESERVED_END = RESERVED[:-1] + b"0"


class CopyIn:
    """Applies the pages of copies that one source sends. Forgets everything with a connection."""

    def __init__(self, store: Store, applier: Applier, *, clock: Clock) -> None:
        self._store = store
        self._applier = applier
        self._looking = Looking(store)
        self._keeper = Keeper(store, applier, clock=clock)
        self._passed: dict[GroupName, int] = {}
        self._places: dict[GroupName, tuple[int, Sequence, int]] = {}

    def reset(self) -> None:
        """The connection ended."""
        self._looking.reset()
        self._passed.clear()
        self._places.clear()

    def forget(self, group: GroupName) -> None:
        """What was asked for of a group before no longer counts."""
        self._looking.forget(group)
        self._passed.pop(group, None)

    async def answer(self, receiver: Receiver, pulse: Pulse) -> None:
        """Answer outlines as they come, ahead of the pages that follow them, until cancelled."""
        while True:
            outline = receiver.next_outline()
            if outline is None:
                await pulse.wait()
                continue
            receiver.answer(await self.compare(outline))
            pulse.beat()

    async def compare(self, outline: Outline) -> Compared:
        """Return what the source is to be told of an outline."""
        _check_range(outline)
        group = outline.group
        attached = (self._applier.known or await self._applier.region()).attachments
        if not attached.may_have(group):
            return await self._looking.compare(outline)
        return await self._looking.compare(
            outline, is_sent_always=lambda key: attached.may_hold(group, place_of(group, key))
        )

    async def apply(self, page: CopyPage) -> Stale | Hold | None:
        """Make a stretch of a group as the page says, in bounded transactions.

        Raises:
            StreamBroken: a page before it is missing, or it is not what was agreed on.
        """
        _check_range(page)
        self._check_place(page)
        result = await self._apply_page(page)
        if page.place is not None:
            self._places[page.group] = (page.number, page.cut, page.place)
        return result

    def _check_place(self, page: CopyPage) -> None:
        """A page that is not there would leave its keys as they are: nothing else would show."""
        number, cut, last = self._places.get(page.group, (0, Sequence(0), 0))
        expected = last + 1 if (number, cut) == (page.number, page.cut) else 1
        if page.place not in (None, expected):
            raise StreamBroken(f"page {page.place} of {page.group} came in place of {expected}")

    async def _apply_page(self, page: CopyPage) -> Stale | Hold | None:
        if not page.is_delta:
            return await self._apply_whole(page)
        try:
            changes = changes_of_delta(page, self._looking.take(page))
        except (NotLookedAt, IndexError) as error:
            raise StreamBroken(f"a delta of what was not compared: {error!r}") from error
        if self._may_pass(page, changes):
            return None
        return await self._apply_delta(page, changes)

    def _may_pass(self, page: CopyPage, changes: Changes) -> bool:
        """Return whether a page may be left to be counted with a later one: it was equal."""
        passed = self._passed.get(page.group, 0) + 1
        is_due = page.is_first or page.is_final or passed > EQUAL_PAGES_MAX
        self._passed[page.group] = 0 if changes.writes or is_due else passed
        return not changes.writes and not is_due

    async def _apply_delta(self, page: CopyPage, changes: Changes) -> Stale | Hold | None:
        for _ in range(ATTEMPTS_MAX):
            result = await self._apply(page, changes)
            if not isinstance(result, Overtaken):
                return result
            changes = await self._looked_again(changes)
        raise RevisionConflict(f"something else keeps writing to {page.group} here")

    async def _looked_again(self, changes: Changes) -> Changes:
        here = await self._store.range((changes.start, changes.end), keys_only=True)
        found = {i.key: i.mod_revision for i in here.items if i.key in changes.writes}
        return attrs.evolve(changes, found=found, revision=here.revision)

    async def _apply_whole(self, page: CopyPage) -> Stale | Hold | None:
        start = page.start
        for _ in range(ATTEMPTS_MAX):
            while True:
                changes = await self._difference(page, start)
                result = await self._apply(page, changes)
                if isinstance(result, Overtaken):
                    break
                if result is not None or changes.end == page.end:
                    return result
                start = changes.end
        raise RevisionConflict(f"something else keeps writing to {page.group} here")

    async def _difference(self, page: CopyPage, start: bytes) -> Changes:
        """Return how to make `[start, ...)` as in the page; it may fall short of the page's end."""
        if start == page.end:
            return Changes(start=start, end=start, writes={}, found={}, revision=ABSENT)
        limit = len(page.items) + EXTRA_KEYS_MAX if page.items else EXTRA_KEYS_ALONE_MAX
        key_range = (start, page.end)
        here = await self._store.range(key_range, limit=limit, keys_only=not page.items)
        end = here.items[-1].key + b"\x00" if here.more else page.end
        return changes_of(page, here.items, start=start, end=end, revision=here.revision)

    async def _apply(self, page: CopyPage, changes: Changes) -> Stale | Hold | Overtaken | None:
        """Bring the changes about, and set aside what was not expected to be overwritten."""
        rest: Changes | None = changes
        while rest is not None:
            kept = await self._keeper.keep(page, rest)
            if isinstance(kept, Overtaken):
                return kept
            some, rest = kept
            result = await self._apply_kept(page, some)
            if result is not None:
                return result
        return None

    async def _apply_kept(
        self, page: CopyPage, changes: Changes
    ) -> Stale | Hold | Overtaken | None:
        """Bring the changes about: in halves, if they are too much for one request."""
        try:
            return await self._applier.apply_changes(page, changes)
        except REFUSALS as error:
            if not changes.writes:
                raise
            if len(changes.writes) == 1:
                (write,) = changes.writes.values()
                source = self._applier.source
                refused = parked(page.group, source, page.cut, write, str(error))
                return Hold(reason=refused.problem, parked=refused)
        lower, upper = changes.split()
        return await self._apply_kept(page, lower) or await self._apply_kept(page, upper)


def _check_range(stretch: CopyPage | Outline) -> None:
    if stretch.start < _RESERVED_END and stretch.end > RESERVED:
        raise StreamBroken(f"a page of {stretch.group} reaches into {RESERVED.decode()}")
