"""Reads the store's head every few milliseconds, so that commit times are bracketed."""

from __future__ import annotations

import structlog

from meshkit.clock import Clock
from meshkit.errors import MeshError
from meshkit.keys import RegionalKeys
from meshkit.ordinals import Revision
from meshkit.store.port import Store
from replicator.lag import Anchor, CommitTimes
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.pulse import Pulse

_log = structlog.get_logger()


class HeadTracker:
    """Keeps the commit times of one store; `pulse` beats after every anchor."""

    def __init__(self, store: Store, clock: Clock, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.times = CommitTimes(anchors_max=limits.anchors_max)
        self.pulse = Pulse()
        self._store = store
        self._clock = clock
        self._limits = limits

    @property
    def head(self) -> Revision:
        """The newest revision seen; 0 before the first read."""
        newest = self.times.newest
        return newest.revision if newest else Revision(0)

    @property
    def age_ms(self) -> int:
        """How long ago `head` was the newest revision, at most."""
        newest = self.times.newest
        return self._clock.now_ms() - newest.sent_ms if newest else 0

    async def run(self) -> None:
        """Read until cancelled; a store that does not answer leaves the anchors to age."""
        while True:
            try:
                await self._read()
            except MeshError as error:
                _log.debug("anchor.missed", why=str(error))
            await self._clock.sleep_ms(self._limits.anchor_interval_ms)

    async def _read(self) -> None:
        sent_ms = self._clock.now_ms()
        result = await self._store.range((RegionalKeys.fence_index, b""), keys_only=True)
        self.times.on_anchor(
            Anchor(sent_ms=sent_ms, received_ms=self._clock.now_ms(), revision=result.revision)
        )
        self.pulse.beat()
