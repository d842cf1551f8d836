"""An emergency on real processes: a whole region is killed under load, and stays dead."""

import asyncio
from pathlib import Path

import pytest

from chaos.checkers import check_one_writer
from chaos.emergency import rescue
from cli.sandbox.sandbox import Sandbox


@pytest.mark.chaos
@pytest.mark.e2e
async def test_a_region_is_killed_and_nothing_is_lost_from_before_the_stated_point(
    tmp_path: Path,
) -> None:
    """Promises 1 and 3, by what clients were told; the SDK's clients go on by themselves."""
    sandbox = Sandbox.create(tmp_path / "sandbox", clusters=("a", "b"), timing="fast")
    await sandbox.start()
    try:
        found = await rescue(sandbox)
    finally:
        await sandbox.stop()
        await asyncio.to_thread(sandbox.purge)

    print(f"first acknowledged write {found.from_death_ms:.0f} ms after the region died")
    assert found.failover["phase"] == "succeeded", found.failover
    assert found.failover["emergency"]["fence"] == "lease-expired"
    assert found.offences() == []
    assert check_one_writer(found.history).is_valid
