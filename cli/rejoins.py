"""`mesh rejoins`: how superseded clusters become standbys again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from cli import complete
from cli.api import MeshApi
from cli.lazy import LazyGroup
from cli.session import Session, now_ms, watch_option, with_session
from cli.settings import FOLLOW_TIMEOUT_MS, OutputForm

Json = dict[str, Any]

STILL_RUNNING, WAITING_FOR_APPROVAL = 5, 10
_POLL_S = 0.3


@click.group(cls=LazyGroup)
def rejoins() -> None:
    """Follow clusters on their way back to standby."""


@rejoins.command("list")
@click.option("--group", "-g", shell_complete=complete.groups, help="Only those of a group.")
@watch_option
@with_session
def list_(session: Session, group: str | None, every_ms: int | None) -> None:
    """List the newest rejoin of each cluster, newest first."""
    from cli.rejoin_views import rejoins_table

    query = {"group": group} if group else {}
    session.show(
        lambda api: api.get("/v1/rejoins", **query),
        lambda body: rejoins_table(body["rejoins"], now_ms=now_ms()),
        every_ms=every_ms,
    )


@rejoins.command()
@click.argument("rejoin", metavar="ID", shell_complete=complete.rejoins)
@watch_option
@with_session
def show(session: Session, rejoin: str, every_ms: int | None) -> None:
    """Show one rejoin with its steps, and what it found."""
    from cli.rejoin_views import rejoin_view

    session.show(lambda api: api.get(f"/v1/rejoins/{rejoin}"), rejoin_view, every_ms=every_ms)


@rejoins.command()
@click.argument("rejoin", metavar="ID", shell_complete=complete.rejoins)
@click.option("--reason", required=True, help="Why; kept in the audit.")
@click.option("--wait/--detach", default=True, help="Follow it to its end (default).")
@with_session
def approve(session: Session, rejoin: str, reason: str, wait: bool) -> int:
    """Agree that what is not in quarantine is given up, so that the cluster may follow again."""
    return _asked(session, rejoin, "approve", reason, wait=wait)


@rejoins.command()
@click.argument("rejoin", metavar="ID", shell_complete=complete.rejoins)
@click.option("--reason", default="", help="Why; kept in the audit.")
@click.option("--wait/--detach", default=True, help="Follow it to its end (default).")
@with_session
def resume(session: Session, rejoin: str, reason: str, wait: bool) -> int:
    """Let a rejoin that holds try its step again."""
    return _asked(session, rejoin, "resume", reason, wait=wait)


def _asked(session: Session, rejoin: str, verb: str, reason: str, *, wait: bool) -> int:
    path = f"/v1/rejoins/{rejoin}/{verb}"
    answer = session.run(lambda api: api.post(path, {"reason": reason})).body
    if not answer["changed"]:
        session.output.note(f"no change: {rejoin} is {answer['rejoin']['phase']}")
    return follow(session, [answer["rejoin"]], wait=wait)


def begin(session: Session, cluster: str, *, group: str | None, reason: str, wait: bool) -> int:
    """Begin the rejoins that a cluster needs, follow them, and return the exit code."""
    body: Json = {"reason": reason} | ({"group": group} if group else {})
    answer = session.run(lambda api: api.post(f"/v1/clusters/{cluster}/rejoin", body)).body
    for result in answer["results"]:
        session.output.note(f"{result['group']}: {result['message']}")
    found = [result["rejoin"] for result in answer["results"] if result["rejoin"]]
    return follow(session, found, wait=wait)


def follow(session: Session, found: list[Json], *, wait: bool, is_part: bool = False) -> int:
    """Follow rejoins until each has ended or waits for a person, show them, return the code.

    As a part of something more they are shown to machines only if they are where it ended: what a
    command prints for machines is one document.
    """
    from cli.rejoin_views import rejoins_table

    if wait and found:
        timeout_ms = session.settings.timeout_ms(FOLLOW_TIMEOUT_MS)
        found = session.run(lambda api: _until_settled(api, found, timeout_ms=timeout_ms))
    code = max((_exit_code(each) for each in found), default=0) if wait else 0
    is_table = session.output.form is OutputForm.TABLE
    if is_table or code or not is_part:
        session.output.result({"rejoins": found}, lambda: rejoins_table(found, now_ms=now_ms()))
    for each in found:
        if each["problem"]:
            session.output.note(f"{each['problem']['happened']}\nNext:  {each['problem']['next']}")
    return code


def _exit_code(rejoin: Json) -> int:
    if rejoin["phase"] == "held" and rejoin["step"] == "approve":
        return WAITING_FOR_APPROVAL
    return int(rejoin["exit_code"])


async def _until_settled(api: MeshApi, found: list[Json], *, timeout_ms: int) -> list[Json]:
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        found = [await api.get(f"/v1/rejoins/{each['id']}") for each in found]
        is_moving = any(each["phase"] == "advancing" for each in found)
        if not is_moving or time.monotonic() > deadline:
            return found
        await asyncio.sleep(_POLL_S)
