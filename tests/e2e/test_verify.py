"""`mesh replication verify` on a whole sandbox of real processes, under load."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from chaos.planned import Load, loaded
from meshkit.codec import decode
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.store.txn import Put, Txn
from meshkit.verification import VerifyFindings
from tests.e2e.conftest import CLUSTERS, Rig
from tests.e2e.test_kills import ready

KEY = b"/orders/foreign-write"


async def verify(rig: Rig, *arguments: str, code: int) -> dict[str, dict[str, Any]]:
    """Run the command line, demand its exit code, return each cluster's result."""
    context = rig.sandbox.context()
    files = ("--ca", str(context.ca), "--cert", str(context.cert), "--key", str(context.key))
    apis = [part for url in context.api for part in ("--api", url)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "replication", "verify", "orders", "-o", "json"),
        *(*arguments, *files, *apis),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == code, f"{process.returncode}\n{out.decode()}\n{err.decode()}"
    return {each["target"]: each["result"] for each in json.loads(out)["verifications"]}


async def copies(load: Load) -> list[ClusterName]:
    active = await load.active()
    return [ClusterName(name) for name in CLUSTERS if name != active]


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_copies_are_equal_under_load_and_a_foreign_write_is_found_and_repaired(
    rig: Rig,
) -> None:
    async with loaded(rig.sandbox, guarded=3, bare=1) as load:
        await ready(load)
        one, other = await copies(load)
        for _ in range(5):
            results = await verify(rig, code=0)
            assert {name: result["outcome"] for name, result in results.items()} == {
                one: "equal",
                other: "equal",
            }
            assert results[one]["counts"]["source_keys"] > 0

        await load.stores[one].commit(Txn(operations=(Put(KEY, b"foreign"),)))
        results = await verify(rig, code=1)
        assert (results[one]["outcome"], results[one]["differing"]) == ("different", 1)
        assert results[other]["outcome"] == "equal"
        kept = await load.stores[one].get(RegionalKeys.findings(load.group))
        assert kept is not None
        assert decode(VerifyFindings, kept.value).only_target == (KEY,)

        results = await verify(rig, "--target", one, "--repair", "--yes", code=0)
        assert results[one]["outcome"] == "repaired"
        assert await load.stores[one].get(KEY) is None
        results = await verify(rig, code=0)
        assert results[one]["outcome"] == "equal"

        streams = (await load.api.get("/v1/replication"))["streams"]
        shown = {s["target"]: [r["outcome"] for r in s["last_verify"]] for s in streams}
        assert shown == {one: ["equal"], other: ["equal"]}
        await load.stop_writers()
        verdicts = await load.verdicts(acknowledged_min=50)
    assert [verdict for verdict in verdicts if not verdict.is_valid] == []


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_failovers_meanwhile_raise_no_false_alarm(rig: Rig) -> None:
    """A copy that cannot be compared for a moment says so, or is compared a moment later."""
    async with loaded(rig.sandbox, guarded=3, bare=1) as load:
        await ready(load)
        outcomes: list[str] = []

        async def compare() -> None:
            path, number = f"/v1/groups/{load.group}/verify", 0
            while True:
                number += 1
                asked = await load.api.post(path, {"request_id": f"{load.group}-{number}"})
                ids = {v["target"]: v["id"] for v in asked.body["verifications"]}
                found: list[dict[str, Any]] = [{"status": "running"}]
                while any(each["status"] == "running" for each in found):
                    await asyncio.sleep(0.05)
                    answer = await load.api.get(path)
                    found = [v for v in answer["verifications"] if v["id"] == ids.get(v["target"])]
                outcomes.extend(each["result"]["outcome"] for each in found)

        comparing = asyncio.create_task(compare())
        for number in range(8):
            move = await load.move(CLUSTERS[(number + 1) % len(CLUSTERS)])
            assert move.phase == "succeeded", move.failover
            if comparing.done():
                comparing.result()
        compared = len(outcomes)
        async with asyncio.timeout(60):
            while len(outcomes) < compared + 4:
                await asyncio.sleep(0.05)
        comparing.cancel()
        assert set(outcomes) <= {"equal", "refused"}, outcomes
        assert outcomes.count("equal") > len(outcomes) // 2, outcomes
