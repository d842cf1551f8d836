"""Leaving a cluster: what would move, the question, the request, and following all of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs

from cli.api import MeshApi
from cli.follow import INTERRUPTED, STILL_RUNNING
from cli.render import table
from cli.session import Session, confirmed
from cli.settings import FOLLOW_TIMEOUT_MS
from meshkit.errors import InvalidInput, OutcomeUnknown, Unreachable

FAILED = 1
REFUSED = 3
ROLLED_BACK = 8
_POLL_S = 0.5
_ROWS_MAX = 20
"""Groups shown one by one; of more only the counts, and those with a problem."""


@attrs.define(kw_only=True)
class Leaving:
    """What the operator asked for."""

    cluster: str
    body: dict[str, Any]
    request_id: str
    dry_run: bool
    yes: bool
    wait: bool

    @property
    def path(self) -> str:
        """Where the API takes it."""
        return f"/v1/clusters/{self.cluster}/evacuation"


def request_body(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request as the API takes it.

    Raises:
        InvalidInput: a bound on the loss that cannot be read, or one without `--emergency`.
    """
    body: dict[str, Any] = {
        "kind": "emergency" if options["emergency"] else "promote",
        "reason": options["reason"],
        "change": options["change"],
        "waive": list(options["waive"]),
    }
    if options["to"]:
        body["target"] = options["to"]
    if options["no_fence_wait"]:
        body["no_fence_wait"] = True
    if options["accept_loss"]:
        body["accept_loss"] = _bound(options["accept_loss"])
    return body


def _bound(text: str) -> dict[str, Any]:
    if text == "unknown":
        return {"unknown": True}
    bound: dict[str, Any] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in ("records", "seconds") or not number.isdigit():
            raise InvalidInput(
                f"--accept-loss: expected records=N,seconds=S or unknown, found {text!r}"
            )
        bound[name] = int(number)
    return bound


def evacuate(session: Session, leaving: Leaving) -> int:
    """Carry out an evacuation and return the exit code."""
    is_repeat = bool(leaving.request_id) and leaving.yes and not leaving.dry_run
    if not is_repeat:
        asked = {**leaving.body, "dry_run": True}
        shown = session.run(lambda api: api.post(leaving.path, asked, is_change=False)).body
        code = _consider(session, leaving, shown)
        if code is not None:
            return code
    leaving.request_id = leaving.request_id or str(uuid.uuid4())
    begun = _begin(session, leaving)
    refused = [row for row in begun["groups"] if row["outcome"] == "refused"]
    if not leaving.wait:
        session.output.result(begun, lambda: leaving.request_id)
        return REFUSED if refused else 0
    return _follow(session, leaving, refused)


def _consider(session: Session, leaving: Leaving, shown: dict[str, Any]) -> int | None:
    """Show what would happen and ask; return an exit code to stop with, None to go on."""
    groups = shown["groups"]
    refused = [row for row in groups if row["outcome"] == "refused"]
    if leaving.dry_run:
        session.output.result(shown, lambda: _plan_table(groups))
        return REFUSED if refused else 0
    if not groups:
        message = f"no group is active at {leaving.cluster}"
        session.output.result(shown, lambda: f"no change: {message}")
        return 0
    session.output.note(_plan_table(groups))
    movable = len(groups) - len(refused)
    if refused:
        session.output.note(f"{len(refused)} of {len(groups)} groups cannot move; the others can")
    if not movable:
        return REFUSED
    question = f"Move the writes of {movable} groups away from {leaving.cluster}?"
    if not confirmed(question, yes=leaving.yes):
        session.output.note("nothing was changed")
        return REFUSED
    return None


def _begin(session: Session, leaving: Leaving) -> dict[str, Any]:
    body = {**leaving.body, "request_id": leaving.request_id}
    try:
        answer = session.run(lambda api: api.post(leaving.path, body)).body
    except OutcomeUnknown as error:
        raise OutcomeUnknown(
            str(error),
            hint=f"repeat it with --yes --request-id {leaving.request_id}: that follows what has"
            " begun and begins what has not",
        ) from error
    return dict(answer)


def _follow(session: Session, leaving: Leaving, refused: list[dict[str, Any]]) -> int:
    """Follow until nothing is under way, show how each group ended, and return the exit code."""
    timeout_ms = session.settings.timeout_ms(FOLLOW_TIMEOUT_MS)
    try:
        progress = session.run(lambda api: _until_ended(session, api, leaving, timeout_ms))
    except KeyboardInterrupt:
        session.output.note(
            f"interrupted; the groups move on: mesh clusters evacuate {leaving.cluster} --yes"
            f" --request-id {leaving.request_id}"
        )
        return INTERRUPTED
    stayed = [row for row in progress["groups"] if not row["moved"] and not row["under_way"]]
    result = {**progress, "refused": refused}
    session.output.result(result, lambda: _ended_text(leaving, progress, refused))
    if progress["under_way"]:
        return STILL_RUNNING
    if stayed:
        return ROLLED_BACK
    return REFUSED if refused else 0


async def _until_ended(
    session: Session, api: MeshApi, leaving: Leaving, timeout_ms: int
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_ms / 1000
    told: tuple[int, int] | None = None
    began = time.monotonic()
    while True:
        try:
            progress = await api.get(f"{leaving.path}?request_id={leaving.request_id}")
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_S)
            continue
        moved, total = progress["moved"], len(progress["groups"])
        if (moved, progress["under_way"]) != told:
            told = (moved, progress["under_way"])
            took = time.monotonic() - began
            session.output.note(
                f"{moved}/{total} moved, {progress['under_way']} under way ({took:.1f}s)"
            )
        if not progress["under_way"] or time.monotonic() > deadline:
            return dict(progress)
        await asyncio.sleep(_POLL_S)


def _plan_table(groups: list[dict[str, Any]]) -> Any:
    shown = [row for row in groups if row["outcome"] == "refused"]
    shown += [row for row in groups if row["outcome"] != "refused"]
    if len(groups) > _ROWS_MAX:
        counts = Counter((row["outcome"], row["target"] or "-") for row in groups)
        rows = [(str(n), outcome, target, "") for (outcome, target), n in sorted(counts.items())]
        rows += [
            (row["group"], row["outcome"], row["target"] or "-", row["reason"])
            for row in shown[:_ROWS_MAX]
            if row["outcome"] == "refused"
        ]
    else:
        rows = [(r["group"], r["outcome"], r["target"] or "-", r["reason"]) for r in shown]
    return table(("GROUP", "OUTCOME", "TO", "WHY"), rows)


def _ended_text(leaving: Leaving, progress: dict[str, Any], refused: list[dict[str, Any]]) -> str:
    lines = [f"{progress['moved']} groups moved away from {leaving.cluster}"]
    lines += [f"{row['group']} was refused: {row['reason']}" for row in refused[:_ROWS_MAX]]
    for row in progress["groups"]:
        if row["under_way"]:
            state = row["phase"] or "under way"
            lines.append(f"{row['group']}: {state}: mesh failovers watch {row['failover']}")
        elif not row["moved"]:
            why = (row["problem"] or {}).get("happened", "")
            lines.append(f"{row['group']} stayed ({row['phase']}): {why}")
    return "\n".join(lines)
