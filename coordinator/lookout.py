"""Looks at heads of logs and proofs of life, and remembers by our own clock when each was seen.

A source's last head says how much was known of its log, and its holder's absence that its chain of
leases has run out. When that was nobody stores: a coordinator knows it since it began to look.

Heads are read, not watched: a watch may deliver late what came long ago, and a head that is thought
younger than it is makes the time too short in which writes may be lost. Of a reading it is known
that what it does not show was not there when it began.
"""

from __future__ import annotations

from typing import NoReturn

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import CorruptRecord, MeshError
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import last_part
from meshkit.mirror import PrefixMirror
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision
from meshkit.status import LogHead
from meshkit.store.port import Store
from meshkit.store.txn import KeyValue, prefix_range

_log = structlog.get_logger()

LOOK_MS = 200
"""How often heads are read."""
SEEN_LATE_MS = 250
"""A source stores a head at most so long after it read its clock for it, if all is well."""


@attrs.frozen(kw_only=True)
class Sight:
    """What was seen of a source, and when by our own monotonic clock."""

    head: LogHead | None = None
    head_after_ms: int | None = None
    """It was not there yet at this time; None if it was when we began to look."""
    holder_gone_ms: int | None = None
    """When its proof of life for the group was first missed; None while it is there."""


@attrs.define(kw_only=True, eq=False)
class Lookout:
    """Looks while its coordinator leads."""

    store: Store
    clock: Clock
    holders: PrefixMirror = attrs.field(init=False)
    _heads: dict[ClusterName, tuple[Revision, LogHead | None]] = attrs.field(
        factory=dict, init=False
    )
    _after_ms: dict[ClusterName, int] = attrs.field(factory=dict, init=False)
    _read_ms: int | None = attrs.field(default=None, init=False)
    """When the last reading that was answered began."""
    _gone_ms: dict[GroupName, int] = attrs.field(factory=dict, init=False)
    _looked_ms: int | None = attrs.field(default=None, init=False)
    """When the holders were first read: what was missing then had ended before."""

    def __attrs_post_init__(self) -> None:
        self.holders = PrefixMirror(self.store, Keys.holders, clock=self.clock)
        self.holders.on_change(self._on_holders)

    async def run(self) -> NoReturn:
        """Read the heads again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except MeshError as error:
                _log.debug("lookout.blind", why=str(error))
            await self.clock.sleep_ms(LOOK_MS)

    async def look(self) -> None:
        """Read the heads once, linearizable."""
        began_ms = self.clock.now_ms()
        result = await self.store.range(prefix_range(Keys.heads))
        for item in result.items:
            self._on_head(item)
        self._read_ms = began_ms

    def sight(self, source: ClusterName, group: GroupName) -> Sight:
        """Return what was seen of a source that is, or was, active for a group."""
        _, head = self._heads.get(source, (None, None))
        after_ms = self._after_ms.get(source)
        gone_ms = None
        if self._looked_ms is not None and Keys.holder(group) not in self.holders.entries:
            gone_ms = self._gone_ms.get(group, self._looked_ms)
        if gone_ms is not None and after_ms is not None and after_ms > gone_ms:
            # It told of itself after we missed it: it lived again, and we did not see that end.
            gone_ms = None
        return Sight(head=head, head_after_ms=after_ms, holder_gone_ms=gone_ms)

    def _on_head(self, item: KeyValue) -> None:
        source = ClusterName(last_part(item.key))
        if self._heads.get(source, (None, None))[0] == item.mod_revision:
            return
        try:
            head = decode(LogHead, item.value)
        except CorruptRecord:
            head = None
        self._heads[source] = (item.mod_revision, head)
        if self._read_ms is not None:
            self._after_ms[source] = self._read_ms

    def _on_holders(self, keys: frozenset[bytes]) -> None:
        if self._looked_ms is None:
            self._looked_ms = self.clock.now_ms()
        for key in keys:
            group = GroupName(last_part(key))
            if key in self.holders.entries:
                self._gone_ms.pop(group, None)
            else:
                self._gone_ms.setdefault(group, self.clock.now_ms())


def permit_ended_ms(sight: Sight, *, ended_ms: int, now_ms: int, wall_ms: int) -> int:
    """Return by when a permit had ended, on the source's wall clock as far as that is known.

    `ended_ms` is when it surely had, by our own monotonic clock. If we know a time at which the
    source's last head was not there yet, the two clocks are tied together by that; else ours has to
    do for the source's.
    """
    if sight.holder_gone_ms is not None:
        ended_ms = min(ended_ms, sight.holder_gone_ms)
    if sight.head is not None and sight.head_after_ms is not None:
        since_ms = max(0, ended_ms - sight.head_after_ms)
        return sight.head.at_ms + since_ms + SEEN_LATE_MS
    return wall_ms - (now_ms - ended_ms)
