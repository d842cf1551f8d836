"""`mesh`: parses, and turns every outcome into output and an exit code.

Imports nothing heavy: `mesh --help` must answer at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

import click

from cli.lazy import LazyGroup
from cli.options import common_options, shown_outputs
from meshkit.errors import MeshError, OutcomeUnknown, Refused

INTERRUPTED = 130
_COMMANDS = {
    "audit": ("cli.audit:audit", "List, check and export who did what."),
    "clusters": ("cli.clusters:clusters", "List, apply and promote clusters."),
    "completion": ("cli.completion:completion", "Print the completion script of a shell."),
    "config": ("cli.config:config", "Check configuration files and show what is in force."),
    "coordination": (
        "cli.coordination:coordination",
        "Rebuild a coordination etcd that was restored, or lost for good.",
    ),
    "coordinator": ("cli.coordinator:coordinator", "Run a coordinator."),
    "demo": ("cli.demo.command:demo", "Watch a planned failover of three local regions."),
    "failovers": ("cli.failovers:failovers", "Follow, abort and resume failovers."),
    "groups": ("cli.groups:groups", "Show and apply groups, the units of failover."),
    "quarantine": (
        "cli.quarantine:quarantine",
        "Look at writes that lost; replay or discard them.",
    ),
    "pause": ("cli.pausing:pause", "Stop automation; writes go on."),
    "rejoins": ("cli.rejoins:rejoins", "Follow clusters on their way back to standby."),
    "replication": (
        "cli.replication:replication",
        "Show how far behind each copy is; compare them.",
    ),
    "resume": ("cli.pausing:resume", "Let automation go on."),
    "replicator": ("cli.replicator:replicator", "Run a replicator."),
    "sandbox": ("cli.sandbox.command:sandbox", "Run a whole mesh on this machine."),
    "version": ("cli.version:version", "Print the versions of MeshKit and its parts."),
}

EXIT_CODES = """\b
Exit codes:
  0 done              3 refused        6 conflict        9 outcome unknown
  1 failed            4 not allowed    7 unreachable    10 waiting for approval
  2 usage             5 still running  8 rolled back   130 interrupted"""


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    params=common_options(),
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def mesh() -> None:
    """Replicate control-plane data between etcd clusters, and move write authority.

    \b
    mesh groups show orders
    mesh clusters promote eu-west --group orders
    mesh failovers watch f-1b2c3d4e5f60
    """  # noqa: D301 click wants the backspace itself


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    if "_MESH_COMPLETE" in os.environ:
        mesh.main(prog_name="mesh")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    context: list[click.Context] = []
    try:
        with mesh.make_context("mesh", list(arguments)) as ctx:
            context.append(ctx)
            result = mesh.invoke(ctx)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 no traceback unless asked for
        return _exit_code(error, context[0] if context else None)
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _exit_code(error: BaseException, ctx: click.Context | None) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case click.ClickException():
            error.show(sys.stderr)
            return error.exit_code
        case click.Abort() | KeyboardInterrupt():
            click.echo("Interrupted.", err=True)
            return INTERRUPTED
        case MeshError():
            report(error, as_json=shown_outputs(ctx) == "json")
            return error.exit_code
        case BrokenPipeError():
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case _:
            return _unexpected(error)


def report(error: MeshError, *, as_json: bool) -> None:
    """Write an expected fault to stderr: what happened, the state now, what to do next."""
    if as_json:
        body = {
            "code": error.code,
            "message": str(error),
            "state": state_after(error),
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        click.echo(json.dumps({"error": body}), err=True)
        return
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(str(error), err=True)
    if state_after(error):
        click.echo(f"State: {state_after(error)}", err=True)
    if error.hint:
        click.echo(f"Next:  {error.hint}", err=True)


def state_after(error: MeshError) -> str:
    """Return what state things are in after `error`, as far as it or its class says."""
    if error.state:
        return error.state
    if isinstance(error, OutcomeUnknown):
        return "unknown: it may have happened"
    return "nothing was changed" if isinstance(error, Refused) else ""


def _unexpected(error: BaseException) -> int:
    if os.environ.get("MESH_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    click.echo(f"Error: unexpected {type(error).__name__}: {error}", err=True)
    click.echo("Next:  this is a bug; run again with MESH_DEBUG=1 for the traceback", err=True)
    return 1


if __name__ == "__main__":
    main()
