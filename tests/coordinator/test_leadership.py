"""Claims about a coordinator from term to term."""

from __future__ import annotations

from coordinator.leadership import Leadership
from fencing.election import Election
from meshkit.keys import CoordinationKeys as Keys
from meshkit.store.txn import Delete, Txn
from tests.coordinator.fake_region import FakeMesh, background, settle_until


async def test_a_coordinator_whose_term_has_ended_leads_again() -> None:
    """The end of a term is an end of many tasks, and of none but those."""
    mesh = FakeMesh()
    election = Election(
        store=mesh.store.connect(),
        key=Keys.coordinator_leader,
        value=b"c1",
        ttl_s=5,
        clock=mesh.clock,
    )
    leadership = Leadership(store=mesh.store.connect(), election=election, clock=mesh.clock)
    async with background(leadership.run()) as (leading,):
        for _ in range(3):
            await settle_until(lambda: mesh.store.get(Keys.coordinator_leader))
            await mesh.store.commit(Txn(operations=(Delete(Keys.coordinator_leader),)))
            await settle_until(lambda: _is_deposed(leadership))
            await mesh.clock.advance_ms(1_000)

        await settle_until(lambda: mesh.store.get(Keys.coordinator_leader))

        assert not leading.done()


async def _is_deposed(leadership: Leadership) -> bool:
    return not leadership.is_leading
