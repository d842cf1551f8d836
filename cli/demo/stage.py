"""Sets the demo up in a folder of its own and clears it away, whatever happens."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from cli.demo.objects import ORDERS_PREFIX, common_prefix, load_objects
from cli.demo.report import DemoReport
from cli.demo.run import DEMO, ORDERS, DemoRun
from cli.processes import run_interruptible
from cli.sandbox.running import StepLines
from cli.sandbox.sandbox import Sandbox
from cli.session import Session

CLUSTERS = ("us-east", "eu-west", "ap-south")


def play(session: Session, *, data: Path | None, duration_s: float, keep: bool) -> DemoReport:
    """Run the demo and return its report; nothing of it is left unless `keep`.

    Raises:
        InvalidInput: the data cannot be used.
        MeshError: the sandbox did not get ready, or a failover was refused.
    """
    objects = load_objects(data)
    prefixes = {ORDERS: ORDERS_PREFIX, DEMO: common_prefix(objects)}
    folder = Path(tempfile.mkdtemp(prefix="mesh-demo-"))
    sandbox = Sandbox.create(
        folder, clusters=CLUSTERS, groups={g: (prefix,) for g, prefix in prefixes.items()}
    )
    run = DemoRun(
        sandbox=sandbox,
        objects=objects,
        prefixes=prefixes,
        duration_s=duration_s,
        output=session.output,
    )
    is_done = False
    try:
        report = run_interruptible(run.run(StepLines(session.output)))
        is_done = True
    finally:
        if keep and is_done:
            session.output.note(f"still running; export MESH_CONFIG={sandbox.layout.context_file}")
            session.output.note(f"end it with: mesh sandbox down --purge --dir {folder}")
        else:
            asyncio.run(sandbox.stop())
            shutil.rmtree(folder)
    return report
