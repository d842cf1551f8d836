"""Server-sent events: each stored transition of a failover, and then the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import structlog
from aiohttp import web

from coordinator.api import views
from coordinator.failover.record import Failover, FailoverEvent, with_revision
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import MeshError
from meshkit.keys import CoordinationKeys as Keys
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges, Store, WatchItem
from meshkit.store.txn import KeyValue, prefix_range

_log = structlog.get_logger()

KEEP_ALIVE_MS = 10_000


async def follow(
    request: web.Request, store: Store, record: Failover, *, after: int, clock: Clock
) -> web.StreamResponse:
    """Send each transition past number `after`, as it is stored, until the failover ends.

    Ends early when the coordination etcd is out of reach: the caller resumes from any coordinator.
    """
    key_range = prefix_range(Keys.failover_events(record.group, record.id))
    past = await store.range(key_range)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):
        for item in past.items:
            if await _send(response, item, after=after):
                return response
        start = Revision(past.revision + 1)
        try:
            async with store.watch(key_range, start=start) as items:
                await _send_changes(response, items, after=after, clock=clock)
        except MeshError as error:
            _log.warning("following.interrupted", failover_id=record.id, why=str(error))
    return response


async def _send_changes(
    response: web.StreamResponse, items: AsyncIterator[WatchItem], *, after: int, clock: Clock
) -> None:
    pending: asyncio.Task[WatchItem] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(items))
            timer = asyncio.ensure_future(clock.sleep_ms(KEEP_ALIVE_MS))
            try:
                await asyncio.wait({pending, timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
            if not pending.done():
                await response.write(b": keep-alive\n\n")
                continue
            item, pending = pending.result(), None
            if isinstance(item, RevisionChanges):
                for change in item.changes:
                    if not change.is_delete and await _send(response, change.item, after=after):
                        return
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _next(items: AsyncIterator[WatchItem]) -> WatchItem:
    try:
        return await anext(items)
    except StopAsyncIteration as error:
        raise MeshError("the watch ended") from error


async def _send(response: web.StreamResponse, item: KeyValue, *, after: int) -> bool:
    """Send one transition, unless it was sent before; return whether it was the last one."""
    event = decode(FailoverEvent, item.value)
    record = with_revision(event.record, item.mod_revision)
    if event.number > after:
        body = views.event_view(event, item.mod_revision)
        await _write(response, "transition", body, number=event.number)
    if not record.phase.is_final:
        return False
    await _write(response, "end", views.end_view(record))
    return True


async def _write(
    response: web.StreamResponse, kind: str, body: dict[str, Any], *, number: int | None = None
) -> None:
    head = f"id: {number}\n" if number is not None else ""
    text = f"{head}event: {kind}\ndata: {json.dumps(body)}\n\n"
    await response.write(text.encode())
