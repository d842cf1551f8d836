"""Obeying seals and authority before the first beat, and again whenever the beat fell silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.errors import MeshError

_log = structlog.get_logger()


@attrs.define(kw_only=True, eq=False)
class Obedience:
    """Whether a beat may be put now.

    It lasts `silence_ms_max` and each beat prolongs it; after that every gate has closed and
    authority may have moved unseen, so `obey` must have run again before gates open.
    """

    obey: Callable[[], Coroutine[None, None, None]]
    silence_ms_max: int
    clock: Clock
    on_done: Callable[[], None]
    _vouched_at_ms: int | None = attrs.field(default=None, init=False)
    _task: asyncio.Task[None] | None = attrs.field(default=None, init=False)

    @property
    def lasts(self) -> bool:
        """Whether it has been obeyed, recently enough."""
        if self._vouched_at_ms is None:
            return False
        return self.clock.now_ms() - self._vouched_at_ms < self.silence_ms_max

    def prolong(self) -> None:
        """Note that a beat was put."""
        self._vouched_at_ms = self.clock.now_ms()

    def begin_in(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to obey, unless that is going on; `on_done` is called when it was done."""
        if self._task is None or self._task.done():
            self._task = tasks.create_task(self._run())

    def reset(self) -> None:
        """Forget that it was obeyed and stop obeying: the leases are others."""
        self._vouched_at_ms = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        try:
            await self.obey()
        except MeshError as error:
            _log.warning("chain.obeying_failed", error=str(error))
            return
        self.prolong()
        self.on_done()
