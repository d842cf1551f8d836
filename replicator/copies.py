"""The copies that one connection serves: each page is sent whole, or only where it differs.

Where the target holds something, it is sent the outline of a page first, and answers what it has
there. The page itself waits here for that answer, so that it is read once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from meshkit.clock import Clock
from meshkit.errors import Refused
from meshkit.ordinals import Sequence
from meshkit.status import CopyProgress
from meshkit.store.port import Store
from meshkit.store.txn import KeyRange, prefix_range
from replicator.copying import keys_in, pages
from replicator.lease_terms import LeaseTerms
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.messages import Compared, CopyPage, Join, Outline, Verdict, message_bytes
from replicator.outline import (
    difference_of,
    digest_of,
    items_in_parts,
    part_digests,
    part_starts,
)
from replicator.pulse import Pulse
from replicator.sender import Sender
from replicator.throttle import Throttle


class NotAnAnswer(Refused):
    """The target answered something else than what it was asked to compare."""

    code = "not_an_answer"


@attrs.frozen(kw_only=True)
class Pacing:
    """How fast pages may be sent, and whether any may be."""

    clock: Clock
    throttle: Throttle
    is_held: Callable[[], bool] = lambda: False

    async def wait(self, size_bytes: int) -> None:
        """Return when so much more may be sent."""
        wait_ms = self.throttle.take(size_bytes, now_ms=self.clock.now_ms())
        if wait_ms:
            await self.clock.sleep_ms(wait_ms)


class Copies:
    """Sends the pages of every copy of one connection, as fast as the target takes them.

    Invariant: the pages that wait for an answer weigh no more than `compared_bytes_max` together,
    beside one for each copy.
    """

    def __init__(
        self,
        sender: Sender,
        pulse: Pulse,
        pacing: Pacing,
        store: Store,
        *,
        terms: LeaseTerms,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._sender = sender
        self._pulse = pulse
        self._pacing = pacing
        self._store = store
        self._terms = terms
        self._limits = limits
        self._under_way: dict[int, _Copy] = {}
        self._waiting_bytes = 0

    def progress(self) -> tuple[CopyProgress, ...]:
        """Return how far each copy is, by group."""
        found = (copy.progress for copy in self._under_way.values())
        return tuple(sorted(found, key=lambda progress: progress.group))

    def on_compared(self, answer: Compared) -> None:
        """Take in what the target says of an outline; of a copy that has ended, nothing counts."""
        copy = self._under_way.get(answer.number)
        if copy is not None:
            copy.answers.append(answer)

    async def send(
        self, join: Join, prefixes: tuple[bytes, ...], *, cut: Sequence, cursor: bytes | None
    ) -> None:
        """Send everything as of `cut`, from `cursor` on, and return when it is on its way.

        Raises:
            Compacted, Unreachable: reading ended.
            NotAnAnswer: the target does not keep to the protocol.
        """
        keys_total, keys_done = await keys_in(self._store, prefixes, cut=cut, cursor=cursor)
        read = pages(
            self._store,
            join,
            prefixes=prefixes,
            cut=cut,
            cursor=cursor,
            terms=self._terms,
            limits=self._limits,
        )
        copy = _Copy(
            ranges=tuple(prefix_range(prefix) for prefix in prefixes),
            in_parts=join.compares_parts,
            progress=CopyProgress(
                group=join.group, keys_done=keys_done, keys_total=keys_total, bytes_done=0
            ),
        )
        self._under_way[join.number] = copy
        place = 0
        try:
            async for unnumbered in read:
                page = attrs.evolve(unnumbered, place=(place := place + 1))
                if join.compares and copy.may_be_there(page):
                    await self._outline(copy, page)
                else:
                    await self._settle(copy, all_of_them=True)
                    await self._push(copy, page, page)
            await self._settle(copy, all_of_them=True)
        finally:
            self._waiting_bytes -= sum(map(message_bytes, copy.waiting))
            if self._under_way.get(join.number) is copy:
                del self._under_way[join.number]

    async def _outline(self, copy: _Copy, page: CopyPage) -> None:
        while copy.waiting and (self._is_full or not self._sender.has_side_room):
            if not await self._settle(copy):
                await self._pulse.wait()
        copy.waiting.append(page)
        self._waiting_bytes += message_bytes(page)
        self._sender.on_copy_page(outline_of(page, copy.range_end(page), in_parts=copy.in_parts))
        self._pulse.beat()
        # Nothing may be there at all: then no more is outlined, so the first answer is awaited.
        await self._settle(copy, all_of_them=copy.is_first_of_range(page))

    @property
    def _is_full(self) -> bool:
        return self._waiting_bytes >= self._limits.compared_bytes_max

    async def _settle(self, copy: _Copy, *, all_of_them: bool = False) -> bool:
        """Send what was answered, and return whether there was anything."""
        is_any = False
        while copy.answers or (all_of_them and copy.waiting):
            if not copy.answers:
                await self._pulse.wait()
                continue
            page = copy.first(copy.answers[0])
            settled = copy.settled(page, copy.answers[0])
            copy.answers.popleft()
            copy.waiting.popleft()
            self._waiting_bytes -= message_bytes(page)
            await self._push(copy, page, settled)
            is_any = True
        return is_any

    async def _push(self, copy: _Copy, page: CopyPage, sent: CopyPage) -> None:
        """Send what there is to send of a page, as soon as there is room and it is allowed."""
        await self._pacing.wait(sent.weight_bytes)
        while self._pacing.is_held() or not self._sender.has_side_room:
            await self._pulse.wait()
        self._sender.on_copy_page(sent)
        copy.count(page, sent)
        self._pulse.beat()


def outline_of(page: CopyPage, range_end: bytes, *, in_parts: bool) -> Outline:
    """Return what a target is told of a page, to say what of it is there."""
    outline = Outline(
        group=page.group,
        number=page.number,
        cut=page.cut,
        start=page.start,
        end=page.end,
        range_end=range_end,
        keys_count=len(page.items),
        digest=b"",
    )
    # A lease is nothing that a digest of keys and values shows.
    if in_parts:
        keys, values = [key for key, _ in page.items], [value for _, value in page.items]
        starts = part_starts(keys)
        digests = part_digests(keys, values, starts, by_key=page.leased)
        return attrs.evolve(outline, part_starts=starts, part_digests=b"".join(digests))
    return outline if page.leased else attrs.evolve(outline, digest=digest_of(page.items))


@attrs.define(kw_only=True)
class _Copy:
    """One copy as it stands."""

    ranges: tuple[KeyRange, ...]
    in_parts: bool
    """Whether the outlines tell of parts."""
    progress: CopyProgress
    waiting: deque[CopyPage] = attrs.field(factory=deque)
    """Pages whose outlines were sent, in their order."""
    answers: deque[Compared] = attrs.field(factory=deque)
    asked: set[bytes] = attrs.field(factory=set)
    """The ends of the prefixes of which something was outlined."""
    empty_to: bytes = b""
    """The target holds nothing before this that it was not sent by this copy."""

    def count(self, page: CopyPage, sent: CopyPage) -> None:
        """Count a page as done, of which only `sent` had to be sent."""
        before = self.progress
        done = before.keys_done + len(page.items)
        self.progress = attrs.evolve(
            before,
            keys_done=done,
            keys_total=max(before.keys_total, done),
            bytes_done=before.bytes_done + page.weight_bytes,
            keys_sent=before.keys_sent + len(sent.items),
            bytes_sent=before.bytes_sent + sent.weight_bytes,
        )

    def may_be_there(self, page: CopyPage) -> bool:
        return page.end > self.empty_to and page.start < page.end

    def is_first_of_range(self, page: CopyPage) -> bool:
        """Return whether the page begins a prefix, or this copy of it."""
        is_first = self.range_end(page) not in self.asked
        self.asked.add(self.range_end(page))
        return is_first

    def range_end(self, page: CopyPage) -> bytes:
        return next(end for start, end in self.ranges if start <= page.start < end)

    def first(self, answer: Compared) -> CopyPage:
        """Return the first page that waits, if it is the one that the answer is about."""
        if not self.waiting or self.waiting[0].start != answer.start:
            raise NotAnAnswer(f"a page at {answer.start!r} of {answer.group} was not outlined")
        return self.waiting[0]

    def settled(self, page: CopyPage, answer: Compared) -> CopyPage:
        """Return what to send for a page, now that its answer is there."""
        match answer.verdict:
            case Verdict.EQUAL:
                return attrs.evolve(page, items=(), is_delta=True)
            case Verdict.CROWDED:
                return page
            case Verdict.EMPTY:
                self.empty_to = max(self.empty_to, self.range_end(page))
                return page
            case Verdict.DIFFERENT:
                try:
                    items, dropped = difference_of(
                        items_in_parts(page.items, answer.parts) if self.in_parts else page.items,
                        answer.fingerprints,
                        always=page.leased,
                    )
                except ValueError as error:
                    raise NotAnAnswer(str(error)) from error
                return attrs.evolve(page, items=items, dropped=dropped, is_delta=True)
