"""What operators do to a running mesh beside moving writes, on real processes under load."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from chaos.planned import loaded
from tests.e2e.conftest import CLUSTERS, Rig
from tests.e2e.test_kills import ready

PATIENCE_S = 30


async def mesh(rig: Rig, *arguments: str, code: int = 0) -> Any:
    """Run the command line, demand its exit code, return what it printed."""
    context = rig.sandbox.context()
    files = ("--ca", str(context.ca), "--cert", str(context.cert), "--key", str(context.key))
    apis = [part for url in context.api for part in ("--api", url)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", *arguments, "-o", "json", *files, *apis),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == code, f"{process.returncode}\n{out.decode()}\n{err.decode()}"
    return json.loads(out) if out.strip() else None


async def stream_until(rig: Rig, target: str, claim) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            streams = (await mesh(rig, "replication", "status"))["streams"]
            found: dict[str, Any] = next(s for s in streams if s["target"] == target)
            if claim(found):
                return found
            await asyncio.sleep(0.2)


@pytest.mark.e2e
@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_history_is_replayed_a_stream_is_paused_and_all_of_it_is_in_the_audit(
    rig: Rig,
) -> None:
    """Under load: nothing is lost, nothing is written twice, and every status tells the truth."""
    async with loaded(rig.sandbox, guarded=3, bare=0) as load:
        await ready(load)
        active = await load.active()
        one = next(name for name in CLUSTERS if name != active)
        at = await stream_until(rig, one, lambda s: s["state"] == "streaming" and s["applied"])

        start = str(max(2, at["applied"] - 50))
        replayed = await mesh(rig, "replication", "replay", "orders", "--from", start)
        for each in replayed["replays"]:
            assert each["result"]["outcome"] == "done", each
            assert each["result"]["records"] == each["result"]["duplicates"] > 0

        stream = ("--stream", f"{active}:{one}", "--reason", "rehearsal")
        await mesh(rig, "replication", "pause", *stream)
        paused = await stream_until(rig, one, lambda s: (s["lag_ms"] or 0) > 1_500)
        assert paused["state"] == "paused"
        await mesh(rig, "clusters", "promote", one, "-g", "orders", "--yes", code=3)
        await mesh(rig, "replication", "resume", *stream)
        await stream_until(rig, one, lambda s: s["state"] == "streaming")

        await mesh(rig, "pause", "--reason", "freeze")
        await mesh(rig, "clusters", "promote", one, "-g", "orders", "--yes", code=3)
        await mesh(rig, "resume")
        verified = await mesh(rig, "replication", "verify", "orders")
        assert {v["result"]["outcome"] for v in verified["verifications"]} == {"equal"}

        audit = (await mesh(rig, "audit", "list"))["entries"]
        assert [e["action"] for e in audit if "paused" in e["action"]] == [
            "replication.paused",
            "automation.paused",
        ]
        for group in ("_mesh", "orders"):
            assert (await mesh(rig, "audit", "verify", "-g", group))["ok"]
