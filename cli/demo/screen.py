"""What is going on while the demo runs: live on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
from rich.live import Live
from rich.table import Table

from cli.api import MeshApi
from cli.demo.history import History, Told
from cli.render import Output, shown_lag, table
from meshkit.errors import MeshError
from meshkit.names import GroupName

_REFRESH_S = 0.25
_LINE_EVERY_S = 2.0
_RATE_OVER_NS = 1_000_000_000


@attrs.define(kw_only=True)
class Screen:
    """Shows groups, rates and lags until it is closed."""

    api: MeshApi
    histories: Mapping[GroupName, History]
    output: Output
    _lags: dict[str, list[str]] = attrs.field(factory=dict)

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show what is going on while the context is open."""
        is_live = self.output.err.is_terminal and not self.output.is_quiet
        looking = asyncio.create_task(self._look_forever())
        showing = asyncio.create_task(self._live() if is_live else self._lines())
        try:
            yield
        finally:
            for task in (looking, showing):
                task.cancel()
            await asyncio.gather(looking, showing, return_exceptions=True)

    async def _look_forever(self) -> None:
        while True:
            try:
                streams = (await self.api.get("/v1/replication"))["streams"]
                self._lags = {group: _lags(streams, group) for group in self.histories}
            except MeshError:
                self._lags = {}
            await asyncio.sleep(_REFRESH_S)

    async def _live(self) -> None:
        with Live(self._table(), console=self.output.err, auto_refresh=False) as live:
            while True:
                live.update(self._table(), refresh=True)
                await asyncio.sleep(_REFRESH_S)

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(_LINE_EVERY_S)
            for row in self._rows():
                group, cluster, epoch, rate, _total, lags = row
                self.output.note(f"        {group}: {cluster} (epoch {epoch}), {rate}; lag {lags}")

    def _table(self) -> Table:
        columns = ("GROUP", "ACTIVE", ">EPOCH", ">RATE", ">ACKED", "LAG OF THE COPIES")
        return table(columns, self._rows())

    def _rows(self) -> list[tuple[Any, ...]]:
        since_ns = time.monotonic_ns() - _RATE_OVER_NS
        rows = []
        for group, history in self.histories.items():
            recent = [w for w in history.writes[-2000:] if w.returned_ns > since_ns]
            done = [w for w in recent if w.told is Told.DONE]
            last = done[-1] if done else None
            rows.append(
                (
                    group,
                    last.cluster if last else None,
                    last.epoch if last else None,
                    f"{len(done)} writes/s",
                    history.count(Told.DONE),
                    ", ".join(self._lags.get(group, ())) or "unknown",
                )
            )
        return rows


def _lags(streams: list[dict[str, Any]], group: str) -> list[str]:
    """Return the lag of each copy of a group, as the streams from its active cluster have it."""
    return [
        f"{s['target']} {shown_lag(s.get('lag_ms'), s.get('lag_error_ms'))}"
        for s in streams
        if group in s.get("groups", ())
    ]
