"""`mesh coordinator run`: serves the automation API and, when elected, drives failovers."""

from __future__ import annotations

from pathlib import Path

import click

from cli.lazy import LazyGroup


@click.group(cls=LazyGroup)
def coordinator() -> None:
    """Run a coordinator."""


@coordinator.command()
@click.option("-f", "--file", "path", required=True, type=click.Path(path_type=Path))
def run(path: Path) -> int:
    """Run one coordinator, in the foreground, until SIGTERM.

    Run one or more in each region: every one serves the API, the elected leader drives failovers.
    """
    from cli import logs
    from cli.processes import run_until_stopped
    from coordinator.service import run as serve
    from meshkit.config import load_coordinator_config

    config = load_coordinator_config(path)
    logs.configure(config.log, process=f"coordinator/{config.name}")
    return run_until_stopped(lambda: serve(config))
