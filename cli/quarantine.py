"""`mesh quarantine`: writes that lost; look at them, make them again, or let them go."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import click

from cli import complete
from cli.api import MeshApi
from cli.lazy import LazyGroup
from cli.session import Session, confirmed_by_typing, with_session
from meshkit.errors import InvalidInput

Json = dict[str, Any]

FAILED, REFUSED = 1, 3


@click.group(cls=LazyGroup)
def quarantine() -> None:
    """Look at writes that lost; replay or discard them."""


_cluster_option = click.option(
    "--cluster", shell_complete=complete.clusters, help="Only what this cluster keeps."
)
_epoch_option = click.option("--epoch", type=int, help="Only what was written in this epoch.")


@quarantine.command("list")
@click.argument("group", shell_complete=complete.groups)
@_cluster_option
@_epoch_option
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=1_000, help="Show at most so many."
)
@with_session
def list_(session: Session, group: str, cluster: str | None, epoch: int | None, limit: int) -> int:
    """List the writes of a group that lost, oldest first, and how they differ.

    `here` is the cluster that keeps the entry, `there` the one that was active when it was set
    aside. Fails (exit code 1) if a cluster does not answer: then nobody knows what it keeps.
    """
    from cli.quarantine_views import entries_table

    async def fetch(api: MeshApi) -> Json:
        entries: list[Json] = []
        problems: dict[str, str] = {}
        async for entry in _entries(api, group, cluster, epoch, problems):
            if len(entries) == limit:
                break
            entries.append(entry)
        return {"group": group, "entries": entries, "problems": problems}

    body = session.run(fetch)
    session.output.result(body, lambda: entries_table(body["entries"]))
    return _told(session, body["problems"])


@quarantine.command()
@click.argument("group", shell_complete=complete.groups)
@click.argument("entry", metavar="ID")
@with_session
def show(session: Session, group: str, entry: str) -> None:
    """Show one entry with both values."""
    from cli.quarantine_views import entry_view

    session.show(lambda api: api.get(f"/v1/groups/{group}/quarantine/{entry}"), entry_view)


@quarantine.command()
@click.argument("group", shell_complete=complete.groups)
@_cluster_option
@_epoch_option
@with_session
def export(session: Session, group: str, cluster: str | None, epoch: int | None) -> int:
    """Write every entry as a line of JSON, with its values whole (base64)."""

    async def write(api: MeshApi) -> dict[str, str]:
        problems: dict[str, str] = {}
        async for entry in _entries(api, group, cluster, epoch, problems):
            whole = entry
            if any(v and v["base64"] is None for v in (entry["here"], entry["there"])):
                whole = await api.get(f"/v1/groups/{group}/quarantine/{entry['id']}")
            sys.stdout.write(json.dumps(whole, sort_keys=True) + "\n")
        return problems

    return _told(session, session.run(write))


@quarantine.command()
@click.argument("group", shell_complete=complete.groups)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Everything that --cluster keeps.")
@_cluster_option
@_epoch_option
@click.option("--reason", default="", help="Why; kept in the audit.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask. For scripts.")
@with_session
def replay(session: Session, group: str, **options: Any) -> int:
    """Write entries at the active cluster, through its permit like any guarded write.

    Only the newest change of a key is written, and only if the key there still has the value it had
    when the entry was set aside; what is refused is reported key by key, and stays in quarantine.
    Done (exit code 0) when every entry was written or was so already, else 3.
    """
    from cli.quarantine_views import results_table

    body = _act_body(group, **options)
    what = f"Write {_what(options)} of {group} at its active cluster again?"
    if not confirmed_by_typing(what, group, yes=options["yes"]):
        session.output.note("nothing was changed")
        return REFUSED
    answers = session.run(lambda api: _act(api, group, "replay", body))
    results = [result for answer in answers for result in answer["results"]]
    session.output.result({"results": results}, lambda: results_table(results))
    is_done = all(result["outcome"] in {"replayed", "already"} for result in results)
    return 0 if is_done else REFUSED


@quarantine.command()
@click.argument("group", shell_complete=complete.groups)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Everything that --cluster keeps.")
@_cluster_option
@_epoch_option
@click.option("--reason", required=True, help="Why; kept in the audit.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask. For scripts.")
@with_session
def discard(session: Session, group: str, **options: Any) -> int:
    """Remove entries for ever. What was written there is then gone.

    Export them first, if anybody might want to know: mesh quarantine export GROUP.
    """
    body = _act_body(group, **options)
    what = f"Remove {_what(options)} of {group} from quarantine for ever?"
    if not confirmed_by_typing(what, group, yes=options["yes"]):
        session.output.note("nothing was changed")
        return REFUSED
    answers = session.run(lambda api: _act(api, group, "discard", body))
    count = sum(answer["discarded"] for answer in answers)
    session.output.result({"discarded": count}, lambda: f"{count} discarded")
    return 0


def _act_body(
    group: str,
    *,
    ids: tuple[str, ...],
    everything: bool,
    cluster: str | None,
    epoch: int | None,
    reason: str,
    yes: bool,
) -> Json:
    """Return the request as the API takes it.

    Raises:
        InvalidInput: it is not said which entries.
    """
    del yes
    if bool(ids) == everything or (everything and cluster is None):
        raise InvalidInput(
            "say which entries: their ids, or --all with --cluster",
            hint=f"see them: mesh quarantine list {group}",
        )
    if ids:
        return {"ids": list(ids), "reason": reason}
    body: Json = {"cluster": cluster, "reason": reason}
    return body if epoch is None else body | {"epoch": epoch}


def _what(options: Json) -> str:
    if options["ids"]:
        return f"{len(options['ids'])} entries"
    return f"everything that {options['cluster']} keeps"


async def _act(api: MeshApi, group: str, verb: str, body: Json) -> list[Json]:
    """Ask again and again until everything that was meant is done."""
    answers = []
    while True:
        path = f"/v1/groups/{group}/quarantine/{verb}"
        answers.append((await api.post(path, body)).body)
        if answers[-1]["next"] is None:
            return answers
        body = body | {"after": answers[-1]["next"]}


async def _entries(
    api: MeshApi,
    group: str,
    cluster: str | None,
    epoch: int | None,
    problems: dict[str, str],
) -> AsyncIterator[Json]:
    """Yield every entry, cluster by cluster; says in `problems` who did not answer."""
    path = f"/v1/groups/{group}/quarantine"
    query = {} if epoch is None else {"epoch": str(epoch)}
    first = await api.get(path, **query | ({"cluster": cluster} if cluster else {}))
    for page in first["clusters"]:
        if page["problem"]:
            problems[page["cluster"]] = page["problem"]
        shown = page
        while True:
            for entry in shown["entries"]:
                yield entry
            if shown["next"] is None:
                break
            more = {"cluster": page["cluster"], "after": shown["next"]}
            shown = (await api.get(path, **query | more))["clusters"][0]


def _told(session: Session, problems: dict[str, str]) -> int:
    for cluster, problem in sorted(problems.items()):
        session.output.note(f"unknown what {cluster} keeps: {problem}")
    return FAILED if problems else 0
