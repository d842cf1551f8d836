"""Sending history again: request, waiting for what comes of it, result."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import attrs

from cli.api import MeshApi
from cli.session import Session
from cli.settings import FOLLOW_TIMEOUT_MS
from meshkit.errors import Unreachable

REFUSED, STILL_RUNNING = 3, 5
_POLL_S = 0.2

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class Asked:
    """What the operator asked for."""

    group: str
    start: int
    target: str | None
    request_id: str


def replay(session: Session, asked: Asked) -> int:
    """Have history sent again and return the exit code."""
    from cli.views import replay_table

    body: Json = {"start": asked.start, "request_id": asked.request_id or str(uuid.uuid4())}
    if asked.target is not None:
        body["target"] = asked.target
    timeout_ms = session.settings.timeout_ms(FOLLOW_TIMEOUT_MS)
    answer = session.run(lambda api: _results(api, asked.group, body, timeout_ms=timeout_ms))
    session.output.result(answer, lambda: replay_table(answer["replays"]))
    return exit_code(answer["replays"])


def exit_code(replays: Sequence[Json]) -> int:
    """Return the worst outcome's exit code."""
    outcomes = {each["result"]["outcome"] if each["result"] else "running" for each in replays}
    if "refused" in outcomes:
        return REFUSED
    return STILL_RUNNING if "running" in outcomes else 0


async def _results(api: MeshApi, group: str, body: Json, *, timeout_ms: int) -> Json:
    """Ask, and return what came as soon as every cluster has said so, or time is up."""
    path = f"/v1/groups/{group}/replay"
    answer = (await api.post(path, body)).body
    asked = {each["target"]: each["id"] for each in answer["replays"]}
    deadline = time.monotonic() + timeout_ms / 1000
    while any(each["status"] == "running" for each in answer["replays"]):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(_POLL_S)
        try:
            answer = _ours(await api.get(path), asked)
        except Unreachable:
            continue
    return answer


def _ours(found: Json, asked: dict[str, str]) -> Json:
    """Return those that were asked for; one that a newer request replaced is refused."""
    by_id = {(each["target"], each["id"]): each for each in found["replays"]}
    replaced: Json = {"outcome": "refused", "reason": "a newer request took its place"}
    return found | {
        "replays": [
            by_id.get((target, replay_id))
            or {"id": replay_id, "target": target, "status": "done", "result": replaced}
            for target, replay_id in asked.items()
        ]
    }
