"""A region that is cut off and alive, by the histories of both sides (issue 4, must 2; S1, S26).

Real processes; the network between the regions goes through the fault proxy, which swallows what is
sent and leaves connections open. Each test cuts off whichever region the one before left active.
"""

import os
from collections.abc import AsyncIterator

import attrs
import pytest
import pytest_asyncio

from chaos.cut_off.run import Isolation, isolate
from chaos.cut_off.trial import How
from chaos.links import Network, networked
from cli.sandbox.sandbox import Sandbox
from tests.e2e.conftest import CLUSTERS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]


@attrs.frozen
class Regions:
    sandbox: Sandbox
    network: Network

    async def isolate(self, how: How) -> Isolation:
        found = await isolate(self.sandbox, self.network, how, say=print)
        for verdict in found.verdicts:
            print(f"{verdict.judgement.value:8} {verdict.check}: {verdict.detail}")
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def regions(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Regions]:
    directory = tmp_path_factory.mktemp("cut-off") / "sandbox"
    sandbox = Sandbox.create(
        directory,
        clusters=CLUSTERS,
        timing="fast",
        coordinators=len(CLUSTERS),
        is_behind_proxies=True,
    )
    try:
        await sandbox.start_stores()
        async with networked(sandbox) as network:
            await sandbox.start()
            yield Regions(sandbox, network)
            await sandbox.stop()
    finally:
        await sandbox.stop()
        if not os.environ.get("MESH_E2E_KEEP"):
            sandbox.purge()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_region_that_is_cut_off_and_alive_stops_before_another_starts(
    regions: Regions,
) -> None:
    """Its writers, who see nothing but it, are told no by their gates before anybody is told yes."""
    found = await regions.isolate(How.ALIVE)

    assert found.failover["emergency"]["fence"] == "lease-expired"
    assert found.offences == []
    tail = found.of_region(is_guarded_one=True)
    assert {w.key for w in tail} & found.kept, "what was written after the cut is in quarantine"


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_half_dead_region_accepts_late_has_the_old_epoch_and_is_quarantined(
    regions: Regions,
) -> None:
    """S1: its etcd gives the old permit its time anew. The gates hold; the compare alone does not."""
    found = await regions.isolate(How.HALF_DEAD)

    assert found.failover["emergency"]["fence"] == "lease-expired"
    assert found.offences == []
    # The same judgement finds the overlap there is: it can fail, and the gates are what holds.
    assert not found.handover(is_guarded_one=False).is_valid
    # What was acknowledged in the very moment of the cut may have been streamed before it.
    certain = found.failover["emergency"]["loss"]["target"]["certain"]
    late = found.of_region(is_guarded_one=False)
    past = {w.key for w in late if w.revision is None or w.revision > certain}
    assert past
    assert past <= found.kept


@pytest.mark.asyncio(loop_scope="module")
async def test_a_region_cut_off_from_the_coordination_etcd_alone_loses_nothing(
    regions: Regions,
) -> None:
    """S26: what still arrives is taken in, up to the cut of the seal that the target tells it of."""
    found = await regions.isolate(How.UNCOORDINATED)

    assert found.failover["emergency"]["fence"] == "confirmed"
    assert found.failover["emergency"]["loss"]["target"]["is_none"]
    assert found.offences == []
    assert found.of_region(is_guarded_one=True)
    assert found.kept == frozenset()
