"""A group moves by itself on real processes: its region is killed under load, and nobody asks."""

import asyncio
from pathlib import Path

import pytest

from chaos.checkers import check_one_writer
from chaos.emergency import rescue
from cli.sandbox.sandbox import Sandbox

POLICY = {
    "failover": "automatic",
    "automatic_after_ms": 6_000,
    "automatic_cool_down_ms": 0,
    "automatic_loss_seconds_max": 60,
    "automatic_loss_records_max": 100_000,
}


@pytest.mark.chaos
@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize("with_leader", [False, True], ids=["region", "region-and-leader"])
async def test_a_killed_region_is_failed_over_from_by_policy_and_clients_go_on(
    tmp_path: Path, with_leader: bool
) -> None:
    """Promises 1 and 3 by what clients were told; also where the leading coordinator died too."""
    sandbox = Sandbox.create(tmp_path / "sandbox", clusters=("a", "b", "c"), timing="fast")
    await sandbox.start()
    try:
        async with sandbox.api() as api:
            await api.put("/v1/groups/orders", {"policy": POLICY}, dry_run=False)
        found = await rescue(sandbox, by_policy=True, with_leader=with_leader)
        async with sandbox.api() as api:
            shown = await api.get("/v1/groups/orders")
            done = await api.post("/v1/groups/orders/acknowledge", {"reason": "seen"})
    finally:
        await sandbox.stop()
        await asyncio.to_thread(sandbox.purge)

    stated = found.failover["emergency"]["loss"]["seconds"]
    print(f"first write {found.from_death_ms:.0f} ms after the death; {stated} s may be lost")
    assert found.failover["phase"] == "succeeded", found.failover
    assert found.failover["requested_by"] == "coordinator"
    assert found.failover["emergency"]["automatic"]
    assert found.failover["emergency"]["fence"] == "lease-expired"
    assert shown["active"] == found.failover["target"]
    assert shown["automatic"]["needs_acknowledgement"]
    assert done.body["changed"]
    assert found.offences() == []
    assert check_one_writer(found.history).is_valid
