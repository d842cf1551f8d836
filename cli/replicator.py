"""`mesh replicator run`: the region's own process, the only one that touches its etcd."""

from __future__ import annotations

from pathlib import Path

import click

from cli.lazy import LazyGroup


@click.group(cls=LazyGroup)
def replicator() -> None:
    """Run a replicator."""


@replicator.command()
@click.option("-f", "--file", "path", required=True, type=click.Path(path_type=Path))
def run(path: Path) -> int:
    """Run one replicator of a cluster, in the foreground, until SIGTERM.

    Run two or more in each region: one leads, the others stand by.
    """
    from cli import logs
    from cli.processes import run_until_stopped
    from meshkit.config import load_replicator_config
    from replicator.service import run as serve

    config = load_replicator_config(path)
    logs.configure(config.log, process=f"replicator/{config.name}", cluster=config.cluster)
    return run_until_stopped(lambda: serve(config))
