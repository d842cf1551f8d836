"""`mesh audit`: who did what, whether anything of it was changed, and a copy for elsewhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import click

from cli import complete
from cli.api import MeshApi
from cli.lazy import LazyGroup
from cli.session import Session, with_session

MESH_AUDIT = "_mesh"
PAGE = 500
FAILED = 1

Json = dict[str, Any]

group_option = click.option(
    "--group",
    "-g",
    default=MESH_AUDIT,
    shell_complete=complete.groups,
    help="The audit of a group; left out, that of the mesh (clusters, automation).",
)


@click.group(cls=LazyGroup)
def audit() -> None:
    """List, check and export who did what."""


@audit.command("list")
@group_option
@click.option("--after", default=0, show_default=True, help="Only entries after this number.")
@click.option("--limit", default=50, show_default=True, help="At most so many, the newest ones.")
@with_session
def list_entries(session: Session, group: str, after: int, limit: int) -> None:
    """List the entries of an audit, oldest first."""
    from cli.views import audit_table

    entries = session.run(lambda api: _newest(api, group, after, limit))
    body = {"group": group, "entries": entries}
    session.output.result(body, lambda: audit_table(entries))


@audit.command()
@group_option
@click.option("--expect-tip", default="", metavar="HASH", help="Of an earlier export or verify.")
@click.option("--after", default=0, help="The number of the entry that had that hash.")
@with_session
def verify(session: Session, group: str, expect_tip: str, after: int) -> int:
    """Check that no entry was changed, removed, moved or added between others.

    Somebody who rewrites everything after an entry, and the tip, goes unseen by that alone: keep
    the tip's hash elsewhere, and give it with --expect-tip and its number with --after. Exit code 1
    if anything is wrong.
    """
    verdict = session.run(lambda api: api.get(f"/v1/audit/{group}/verify"))
    problems = list(verdict["problems"])
    if expect_tip:
        number = after or verdict["entries"]
        found = session.run(lambda api: _hash_at(api, group, number))
        if found != expect_tip:
            problems.append(f"entry {number} has the hash {found}, not {expect_tip}")
    verdict = {**verdict, "ok": not problems, "problems": problems}
    session.output.result(verdict, lambda: _told(verdict))
    return 0 if verdict["ok"] else FAILED


@audit.command()
@group_option
@click.option("--file", "-f", "path", default="-", help="Where to; - is the standard output.")
@with_session
def export(session: Session, group: str, path: str) -> None:
    """Write every entry as a line of JSON, oldest first, to be kept elsewhere.

    The last line's hash is the tip: `mesh audit verify --expect-tip` checks against it later.
    """
    entries = session.run(lambda api: _all(api, group))
    with click.open_file(path, "w") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n")
    tip = entries[-1]["hash"] if entries else "none"
    session.output.note(f"{len(entries)} entries of {group} exported; tip {tip}")


async def _pages(api: MeshApi, group: str, after: int) -> AsyncIterator[list[Json]]:
    while True:
        query = {"after": str(after), "limit": str(PAGE)}
        entries = (await api.get(f"/v1/audit/{group}", **query))["entries"]
        if not entries:
            return
        yield entries
        after = entries[-1]["n"]


async def _all(api: MeshApi, group: str) -> list[Json]:
    return [entry async for page in _pages(api, group, 0) for entry in page]


async def _newest(api: MeshApi, group: str, after: int, limit: int) -> list[Json]:
    newest: list[Json] = []
    async for page in _pages(api, group, after):
        newest = [*newest, *page][-limit:]
    return newest


async def _hash_at(api: MeshApi, group: str, number: int) -> str | None:
    if number < 1:
        return None
    query = {"after": str(number - 1), "limit": "1"}
    entries = (await api.get(f"/v1/audit/{group}", **query))["entries"]
    return entries[0]["hash"] if entries and entries[0]["n"] == number else None


def _told(verdict: Mapping[str, Any]) -> str:
    if verdict["ok"]:
        return f"whole: {verdict['entries']} entries, tip {verdict['tip_hash']}"
    return "\n".join(["NOT whole:", *verdict["problems"]])
