"""`mesh replication`: how far behind each copy is, and whether it is equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cli import complete
from cli.lazy import LazyGroup
from cli.session import Session, watch_option, with_session
from meshkit.errors import InvalidInput, MeshError


@click.group(cls=LazyGroup)
def replication() -> None:
    """Show how far behind each copy is; compare them."""


@replication.command()
@click.option("--group", "-g", shell_complete=complete.groups, help="Only the streams of a group.")
@click.option(
    "--check", is_flag=True, help="Fail unless everything is streaming in step. For monitors."
)
@watch_option
@with_session
def status(session: Session, group: str | None, check: bool, every_ms: int | None) -> None:
    """Show every stream: state, position and lag.

    Lag is the age of the oldest record the target has not applied, in whatever group; `unknown` is
    never shown as 0. Groups out of step are named with the reason and with their own lag, what is
    paused below. With --group, --check judges that group alone.
    """
    from cli.stream_views import streams_view

    query = {"group": group} if group else {}
    body = session.show(
        lambda api: api.get("/v1/replication", **query),
        streams_view,
        every_ms=every_ms,
    )
    if check:
        _check(body["streams"], group)


@replication.command()
@click.argument("group", shell_complete=complete.groups)
@click.option("--target", shell_complete=complete.clusters, help="Only the copy of a cluster.")
@click.option("--repair", is_flag=True, help="Make a copy that differs anew.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a repair.")
@click.option("--request-id", default="", help="Repeat a request under its id.")
@with_session
def verify(session: Session, group: str, **options: Any) -> int:
    """Compare copies with the active cluster, exactly, while writes go on.

    Done (exit code 0) when every copy is equal, or was repaired; 1 when one differs, 3 when one
    could not be compared, 5 when one is still being compared after --timeout.
    """
    from cli import verifying

    return verifying.verify(session, verifying.Asked(group=group, **options))


@replication.command()
@click.argument("group", shell_complete=complete.groups)
@click.option("--from", "start", type=int, required=True, metavar="SEQUENCE", help="From where on.")
@click.option("--target", shell_complete=complete.clusters, help="Only to the copy of a cluster.")
@click.option("--request-id", default="", help="Repeat a request under its id.")
@with_session
def replay(session: Session, group: str, **options: Any) -> int:
    """Send a group's history to its copies again, from a sequence of the active cluster on.

    It takes the way everything takes, and changes nothing: what is applied already is recognised
    by its sequence and dropped. The stream begins anew for it. Refused (exit code 3) where that
    history is compacted away: then compare the copy instead (mesh replication verify). 5 when it
    is still under way after --timeout.
    """
    from cli import replaying

    return replaying.replay(session, replaying.Asked(group=group, **options))


@replication.command()
@click.argument("group", shell_complete=complete.groups)
@click.option("--cluster", shell_complete=complete.clusters, help="Only the copy of a cluster.")
@with_session
def foreign(session: Session, group: str, cluster: str | None) -> int:
    """List what was written to passive copies of a group beside MeshKit.

    All are counted, the last 20 of each copy are listed; they stay until the copy is made anew
    (mesh replication verify GROUP --repair) or its cluster becomes active. Fails (exit code 1) if
    a cluster does not answer: then nobody knows what was written there.
    """
    from cli.stream_views import foreign_table

    query = {"cluster": cluster} if cluster else {}
    body = session.run(lambda api: api.get(f"/v1/groups/{group}/foreign", **query))
    session.output.result(body, lambda: foreign_table(body["clusters"]))
    unknown = [copy for copy in body["clusters"] if copy["problem"]]
    for copy in unknown:
        session.output.note(f"unknown what was written at {copy['cluster']}: {copy['problem']}")
    return 1 if unknown else 0


@replication.command()
@click.argument("group", required=False, shell_complete=complete.groups)
@click.option("--stream", metavar="SOURCE:TARGET", help="Only the stream between two clusters.")
@click.option("--reason", default="", help="Why; kept in the audit.")
@with_session
def pause(session: Session, group: str | None, stream: str | None, reason: str) -> None:
    """Let the copies of a group, a stream, or (neither) all replication stand still.

    Lag grows meanwhile and is told as it is; planned failovers over what is paused are refused
    (check not_paused). A group that is paused for longer than the source's etcd keeps its history
    is copied anew afterwards. Repeating it changes nothing.
    """
    _set_pause(session, "pause", group, stream, reason)


@replication.command()
@click.argument("group", required=False, shell_complete=complete.groups)
@click.option("--stream", metavar="SOURCE:TARGET", help="Only the stream between two clusters.")
@click.option("--reason", default="", help="Why; kept in the audit.")
@with_session
def resume(session: Session, group: str | None, stream: str | None, reason: str) -> None:
    """Let go on what exactly so was paused. Repeating it changes nothing."""
    _set_pause(session, "resume", group, stream, reason)


def _set_pause(
    session: Session, verb: str, group: str | None, stream: str | None, reason: str
) -> None:
    body: dict[str, Any] = {"reason": reason}
    if group is not None:
        body["group"] = group
    if stream is not None:
        body["source"], separator, body["target"] = stream.partition(":")
        if not separator:
            raise InvalidInput(f"--stream: expected SOURCE:TARGET, found {stream!r}")
    done = session.run(lambda api: api.post(f"/v1/replication/{verb}", body)).body
    session.output.result(done, lambda: _told(done))


def _told(done: Mapping[str, Any]) -> str:
    paused = "; ".join(f"{p['what']} (by {p['by']})" for p in done["pauses"]) or "nothing"
    return f"{'' if done['changed'] else 'no change: '}paused now: {paused}"


def _check(streams: list[dict[str, Any]], group: str | None) -> None:
    late = [(s, why) for s in streams if (why := _late(s, group))]
    if late:
        names = ", ".join(f"{s['source']} -> {s['target']} ({why})" for s, why in late)
        raise MeshError(f"not every stream is streaming in step: {names}")


def _late(stream: dict[str, Any], group: str | None) -> str:
    """Return what is wrong with a stream, or with one group of it; nothing if it is well."""
    behind = {one["group"]: one["why"] for one in stream.get("behind") or ()}
    out = [g for g in stream["groups_out_of_step"] if group in {None, g}]
    whys = [f"{g}: {behind.get(g, 'reconciling')}" for g in out]
    state = stream["state"]
    if group is not None and stream.get("in_step"):
        state = stream["in_step"]["state"]
    return "; ".join([*([state] if state != "streaming" else []), *whys])
