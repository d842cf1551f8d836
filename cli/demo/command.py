"""`mesh demo`."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import MeshCommand, duration
from cli.session import Session, with_session

_FAILED = 1


@click.command(cls=MeshCommand, short_help="Watch a planned failover of three local regions.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="JSON lines with key and value for the first load (default: generated objects).",
)
@click.option(
    "--duration",
    "duration_ms",
    type=duration,
    default="3s",
    help="How long to write before, between and after the failovers (default: 3s).",
)
@click.option("--keep", is_flag=True, help="Leave everything running at the end.")
@with_session
def demo(session: Session, data: Path | None, duration_ms: int, keep: bool) -> int:
    """Watch a planned failover of three local regions.

    Starts three regions on this machine, loads objects into one of them, writes through the SDK
    and with an ordinary etcd client, moves the writes to another region and back under load, and
    proves that every acknowledged write is in every region. Fails if a proof does.
    """
    from cli.demo.stage import play

    report = play(session, data=data, duration_s=duration_ms / 1000, keep=keep)
    unicode = (session.output.out.encoding or "").lower().startswith("utf")
    session.output.result(report.body(), lambda: report.view(unicode=unicode))
    if not report.ok:
        session.output.note("a proof failed")
    return 0 if report.ok else _FAILED
