"""`mesh sandbox`: a whole mesh on this machine, up, shown and down again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.lazy import LazyGroup
from cli.session import Session, with_session

if TYPE_CHECKING:
    from cli.sandbox.sandbox import Sandbox

_DOWN = 1


@click.group(cls=LazyGroup)
def sandbox() -> None:
    """Run a whole mesh on this machine."""


def _directory(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Where it lives (default: below XDG_STATE_HOME).",
    )(command)


@sandbox.command(short_help="Start everything and wait until writes are accepted.")
@click.option("--clusters", help="Names, the first active (default: us-east,eu-west,ap-south).")
@click.option(
    "--group", "-g", "groups", multiple=True, metavar="NAME=/PREFIX/", help="May be repeated."
)
@_directory
@click.option("--detach", is_flag=True, help="Return and leave everything running.")
@click.option("--timing", type=click.Choice(["fast", "default"]), help="Lease times.")
@click.option("--coordination-members", type=click.Choice(["1", "3", "5"]), help="Of its etcd.")
@click.option("--replicators", type=int, help="In each cluster (default: 2).")
@click.option("--coordinators", type=int, help="In all (default: 2).")
@with_session
def up(session: Session, directory: Path | None, detach: bool, **options: Any) -> int:
    """Start everything and wait until writes are accepted.

    An etcd in each cluster, one for coordination, certificates made on the spot, replicators and
    coordinators, all on free loopback ports. Without --detach it stays in the foreground, and
    Ctrl-C ends everything. The data stays for the next `up`.

    \b
    mesh sandbox up --clusters us-east,eu-west --group orders=/orders/ --detach
    mesh clusters list
    mesh sandbox down
    """  # noqa: D301 click wants the backspace itself
    from cli.sandbox import running

    made = running.described(directory, options)
    running.start(session, made)
    session.output.result(made.describe(), lambda: _view(made))
    session.output.note(f"use it with: export MESH_CONFIG={made.layout.context_file}")
    if detach:
        session.output.note(f"end it with: mesh sandbox down --dir {made.directory}")
        return 0
    session.output.note("Ctrl-C ends everything")
    return running.stay(session, made)


@sandbox.command()
@_directory
@with_session
def show(session: Session, directory: Path | None) -> None:
    """Show endpoints, certificates, pids and log files, by cluster."""
    from cli.sandbox import running

    made = running.found(directory)
    session.output.result(made.describe(), lambda: _view(made))


@sandbox.command()
@_directory
@with_session
def status(session: Session, directory: Path | None) -> int:
    """Show which processes run and whether the API answers; exit code 1 if not all do."""
    from cli.render import table, word
    from cli.sandbox import running

    body = running.status(running.found(directory))

    def view() -> Any:
        rows = [
            (name, word("ok" if pid else "failed"), pid) for name, pid in body["processes"].items()
        ]
        return table(("PROCESS", "RUNS", ">PID"), rows)

    session.output.result(body, view)
    session.output.note(f"API: {body['api'] or 'ready'}")
    return 0 if body["ok"] else _DOWN


@sandbox.command()
@_directory
@click.option("--purge", is_flag=True, help="Delete all its data too.")
@with_session
def down(session: Session, directory: Path | None, purge: bool) -> None:
    """End every process of the sandbox. Its data stays, unless purged."""
    from cli.sandbox import running

    made = running.found(directory)
    ended = running.stop(made)
    if purge:
        made.purge()
    body = {"directory": str(made.directory), "ended": ended, "purged": purge}
    words = f"ended {len(ended)} processes; data {'deleted' if purge else 'kept'}"
    session.output.result(body, lambda: words)


def _view(made: Sandbox) -> Any:
    from cli.render import table

    view = made.describe()
    rows: list[tuple[Any, ...]] = [
        (cluster, c["endpoints"], c["etcd"]["pid"], [r["pid"] for r in c["replicators"]])
        for cluster, c in view["clusters"].items()
    ]
    coordination = view["coordination"]
    rows.append(
        (
            "(coordination)",
            coordination["endpoints"],
            [m["pid"] for m in coordination["members"]],
            None,
        )
    )
    rows.append(("(API)", view["api"], None, [c["pid"] for c in view["coordinators"]]))
    return table(("CLUSTER", "ENDPOINTS", "ETCD PID", "MESH PIDS"), rows)
