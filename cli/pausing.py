"""`mesh pause`, `mesh resume`: automation stops or goes on; writes do so in any case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cli.options import MeshCommand
from cli.session import Session, with_session

reason_option = click.option("--reason", default="", help="Why; kept in the audit.")


@click.command(cls=MeshCommand)
@reason_option
@with_session
def pause(session: Session, reason: str) -> None:
    """Stop automation; writes go on.

    Nothing is begun by itself from now on. Failovers that run go on. A new one is refused, unless
    it is told to go on by name (--waive automation). Repeating it changes nothing.
    """
    body = session.run(lambda api: api.post("/v1/automation/pause", {"reason": reason})).body
    session.output.result(body, lambda: _told(body))


@click.command(cls=MeshCommand)
@reason_option
@with_session
def resume(session: Session, reason: str) -> None:
    """Let automation go on. Repeating it changes nothing."""
    body = session.run(lambda api: api.post("/v1/automation/resume", {"reason": reason})).body
    session.output.result(body, lambda: _told(body))


def _told(body: Mapping[str, Any]) -> str:
    note = automation_note(body) or "automation is not paused"
    return note if body["changed"] else f"no change: {note}"


def automation_note(body: Mapping[str, Any]) -> str:
    """Return what a status says while automation is paused; else nothing."""
    automation = body.get("automation") or {}
    if not automation.get("paused"):
        return ""
    from cli.render import shown_time

    why = f": {automation['reason']}" if automation.get("reason") else ""
    since = shown_time(automation.get("since_ms"))
    return f"automation is paused by {automation['by']} since {since}{why} (mesh resume)"
