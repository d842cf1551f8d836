"""`mesh groups`: the units of failover, and the one screen for the person on call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cli import complete
from cli.lazy import LazyGroup
from cli.session import Session, watch_option, with_session

if TYPE_CHECKING:
    from cli.api import MeshApi


@click.group(cls=LazyGroup)
def groups() -> None:
    """Show and apply groups, the units of failover."""


@groups.command("list")
@watch_option
@with_session
def list_(session: Session, every_ms: int | None) -> None:
    """List every group and who accepts its writes."""
    from cli.views import groups_table

    session.show(
        lambda api: api.get("/v1/groups"),
        lambda body: groups_table(body["groups"]),
        every_ms=every_ms,
    )


@groups.command()
@click.argument("group", shell_complete=complete.groups)
@watch_option
@with_session
def show(session: Session, group: str, every_ms: int | None) -> None:
    """Show who writes, how the copies stand, and what a promotion now would mean."""
    from cli.views import group_view

    session.show(lambda api: api.get(f"/v1/groups/{group}"), group_view, every_ms=every_ms)


@groups.command()
@click.argument("group", shell_complete=complete.groups)
@click.option("--failover", default=None, metavar="ID", help="Only if the last one is this.")
@click.option("--reason", default="", help="What was found; kept in the audit.")
@with_session
def acknowledge(session: Session, group: str, failover: str | None, reason: str) -> None:
    """Say that you have looked at the last automatic failover of GROUP.

    Until then no other one begins by itself. Repeating it changes nothing.
    """

    async def ask(api: MeshApi) -> Mapping[str, Any]:
        shown = (await api.get(f"/v1/groups/{group}"))["automatic"]["last"]
        seen = failover or (shown["failover"] if shown else None)
        body = {"reason": reason} | ({"failover": seen} if seen else {})
        return (await api.post(f"/v1/groups/{group}/acknowledge", body)).body

    body = session.run(ask)
    session.output.result(body, lambda: _acknowledged(group, body))


def _acknowledged(group: str, body: Mapping[str, Any]) -> str:
    last = body["automatic"]["last"]
    if last is None:
        never = f"group {group} never failed over by itself"
        return f"{never}; from now on it may" if body["changed"] else f"no change: {never}"
    told = f"{last['failover']} ({last['source']} -> {last['target']})"
    by = f"acknowledged by {last['acknowledged_by']}"
    return f"{told} is {by}" if body["changed"] else f"no change: {told} was {by}"


@groups.command()
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="YAML; - is stdin.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@with_session
def apply(session: Session, path: str, dry_run: bool) -> None:
    """Create or change groups as FILE says."""
    from cli.apply import apply as apply_specs
    from cli.render import table
    from cli.specs import GroupSpec, body_of, load_specs

    bodies = [body_of(spec) for spec in load_specs(GroupSpec, path)]
    results = session.run(
        lambda api: apply_specs(session, api, kind="group", bodies=bodies, dry_run=dry_run)
    )
    session.output.result(
        {"results": results},
        lambda: table(("GROUP", "RESULT"), ((r["name"], r["became"]) for r in results)),
    )
