"""Leaving a cluster: what would move, the question, the request, and following all of it."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

import attrs

from cli import emergency
from cli.api import MeshApi
from cli.emergency import WAITS_FOR_CONSENT
from cli.evacuation_views import (
    ended_view,
    plan_view,
    repeat_command,
    sum_words,
    waiting_rows,
    ways_on,
)
from cli.follow import INTERRUPTED, STILL_RUNNING
from cli.session import Session, confirmed
from cli.settings import FOLLOW_TIMEOUT_MS
from meshkit.errors import OutcomeUnknown, Unreachable

FAILED = 1
REFUSED = 3
ROLLED_BACK = 8
_POLL_S = 0.5
_AT_ONCE_MAX = 16
"""How many consents are given side by side."""


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

    @property
    def is_emergency(self) -> bool:
        """Whether it goes without the cluster's help."""
        return bool(self.body["kind"] == "emergency")

    def repeat(self) -> str:
        """Return the command that follows it again."""
        return repeat_command(self.cluster, self.body, self.request_id)


def request_body(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request as the API takes it.

    Raises:
        InvalidInput: an emergency without a reason, what only an emergency takes without one, or a
            bound on the loss that cannot be read.
    """
    emergency.check_asked(
        is_emergency=options["emergency"],
        reason=options["reason"],
        of_emergency={
            "--accept-loss": options["accept_loss"],
            "--no-fence-wait": options["no_fence_wait"],
        },
    )
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
        body["accept_loss"] = emergency.bound_of(options["accept_loss"])
    return body


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
        session.output.result(shown, lambda: plan_view(leaving.cluster, leaving.body, shown))
        return REFUSED if refused else 0
    if not groups:
        message = f"no group is active at {leaving.cluster}"
        session.output.result(shown, lambda: f"no change: {message}")
        return 0
    session.output.note(plan_view(leaving.cluster, leaving.body, shown))
    movable = len(groups) - len(refused)
    if refused:
        session.output.note(f"{len(refused)} of {len(groups)} groups cannot move; the others can")
    if not movable:
        return REFUSED
    if not _is_sure(session, leaving, movable):
        session.output.note("nothing was changed")
        return REFUSED
    _join(session, leaving, groups)
    return None


def _is_sure(session: Session, leaving: Leaving, movable: int) -> bool:
    context = session.settings["context"]
    mesh = f" (context {context})" if context else ""
    if leaving.is_emergency:
        question = f"Type {leaving.cluster} to move {movable} groups without its help{mesh}"
        return emergency.typed(leaving.cluster, question, yes=leaving.yes)
    question = f"Move the writes of {movable} groups away from {leaving.cluster}{mesh}?"
    return confirmed(question, yes=leaving.yes)


def _join(session: Session, leaving: Leaving, groups: list[dict[str, Any]]) -> None:
    """Take an emergency evacuation up again that has begun: asking twice begins nothing twice."""
    running = [row["running"] for row in groups if row.get("running")]
    ids = {each["request_id"] for each in running if each["kind"] == "emergency"}
    if leaving.is_emergency and not leaving.request_id and len(ids) == 1:
        leaving.request_id = ids.pop()
        session.output.note(f"goes on with what has begun: request {leaving.request_id}")


def _begin(session: Session, leaving: Leaving) -> dict[str, Any]:
    body = {**leaving.body, "request_id": leaving.request_id}
    try:
        answer = session.run(lambda api: api.post(leaving.path, body)).body
    except OutcomeUnknown as error:
        raise OutcomeUnknown(
            str(error),
            hint=f"repeat it: {leaving.repeat()}; that follows what has begun and begins what"
            " has not",
        ) from error
    return dict(answer)


def _follow(session: Session, leaving: Leaving, refused: list[dict[str, Any]]) -> int:
    """Follow until nothing goes on by itself, show how each group stands, return the exit code."""
    timeout_ms = session.settings.timeout_ms(FOLLOW_TIMEOUT_MS)
    while True:
        try:
            progress = session.run(lambda api: _until_ended(session, api, leaving, timeout_ms))
        except KeyboardInterrupt:
            session.output.note(f"interrupted; the groups move on: {leaving.repeat()}")
            return INTERRUPTED
        waiting = waiting_rows(progress)
        if not (waiting and _consent(session, leaving, progress)):
            break
    result = {**progress, "refused": refused}
    session.output.result(result, lambda: ended_view(leaving.cluster, progress, refused))
    if waiting and len(waiting) == progress["under_way"]:
        _tell_waiting(session, leaving, progress)
        return WAITS_FOR_CONSENT
    if progress["under_way"]:
        session.output.note(f"still going on; follow it with: {leaving.repeat()}")
        return STILL_RUNNING
    if any(not row["moved"] for row in progress["groups"]):
        return ROLLED_BACK
    return REFUSED if refused else 0


def _consent(session: Session, leaving: Leaving, progress: dict[str, Any]) -> bool:
    """Ask on the terminal whether what is stated is accepted, and accept exactly that."""
    if leaving.yes or not sys.stdin.isatty():
        return False
    waiting = waiting_rows(progress)
    session.output.note(ended_view(leaving.cluster, progress, ()))
    session.output.note(f"in sum: {sum_words(progress['loss'])}")
    question = f"Type {leaving.cluster} to accept that loss for {len(waiting)} groups"
    if not emergency.typed(leaving.cluster, question, yes=False):
        session.output.note("not accepted")
        return False
    session.run(lambda api: _accept(api, waiting))
    return True


async def _accept(api: MeshApi, waiting: list[dict[str, Any]]) -> None:
    async def accept(row: dict[str, Any]) -> None:
        bound = emergency.bound_of(emergency.shown(row["loss"]))
        await api.post(f"/v1/failovers/{row['failover']}/consent", {"accept_loss": bound})

    for start in range(0, len(waiting), _AT_ONCE_MAX):
        await asyncio.gather(*map(accept, waiting[start : start + _AT_ONCE_MAX]))


def _tell_waiting(session: Session, leaving: Leaving, progress: dict[str, Any]) -> None:
    waiting = waiting_rows(progress)
    session.output.note(f"{len(waiting)} of {len(progress['groups'])} groups wait for consent")
    session.output.note(f"in sum: {sum_words(progress['loss'])}")
    for line in ways_on(leaving.cluster, leaving.body, leaving.request_id, waiting):
        session.output.note(line)


async def _until_ended(
    session: Session, api: MeshApi, leaving: Leaving, timeout_ms: int
) -> dict[str, Any]:
    """Return how it stands once nothing goes on by itself, or the time is up.

    Of many groups the state is asked for only when nothing has changed since the last look.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    told: tuple[int, int] | None = None
    query = {"request_id": leaving.request_id}
    began = time.monotonic()
    while True:
        try:
            progress = await api.get(leaving.path, **query)
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_S)
            continue
        moved, under_way = progress["moved"], progress["under_way"]
        is_stalled = (moved, under_way) == told
        if not is_stalled:
            told = (moved, under_way)
            took = time.monotonic() - began
            session.output.note(
                f"{moved}/{len(progress['groups'])} moved, {under_way} under way ({took:.1f}s)"
            )
        if under_way == (progress.get("waiting") or 0) or time.monotonic() > deadline:
            return dict(progress)
        query = {"request_id": leaving.request_id} | ({"full": "true"} if is_stalled else {})
        await asyncio.sleep(_POLL_S)
