"""When a target that comes back is better copied than brought up record by record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from meshkit.clock import Clock
from meshkit.errors import MeshError, Refused
from meshkit.ordinals import Revision, Sequence
from meshkit.store.port import Store
from replicator.copying import keys_in
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.source import load_segments

_log = structlog.get_logger()

REVISIONS_PER_KEY = 0.5
"""A copy compares some keys in the time in which the stream carries one revision. This leaves it
a margin: a copy costs the target its promotability while it lasts."""


class Heads(Protocol):
    """Knows the store's head."""

    @property
    def head(self) -> Revision:
        """The newest revision that was seen."""


class BeyondBound(Refused):
    """A connected target fell so far behind that it is to begin anew, by a copy."""

    code = "beyond_bound"


def is_copy_cheaper(*, revisions: int, keys: int, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Return whether a copy of `keys` is better than a backlog of so many revisions. Pure.

    Never for a backlog within the bound, however few keys there are.
    """
    bound = limits.backlog_revisions_max
    return bool(bound) and revisions > bound and revisions > REVISIONS_PER_KEY * keys


async def is_beyond_bound(
    store: Store, position: Sequence, head: Revision, *, limits: Limits = DEFAULT_LIMITS
) -> bool:
    """Return whether a target that stands at `position` is to begin anew at `head`.

    Raises:
        Unreachable: no member answered.
    """
    revisions = head - position
    if not is_copy_cheaper(revisions=revisions, keys=0, limits=limits):
        return False
    segments = await load_segments(store, head)
    keys = 0
    for segment in segments.all_newest():
        keys += (await keys_in(store, segment.prefixes, cut=Sequence(head), cursor=None))[0]
    is_cheaper = is_copy_cheaper(revisions=revisions, keys=keys, limits=limits)
    _log.info("backlog.beyond_bound", revisions=revisions, keys=keys, copied=is_cheaper)
    return is_cheaper


async def stays_within_bound(
    store: Store,
    clock: Clock,
    position: Callable[[], Sequence | None],
    heads: Heads,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Look now and then at how far a target is behind, until cancelled.

    `position` is what it has stored, or None where that is unknown or it is not to go on. One that
    is coming closer is left alone.

    Raises:
        BeyondBound: too far. When it connects again it is told to begin anew.
    """
    behind_before: int | None = None
    while True:
        await clock.sleep_ms(limits.backlog_look_ms)
        stored = position()
        if stored is None:
            continue
        behind = heads.head - stored
        comes_closer, behind_before = behind_before is None or behind < behind_before, behind
        if comes_closer:
            continue
        try:
            is_beyond = await is_beyond_bound(store, stored, heads.head, limits=limits)
        except MeshError as error:
            _log.info("backlog.not_looked_at", why=str(error))
            continue
        if is_beyond:
            raise BeyondBound(f"{behind} revisions behind, and a copy is cheaper")
