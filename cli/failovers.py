"""`mesh failovers`: list, show and follow them, abort before the pivot, resume what holds."""

from __future__ import annotations

from typing import Any

import click

from cli import complete
from cli.lazy import LazyGroup
from cli.session import Session, now_ms, watch_option, with_session

_ROLLED_BACK = 8


@click.group(cls=LazyGroup)
def failovers() -> None:
    """Follow, abort and resume failovers."""


@failovers.command("list")
@click.option("--group", "-g", shell_complete=complete.groups, help="Only those of a group.")
@watch_option
@with_session
def list_(session: Session, group: str | None, every_ms: int | None) -> None:
    """List failovers, newest first."""
    from cli.views import failovers_table

    query = {"group": group} if group else {}
    session.show(
        lambda api: api.get("/v1/failovers", **query),
        lambda body: failovers_table(body["failovers"], now_ms=now_ms()),
        every_ms=every_ms,
    )


@failovers.command()
@click.argument("failover", metavar="ID", shell_complete=complete.failovers)
@watch_option
@with_session
def show(session: Session, failover: str, every_ms: int | None) -> None:
    """Show one failover with its steps."""
    from cli.views import failover_view

    session.show(lambda api: api.get(f"/v1/failovers/{failover}"), failover_view, every_ms=every_ms)


@failovers.command()
@click.argument("failover", metavar="ID", shell_complete=complete.failovers)
@with_session
def watch(session: Session, failover: str) -> int:
    """Follow a failover to its end; the exit code is its outcome's."""
    from cli import moves

    return moves.watch(session, session.run(lambda api: api.get(f"/v1/failovers/{failover}")))


def _ask(session: Session, failover: str, *, verb: str, reason: str) -> dict[str, Any]:
    path = f"/v1/failovers/{failover}/{verb}"
    answer = session.run(lambda api: api.post(path, {"reason": reason})).body
    if not answer["changed"]:
        session.output.note(f"no change: {failover} is {answer['failover']['phase']}")
    found = answer["failover"]
    assert isinstance(found, dict), "docs/api.md"
    return found


@failovers.command()
@click.argument("failover", metavar="ID", shell_complete=complete.failovers)
@click.option("--reason", default="", help="Why; kept in the record and the audit.")
@click.option("--wait/--detach", default=True, help="Follow it to its end (default).")
@with_session
def abort(session: Session, failover: str, reason: str, wait: bool) -> int:
    """Undo a failover. Possible until authority has moved, refused after it.

    Done (exit code 0) when it is rolled back.
    """
    from cli import moves

    found = _ask(session, failover, verb="abort", reason=reason)
    if not wait:
        session.output.result(found, lambda: found["id"])
        return 0
    code = moves.watch(session, found)
    return {_ROLLED_BACK: 0, 0: 1}.get(code, code)


@failovers.command()
@click.argument("failover", metavar="ID", shell_complete=complete.failovers)
@click.option(
    "--accept-loss",
    metavar="BOUND",
    required=True,
    help="What may be lost: records=N,seconds=S, or unknown.",
)
@click.option("--wait/--detach", default=True, help="Follow it to its end (default).")
@with_session
def approve(session: Session, failover: str, accept_loss: str, wait: bool) -> int:
    """Accept what an emergency that waits may lose, within a bound."""
    from cli import emergency, moves

    found = emergency.consent(session, failover, emergency.bound_of(accept_loss))
    if not wait:
        session.output.result(found, lambda: found["id"])
        return 0
    return moves.watch(session, found)


@failovers.command()
@click.argument("failover", metavar="ID", shell_complete=complete.failovers)
@click.option("--reason", default="", help="Why; kept in the record and the audit.")
@click.option("--wait/--detach", default=True, help="Follow it to its end (default).")
@with_session
def resume(session: Session, failover: str, reason: str, wait: bool) -> int:
    """Let a failover that holds try its step again."""
    from cli import moves

    found = _ask(session, failover, verb="resume", reason=reason)
    if not wait:
        session.output.result(found, lambda: found["id"])
        return 0
    return moves.watch(session, found)
