"""`mesh clusters`: list, show, apply; promote and failback, which move write authority."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cli import complete
from cli.lazy import LazyGroup
from cli.moves import Move, move
from cli.session import Session, watch_option, with_session


@click.group(cls=LazyGroup)
def clusters() -> None:
    """List, apply and promote clusters."""


@clusters.command("list")
@watch_option
@with_session
def list_(session: Session, every_ms: int | None) -> None:
    """List every cluster and how it stands."""
    from cli.views import clusters_table

    session.show(
        lambda api: api.get("/v1/clusters"),
        lambda body: clusters_table(body["clusters"]),
        every_ms=every_ms,
    )


@clusters.command()
@click.argument("cluster", shell_complete=complete.clusters)
@watch_option
@with_session
def show(session: Session, cluster: str, every_ms: int | None) -> None:
    """Show one cluster."""
    from cli.views import cluster_view

    session.show(lambda api: api.get(f"/v1/clusters/{cluster}"), cluster_view, every_ms=every_ms)


@clusters.command()
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="YAML; - is stdin.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@with_session
def apply(session: Session, path: str, dry_run: bool) -> None:
    """Create or change clusters as FILE says; what it leaves out keeps its value."""
    from cli.apply import apply as apply_specs
    from cli.render import table
    from cli.specs import ClusterSpec, body_of, load_specs

    bodies = [body_of(spec) for spec in load_specs(ClusterSpec, path)]
    results = session.run(
        lambda api: apply_specs(session, api, kind="cluster", bodies=bodies, dry_run=dry_run)
    )
    session.output.result(
        {"results": results},
        lambda: table(("CLUSTER", "RESULT"), ((r["name"], r["became"]) for r in results)),
    )


@clusters.command(short_help="Use a restored etcd as it is: CLUSTER begins a new incarnation.")
@click.argument("cluster", shell_complete=complete.clusters)
@click.option("--reason", required=True, help="Why; kept in the record and the audit.")
@click.option("--dry-run", is_flag=True, help="Only show what would happen.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask. For scripts.")
@with_session
def adopt(session: Session, cluster: str, reason: str, *, dry_run: bool, yes: bool) -> int:
    """Use a restored etcd as it is: CLUSTER begins a new incarnation.

    For a region that is suspended because its etcd went back (restored from a snapshot, or
    replaced). Its state becomes the truth about it: where it is active, standbys are copied from
    it, and lose what it lost. To keep what a standby has, promote that instead. Shows what is known
    and asks for the cluster's name; it cannot be taken back.

    \b
    mesh clusters adopt us-east --reason "disk lost, restored from Monday's snapshot" --dry-run
    """  # noqa: D301 click wants the backspace itself
    from cli.session import confirmed_by_typing
    from cli.suspension_views import adopted_text, suspended_view

    path = f"/v1/clusters/{cluster}/adopt"
    asked = {"reason": reason, "dry_run": True}
    preview = session.run(lambda api: api.post(path, asked, is_change=False)).body
    suspended = preview["suspended"]
    if dry_run or suspended is None or suspended["adopted"]:
        session.output.result(preview, lambda: adopted_text(cluster, preview))
        return 0
    session.output.note(suspended_view(cluster, suspended))
    question = f"Begin a new incarnation of {cluster}'s etcd as it is now?"
    if not confirmed_by_typing(question, cluster, yes=yes):
        session.output.note("nothing was changed")
        return 3
    body = {"reason": reason, "expect_suspension": suspended["suspension"]}
    answer = session.run(lambda api: api.post(path, body)).body
    session.output.result(answer, lambda: adopted_text(cluster, answer))
    return 0


def _move_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--group", "-g", shell_complete=complete.groups, help="Group to move."),
            click.option("--expect-epoch", type=int, help="Refuse if the epoch is another."),
            click.option("--reason", default="", help="Why; kept in the record and the audit."),
            click.option("--change", default="", help="Change ticket."),
            click.option("--waive", multiple=True, metavar="CHECK", help="Waive a check by name."),
            click.option(
                "--request-id", default="", help="Makes a repeat answer the same failover."
            ),
            click.option("--dry-run", is_flag=True, help="Only show what would happen."),
            click.option("--yes", "-y", is_flag=True, help="Do not ask. For scripts."),
            click.option("--wait/--detach", default=True, help="Follow it to its end (default)."),
        )
    ):
        command = option(command)
    return command


@clusters.command(short_help="Make CLUSTER the one that accepts a group's writes.")
@click.argument("cluster", shell_complete=complete.clusters)
@_move_options
@click.option("--emergency", is_flag=True, help="Without the active cluster's help. May lose.")
@click.option(
    "--planned-then-emergency",
    "planned_first",
    is_flag=True,
    help="Try a planned failover; go on as an emergency only if that fails.",
)
@click.option(
    "--accept-loss",
    metavar="BOUND",
    default="",
    help="What may be lost: records=N,seconds=S, or unknown.",
)
@click.option(
    "--no-fence-wait",
    is_flag=True,
    help="Do not wait until the active cluster surely accepts no more writes.",
)
@with_session
def promote(session: Session, cluster: str, **options: Any) -> int:
    """Make CLUSTER the one that accepts a group's writes.

    A planned failover: loses nothing, pauses writes for well under a second, and undoes itself if
    it cannot finish. Shows what would happen and asks first. Promoting the active cluster changes
    nothing.

    With --emergency the active cluster is fenced from outside, and what may be lost is stated
    before anything moves; exit code 10 if that was not accepted yet.

    \b
    mesh clusters promote eu-west --group orders --reason "maintenance of us-east"
    mesh clusters promote eu-west --group orders --yes --timeout 2m -o json
    mesh clusters promote eu-west --group orders --emergency --reason "us-east is down" \\
        --accept-loss records=100,seconds=10
    """  # noqa: D301 click wants the backspace itself
    is_emergency = options.pop("emergency") or options["planned_first"]
    kind = "emergency" if is_emergency else "promote"
    return move(session, Move(target=cluster, kind=kind, **options))


@clusters.command(short_help="Give write authority back to the cluster that had it before.")
@click.argument("cluster", required=False, shell_complete=complete.clusters)
@_move_options
@with_session
def failback(session: Session, cluster: str | None, **options: Any) -> int:
    """Give write authority back to CLUSTER, by default the one that was active before.

    A new planned failover in the other direction, not an undo. If that cluster has not rejoined
    yet, it rejoins first: both parts are shown before anything is asked or begun, and the checks
    of the second are asked again after the first. What waits for an approval ends it there (10).

    \b
    mesh clusters failback --group orders
    """  # noqa: D301 click wants the backspace itself
    from cli.failback import failback as give_back

    return give_back(session, Move(target=cluster, kind="failback", **options))


@clusters.command(short_help="Move the writes of every group away from CLUSTER.")
@click.argument("cluster", shell_complete=complete.clusters)
@click.option(
    "--to",
    shell_complete=complete.clusters,
    help="Move all to this cluster; else each to its first fit member.",
)
@click.option("--emergency", is_flag=True, help="CLUSTER is gone: what is not copied is lost.")
@click.option(
    "--accept-loss",
    default="",
    metavar="BOUND",
    help="What each group may lose: records=N,seconds=S, or unknown.",
)
@click.option("--no-fence-wait", is_flag=True, help="Do not wait for CLUSTER's leases to end.")
@click.option("--reason", default="", help="Why; kept in the records and the audit.")
@click.option("--change", default="", help="Change ticket.")
@click.option("--waive", multiple=True, metavar="CHECK", help="Waive a check by name.")
@click.option("--request-id", default="", help="Makes a repeat follow the same evacuation.")
@click.option("--dry-run", is_flag=True, help="Only show what would happen.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask. For scripts.")
@click.option("--wait/--detach", default=True, help="Follow it to its end (default).")
@with_session
def evacuate(session: Session, cluster: str, **options: Any) -> int:
    """Move the writes of every group that is active at CLUSTER to other clusters.

    One failover for each group, side by side; a group that cannot move says why and does not hold
    the others. Shows what would happen and asks first.

    With --emergency what each group may lose is stated before anything moves. Groups whose loss
    was not accepted wait (exit code 10); the same command again with --accept-loss accepts it for
    those that wait, and begins nothing twice.

    \b
    mesh clusters evacuate us-east --reason "maintenance"
    mesh clusters evacuate us-east --emergency --reason "region lost" --dry-run
    mesh clusters evacuate us-east --emergency --reason "region lost" \\
        --accept-loss records=100,seconds=10
    """  # noqa: D301 click wants the backspace itself
    from cli.evacuation import Leaving, evacuate, request_body

    body = request_body(options)
    keys = ("request_id", "dry_run", "yes", "wait")
    leaving = Leaving(cluster=cluster, body=body, **{key: options[key] for key in keys})
    return evacuate(session, leaving)


@clusters.command(short_help="Have CLUSTER become a standby again.")
@click.argument("cluster", shell_complete=complete.clusters)
@click.option("--group", "-g", shell_complete=complete.groups, help="Only for this group.")
@click.option("--reason", default="", help="Why; kept in the record and the audit.")
@click.option("--wait/--detach", default=True, help="Follow it to its end (default).")
@with_session
def rejoin(session: Session, cluster: str, group: str | None, reason: str, wait: bool) -> int:
    """Have CLUSTER become a standby again where it was superseded.

    Coordinators begin this by themselves when it comes back. What it has that its successor has not
    is put in quarantine first; what is not completely known waits for an approval (exit code 10).
    """
    from cli.rejoins import begin

    return begin(session, cluster, group=group, reason=reason, wait=wait)
