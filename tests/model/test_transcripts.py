"""Golden transcripts of emergencies and rejoins: everything a coordinator and regions write.

Their commands are obeyed by real agents. To record anew:
`MESH_RECORD=1 pytest tests/model/test_transcripts.py`.
"""

from __future__ import annotations

import attrs
import pytest

from coordinator.failover.machine import AbortRequested, advance
from coordinator.failover.record import Phase
from coordinator.failover.repository import FailoverRepository
from coordinator.rejoin.record import Rejoin, RejoinPhase
from meshkit.clock import settle
from meshkit.codec import decode, encode
from meshkit.keys import ROOT
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority
from meshkit.ordinals import Revision, Sequence
from meshkit.store.txn import Put, Txn
from tests.coordinator.test_transcript import golden, transcript
from tests.model.killed import F1, ORDERS, A, World
from tests.model.test_killed_emergency import asking, consent, dead_source, emergency
from tests.model.test_killed_rejoin import keep, returned


async def head(here: World) -> Revision:
    return (await here.coordination.range((ROOT, b""))).revision


async def told(here: World, since: Revision) -> str:
    """Return what was written since, but for reports of health."""
    await settle(50)
    return await transcript(here.coordination, since, besides=Keys.health(A))


async def succeeds(here: World) -> Phase:
    await here.drive()
    return (await here.record()).phase


async def waits_for_consent(here: World) -> Phase:
    await here.drive()
    await consent(here)
    await here.drive()
    return (await here.record()).phase


async def is_aborted(here: World) -> Phase:
    """The source is dead, so nobody hears the release; it stays asked."""
    await here.drive()
    failovers = FailoverRepository(store=here.coordination, clock=here.clock)
    loaded = await failovers.load(ORDERS, F1)
    assert loaded is not None
    asked = AbortRequested(actor="operator/alice", reason="it is back")
    after = advance(loaded.record, asked, now_ms=here.clock.wall_ms())
    await failovers.save(loaded, after, what="abort requested")
    await here.drive()
    return (await here.record()).phase


@pytest.mark.parametrize(
    ("story", "begun", "ending"),
    [
        (succeeds, emergency, Phase.SUCCEEDED),
        (waits_for_consent, asking, Phase.SUCCEEDED),
        (is_aborted, asking, Phase.ROLLED_BACK),
    ],
)
async def test_an_emergency_writes_exactly_this(story, begun, ending: Phase) -> None:
    """The whole of it, in order, with every token."""
    async with dead_source(begun) as here:
        since = await head(here)
        phase = await story(here)
        text = await told(here, since)

    assert phase is ending
    assert text == golden(f"emergency-{story.__name__}", text)


async def sets_a_tail_aside(_here: World) -> None:
    """As it came back."""


async def has_no_tail(here: World) -> None:
    """Its successor stands on all that it wrote."""
    item = await here.coordination.get(Keys.authority(ORDERS))
    assert item is not None
    authority = decode(Authority, item.value)
    assert authority.lineage is not None
    end = Sequence((await here.regional[A].status()).revision)
    lineage = attrs.evolve(authority.lineage, sequence=end)
    changed = attrs.evolve(authority, lineage=lineage)
    await here.coordination.commit(Txn(operations=(Put(item.key, encode(changed)),)))


@pytest.mark.parametrize("story", [sets_a_tail_aside, has_no_tail])
async def test_a_rejoin_writes_exactly_this(story) -> None:
    """Only what is not there already is set aside, and nothing is written over before."""
    async with returned() as here:
        await story(here)
        since = await head(here)
        await keep(here)
        record = await here.stored(Keys.rejoin(ORDERS, A), Rejoin)
        text = await told(here, since)

    assert record.phase is RejoinPhase.SUCCEEDED
    assert text == golden(f"rejoin-{story.__name__}", text)
