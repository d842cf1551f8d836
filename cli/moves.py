"""Moving write authority: preview, question, request, following, result."""

from __future__ import annotations

import asyncio
import time
import uuid
from functools import partial
from typing import Any

import attrs

from cli import emergency
from cli.api import MeshApi
from cli.follow import Progress, conclude, exit_code, follow, tell_interrupted
from cli.session import Session, confirmed
from cli.settings import FOLLOW_TIMEOUT_MS, OutputForm
from meshkit.errors import Conflict, InvalidInput, NotFound, OutcomeUnknown, Refused

REFUSED = 3
_REPORT_PATIENCE_S = 2.0
_REPORT_POLL_S = 0.1


@attrs.define(kw_only=True)
class Move:
    """What the operator asked for."""

    target: str | None
    kind: str
    group: str | None
    expect_epoch: int | None
    reason: str
    change: str
    waive: tuple[str, ...]
    request_id: str
    dry_run: bool
    yes: bool
    wait: bool
    accept_loss: str = ""
    no_fence_wait: bool = False
    planned_first: bool = False

    def check(self) -> None:
        """Demand what an emergency needs, and nothing of it else.

        Raises:
            InvalidInput: says what is missing or too much.
        """
        emergency.check_asked(
            is_emergency=self.kind == "emergency",
            reason=self.reason,
            of_emergency={
                "--accept-loss": self.accept_loss,
                "--no-fence-wait": self.no_fence_wait,
            },
        )

    def body(self, *, dry_run: bool) -> dict[str, Any]:
        """Return the request as the API takes it."""
        body: dict[str, Any] = {
            "kind": self.kind,
            "reason": self.reason,
            "change": self.change,
            "waive": list(self.waive),
            "dry_run": dry_run,
        }
        optional = {"target": self.target, "expect_epoch": self.expect_epoch}
        body |= {name: value for name, value in optional.items() if value is not None}
        if self.accept_loss:
            body["accept_loss"] = emergency.bound_of(self.accept_loss)
        flags = {"no_fence_wait": self.no_fence_wait, "planned_first": self.planned_first}
        body |= {name: True for name, given in flags.items() if given}
        if self.request_id and not dry_run:
            body["request_id"] = self.request_id
        return body


def move(session: Session, request: Move) -> int:
    """Carry out a promotion or failback and return the exit code."""
    request.check()
    group = request.group or _only_group(session)
    path = f"/v1/groups/{group}/failovers"
    is_repeat = bool(request.request_id) and request.yes and not request.dry_run
    if not is_repeat:
        asked = request.body(dry_run=True)
        preview = session.run(lambda api: api.post(path, asked, is_change=False)).body
        code = _consider(session, request, preview)
        if code is not None:
            return code
        request.expect_epoch = preview["preview"]["epoch"]
        request.target = preview["preview"]["target"]
        request.request_id = request.request_id or str(uuid.uuid4())
    answer = _begin(session, path, request)
    failover = answer.get("failover")
    if failover is None:
        return _nothing_to_do(session, answer)
    if not request.wait:
        session.output.result(answer, lambda: failover["id"])
        return 0
    return watch(session, failover, asks=not request.yes)


def _begin(session: Session, path: str, request: Move) -> dict[str, Any]:
    try:
        return session.run(lambda api: api.post(path, request.body(dry_run=False))).body
    except OutcomeUnknown as error:
        raise OutcomeUnknown(
            str(error),
            hint=f"repeat it with --yes --request-id {request.request_id}: if it has begun,"
            " that follows it and begins nothing",
        ) from error


def watch(session: Session, failover: dict[str, Any], *, asks: bool = False) -> int:
    """Follow a failover, show where that left things, and return its exit code.

    One that waits for consent to a loss is followed no further, unless `asks` gets it.
    """
    output = session.output
    timeout_ms = session.settings.timeout_ms(FOLLOW_TIMEOUT_MS)
    output.note(f"{failover['id']}: {failover['source']} -> {failover['target']}")
    progress = Progress(output)
    while True:
        try:
            following = partial(
                follow, failover=failover, output=output, timeout_ms=timeout_ms, progress=progress
            )
            failover = session.run(following)
        except KeyboardInterrupt:
            return tell_interrupted(output, failover["id"])
        if not emergency.waits(failover):
            break
        accepted = emergency.ask_consent(session, failover) if asks else None
        if accepted is None:
            if not asks:
                emergency.tell_waiting(output, failover)
            if output.form is not OutputForm.TABLE:
                output.result(failover, lambda: "")
            return emergency.WAITS_FOR_CONSENT
        failover = accepted
    conclude(output, failover)
    if output.form is not OutputForm.TABLE:
        output.result(failover, lambda: "")
    else:
        _show_topology(session, failover["group"])
    return exit_code(failover)


def _consider(session: Session, request: Move, answer: dict[str, Any]) -> int | None:
    """Show what would happen and ask; return an exit code to stop with, None to go on."""
    from cli.preview_views import preview_view

    preview = answer.get("preview")
    if preview is None:
        return _nothing_to_do(session, answer)
    if request.expect_epoch not in (None, preview["epoch"]):
        raise Conflict(
            f"the epoch of {preview['group']} is {preview['epoch']}, not {request.expect_epoch}",
            hint=f"mesh groups show {preview['group']}",
        )
    is_emergency = request.kind == "emergency"
    view = emergency.preview_view if is_emergency else preview_view
    if request.dry_run:
        session.output.result(answer, lambda: view(preview))
        return REFUSED if preview["refused"] else 0
    session.output.note(view(preview))
    if preview["refused"]:
        failed = [c for c in preview["checks"] if not c["ok"] and not c["waived"]]
        words = "; ".join(f"{c['name']}: {c['detail']}" for c in failed)
        waivable = [c["name"] for c in failed if c["waivable"]]
        flags = " ".join(f"--waive {name}" for name in waivable)
        hint = f"mend what failed, or waive it by name: {flags}" if waivable else "mend what failed"
        raise Refused(f"a check failed: {words}", hint=hint)
    context = session.settings["context"]
    mesh = f" (context {context})" if context else ""
    if is_emergency:
        group = preview["group"]
        is_sure = emergency.typed(group, f"Type {group} to go on{mesh}", yes=request.yes)
        if not is_sure:
            session.output.note("nothing was changed")
        return None if is_sure else REFUSED
    question = f"Move writes of {preview['group']} to {preview['target']}{mesh}?"
    if not confirmed(question, yes=request.yes):
        session.output.note("nothing was changed")
        return REFUSED
    return None


def _nothing_to_do(session: Session, answer: dict[str, Any]) -> int:
    message = answer.get("message", "nothing to do")
    session.output.result(answer, lambda: f"no change: {message}")
    return 0


def _only_group(session: Session) -> str:
    groups = session.run(lambda api: api.get("/v1/groups"))["groups"]
    if not groups:
        raise NotFound("there is no group", hint="mesh groups apply -f FILE")
    if len(groups) > 1:
        names = ", ".join(g["group"] for g in groups)
        raise InvalidInput(f"there are several groups: {names}", hint="say which with --group")
    return str(groups[0]["group"])


def _show_topology(session: Session, group: str) -> None:
    from cli.views import topology

    view = session.run(lambda api: _reported(api, group))
    session.output.table(topology(view))


async def _reported(api: MeshApi, group: str) -> dict[str, Any]:
    """Return the group as soon as its active cluster has reported the permit, or after a while.

    Replicators report a few times a second; without waiting, what is shown would be the state
    before the failover.
    """
    deadline = time.monotonic() + _REPORT_PATIENCE_S
    while True:
        view = await api.get(f"/v1/groups/{group}")
        members = [c for c in view["clusters"] if c.get("in_step")]
        is_told = len(members) == len(view["clusters"]) and all(
            c.get("fence_epoch") == view["epoch"] and bool(c.get("permit")) == c["active"]
            for c in members
        )
        if is_told or time.monotonic() > deadline:
            return view
        await asyncio.sleep(_REPORT_POLL_S)
