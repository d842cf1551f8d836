"""Server-sent events as the automation API sends them (docs/api.md)."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class ServerEvent:
    """One server-sent event."""

    event_id: str
    event: str
    body: dict[str, Any]


async def parse_events(lines: AsyncIterable[bytes]) -> AsyncGenerator[ServerEvent, None]:
    """Yield the events in a stream of lines (HTML Living Standard, server-sent events)."""
    fields: dict[str, str] = {}
    async for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        elif "data" in fields:
            yield ServerEvent(
                event_id=fields.get("id", ""),
                event=fields.get("event", "message"),
                body=json.loads(fields["data"]),
            )
            fields = {}
