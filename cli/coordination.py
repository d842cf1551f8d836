"""`mesh coordination`: what to do about a coordination etcd that went back or is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cli import complete
from cli.lazy import LazyGroup
from cli.session import Session, with_session

REFUSED = 3


@click.group(cls=LazyGroup)
def coordination() -> None:
    """Rebuild a coordination etcd that was restored, or lost for good."""


@coordination.command(short_help="Rebuild authority from the regions' fences.")
@click.option("--reason", required=True, help="Why; kept in the record and the audit.")
@click.option(
    "--waive",
    multiple=True,
    metavar="CLUSTER",
    shell_complete=complete.clusters,
    help="Go on without CLUSTER if it does not answer.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would happen.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask. For scripts.")
@with_session
def adopt(session: Session, reason: str, waive: Sequence[str], *, dry_run: bool, yes: bool) -> int:
    """Use the coordination etcd as it is now, with authority rebuilt from the regions' fences.

    For a coordination etcd that was restored from a snapshot, or is gone for good and was set up
    empty. Every region has stopped by itself then. Each is asked what its fences prove; each group
    goes on where its greatest epoch was opened, in a new epoch; the regions then go on by
    themselves. Nothing is promoted. Every other copy of the coordination etcd must be stopped
    first. Shows the plan and asks; it cannot be taken back.

    \b
    mesh coordination adopt --reason "all members lost, restored from Monday" --dry-run
    mesh coordination adopt --reason "all members lost" --waive us-east
    """  # noqa: D301 click wants the backspace itself
    from cli.coordination_views import done_text, plan_text
    from cli.session import confirmed_by_typing

    path = "/v1/coordination/adopt"
    body: dict[str, Any] = {"reason": reason, "waive": list(waive)}
    preview = session.run(
        lambda api: api.post(path, {**body, "dry_run": True}, is_change=False)
    ).body
    if dry_run or preview["problems"]:
        session.output.result(preview, lambda: plan_text(preview))
        return REFUSED if preview["problems"] else 0
    session.output.note(plan_text(preview))
    question = f"Begin incarnation {preview['number']} of the coordination etcd as shown?"
    if not confirmed_by_typing(question, f"incarnation-{preview['number']}", yes=yes):
        session.output.note("nothing was changed")
        return REFUSED
    body["expect_plan"] = preview["plan"]
    answer = session.run(lambda api: api.post(path, body)).body
    session.output.result(answer, lambda: done_text(answer))
    return 0
