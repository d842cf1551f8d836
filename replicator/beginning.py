"""Where the service of a target begins, from what it says of itself and what history there is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import structlog

from meshkit.errors import Compacted
from meshkit.ordinals import Revision, Sequence
from meshkit.store.port import Store
from replicator.backlog import is_beyond_bound
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.messages import Hello, SegmentStanding
from replicator.segments import SegmentMap
from replicator.source import load_segments, standing_of
from replicator.spool.reading import SpoolReading

_log = structlog.get_logger()

History = tuple[SegmentMap, SpoolReading | None]
HistoryAt = Callable[[Sequence], Awaitable[History]]
"""Returns the history from a position on, or raises `Compacted`."""


@attrs.frozen(kw_only=True)
class Beginning:
    """Where a connection begins."""

    start: Sequence
    applied: Sequence
    """What the target has applied: past `start` if something is sent again. That is no lag."""
    segments: SegmentMap
    spooled: SpoolReading | None
    is_fresh: bool
    """Whether what came before will never be seen there."""
    resend_refused: str = ""

    @property
    def standings(self) -> tuple[SegmentStanding, ...]:
        """What the target has to be told of segments that it will not see opened."""
        return tuple(map(standing_of, self.segments.all_newest())) if self.is_fresh else ()


async def beginning_of(
    hello: Hello,
    store: Store,
    head: Revision,
    *,
    history_at: HistoryAt,
    limits: Limits = DEFAULT_LIMITS,
) -> Beginning:
    """Return where to begin: where the target asks, or at the head if that is gone or too far."""
    again = await _again(hello, history_at)
    if isinstance(again, Beginning):
        return again
    position = hello.position
    if position is not None and not await is_beyond_bound(store, position, head, limits=limits):
        try:
            segments, spooled = await history_at(position)
        except Compacted as error:
            _log.warning("target.position_compacted", target=hello.target, why=str(error))
        else:
            return Beginning(
                start=position,
                applied=position,
                segments=segments,
                spooled=spooled,
                is_fresh=False,
                resend_refused=again,
            )
    return Beginning(
        start=Sequence(head),
        applied=Sequence(head),
        segments=await load_segments(store, head),
        spooled=None,
        is_fresh=True,
        resend_refused=again,
    )


async def _again(hello: Hello, history_at: HistoryAt) -> Beginning | str:
    """Return where what is asked for again begins, or why it does not; empty if nothing is."""
    after, position = hello.resend_after, hello.position
    if after is None:
        return ""
    if position is None or after >= position:
        return f"position {after} is not before {position}, where the target stands"
    try:
        segments, spooled = await history_at(after)
    except Compacted as error:
        return f"the history after {after} is compacted away here: {error}"
    return Beginning(
        start=after, applied=position, segments=segments, spooled=spooled, is_fresh=False
    )
