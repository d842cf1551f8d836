"""Compacts the region's etcd by the rule, where the configuration asks for it.

Runs with the region's leadership, so there is one at a time. A deposed leader that compacts late
does so by positions that have only risen since.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from meshkit.clock import Clock
from meshkit.errors import MeshError
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision, Sequence
from meshkit.store.port import Store
from replicator.compaction import CompactionChoice, CompactionRule, choose
from replicator.local_history import LocalHistory
from replicator.spool.keep import Standby

_log = structlog.get_logger()

INTERVAL_MS = 30_000


class Compactor:
    """Decides and compacts now and then while the region's term lasts."""

    def __init__(
        self,
        rule: CompactionRule,
        *,
        store: Store,
        clock: Clock,
        history: LocalHistory,
        incarnation: Incarnation,
        is_leading: Callable[[], bool],
        needs: Callable[[], dict[ClusterName, Sequence | None] | None],
    ) -> None:
        self.compacted: Revision | None = None
        """Up to where this process compacted last."""
        self._rule = rule
        self._store = store
        self._clock = clock
        self._history = history
        self._incarnation = incarnation
        self._is_leading = is_leading
        self._needs = needs
        self._said = ""

    async def run(self) -> None:
        """Compact until cancelled; what could not be done is done later."""
        while True:
            try:
                await self.compact_once()
            except MeshError as error:
                _log.warning("compactor.failed", why=str(error))
            await self._clock.sleep_ms(INTERVAL_MS)

    async def compact_once(self) -> CompactionChoice | None:
        """Decide and compact; None while it is not known who needs what.

        Raises:
            MeshError: the store refused, or did not answer.
        """
        standbys, compacted = self._standbys(), self._history.retention.compacted
        if standbys is None or compacted is None:
            return None
        choice = choose(
            self._rule,
            standbys,
            times=self._history.retention.times,
            compacted=compacted,
            now_ms=self._clock.now_ms(),
        )
        self._say(choice)
        if choice.through is not None and self._is_leading():
            await self._store.compact(choice.through)
            self.compacted = choice.through
            await self._history.look()
        return choice

    def _standbys(self) -> tuple[Standby, ...] | None:
        """Return what every standby needs, by what is written down and by what is known now.

        The lower of both: a copy may have begun since, and a position that was written down may be
        all that is known of a standby that is away.
        """
        stored, needs = self._history.standbys(self._incarnation), self._needs()
        if stored is None or needs is None:
            return None
        found = {standby.target: standby.position for standby in stored}
        for target, sequence in needs.items():
            if sequence is not None:
                found[target] = min(found.get(target, sequence), sequence)
        age_ms, now_ms = self._history.retention.age_ms, self._clock.now_ms()
        return tuple(
            Standby(target=target, position=position, age_ms=age_ms(position, now_ms=now_ms))
            for target, position in sorted(found.items())
        )

    def _say(self, choice: CompactionChoice) -> None:
        if choice.through is None and choice.why == self._said:
            return
        self._said = choice.why
        log = _log.warning if choice.left_behind else _log.info
        log(
            "compactor.decided",
            through=choice.through,
            why=choice.why,
            left_behind=choice.left_behind,
            held_by=choice.held_by,
        )
