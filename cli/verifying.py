"""Comparing copies: request, waiting for what the clusters find, result."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import attrs

from cli.api import MeshApi
from cli.session import Session, confirmed
from cli.settings import FOLLOW_TIMEOUT_MS
from meshkit.errors import Unreachable

FAILED, REFUSED, STILL_RUNNING = 1, 3, 5
_POLL_S = 0.2

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class Asked:
    """What the operator asked for."""

    group: str
    target: str | None
    repair: bool
    yes: bool
    request_id: str


def verify(session: Session, asked: Asked) -> int:
    """Have copies compared and return the exit code."""
    from cli.views import verify_table

    if asked.repair:
        copies = f"the copy at {asked.target}" if asked.target else "every copy"
        question = f"Make {copies} of {asked.group} equal to the active cluster where it differs?"
        if not confirmed(question, yes=asked.yes):
            session.output.note("nothing was changed")
            return REFUSED
    body: Json = {"repair": asked.repair, "request_id": asked.request_id or str(uuid.uuid4())}
    if asked.target is not None:
        body["target"] = asked.target
    timeout_ms = session.settings.timeout_ms(FOLLOW_TIMEOUT_MS)
    answer = session.run(lambda api: _results(api, asked.group, body, timeout_ms=timeout_ms))
    verifications = answer["verifications"]
    session.output.result(answer, lambda: verify_table(verifications))
    for each in verifications:
        if each["result"] and each["result"]["outcome"] == "different":
            session.output.note(
                f"{each['target']}: which keys differ is at {each['result']['where']} in its etcd;"
                f" to make it equal: mesh replication verify {asked.group}"
                f" --target {each['target']} --repair"
            )
    return exit_code(verifications)


def exit_code(verifications: Sequence[Json]) -> int:
    """Return the worst outcome's exit code."""
    outcomes = {v["result"]["outcome"] if v["result"] else "running" for v in verifications}
    by_badness = (("different", FAILED), ("refused", REFUSED), ("running", STILL_RUNNING))
    return next((code for outcome, code in by_badness if outcome in outcomes), 0)


async def _results(api: MeshApi, group: str, body: Json, *, timeout_ms: int) -> Json:
    """Ask, and return what was found as soon as every cluster has said so, or time is up."""
    path = f"/v1/groups/{group}/verify"
    answer = (await api.post(path, body)).body
    asked = {v["target"]: v["id"] for v in answer["verifications"]}
    deadline = time.monotonic() + timeout_ms / 1000
    while any(v["status"] == "running" for v in answer["verifications"]):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(_POLL_S)
        try:
            found = await api.get(path)
        except Unreachable:
            continue
        answer = _ours(found, asked)
    return answer


def _ours(found: Json, asked: dict[str, str]) -> Json:
    """Return those that were asked for; one that a newer request replaced is refused."""
    by_id = {(each["target"], each["id"]): each for each in found["verifications"]}
    replaced: Json = {
        "outcome": "refused",
        "reason": "a newer request took its place, or the cluster is no member any more",
        "began_ms": 0,
        "ended_ms": 0,
    }
    verifications = [
        by_id.get((target, verify_id))
        or {"id": verify_id, "target": target, "status": "done", "result": replaced}
        for target, verify_id in asked.items()
    ]
    return found | {"verifications": verifications}
