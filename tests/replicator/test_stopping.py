"""What ends an epoch here, and what comes too late to end it."""

from types import SimpleNamespace

import pytest

from fencing import fence as fences
from fencing.fence_view import view_of, view_reads
from meshkit.clock import ManualClock
from meshkit.codec import decode, encode
from meshkit.commands import CommandStep
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import CoordinationIncarnation, Seal
from meshkit.names import FailoverId
from meshkit.ordinals import Epoch, Incarnation, Token
from meshkit.regional import FenceMode, SegmentCut
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Committed, Put, Txn
from replicator.agent_ports import Region
from replicator.stopping import Stopping
from tests.fencing.test_fence import GROUP, LEADER, command, opened_region, token
from tests.fencing.test_fence import Region as Fenced


def stopping(fenced: Fenced, coordination: MemoryStore | None = None) -> Stopping:
    region = Region(
        cluster="a",
        incarnation=Incarnation("a-1"),
        replicator="a-0",
        leader=LEADER,
        regional=fenced.store,
        coordination=coordination or fenced.store,
        clock=ManualClock(),
    )
    return Stopping(region, SimpleNamespace(), nudge=lambda: None)  # type: ignore[arg-type]


async def mode_after(seal: Token) -> FenceMode | None:
    """Return how a fence stands that was released by command 40, and then obeys a seal."""
    fenced = await opened_region()
    decision = await fenced.obey(command(CommandStep.RELEASE), token(40))
    assert isinstance(decision, fences.Act)
    await stopping(fenced).obey(GROUP, Epoch(2), reason="sealed", seal=seal)
    outcome = await fenced.store.commit(Txn(operations=view_reads(GROUP)))
    assert isinstance(outcome, Committed)
    return view_of(GROUP, outcome.reads).mode


async def test_a_seal_that_was_released_meanwhile_stops_nothing() -> None:
    """It was read before the release, and obeyed after it: nobody would open the group again."""
    assert await mode_after(token(30)) is FenceMode.OPEN


async def test_a_seal_after_the_last_command_stops_the_group() -> None:
    assert await mode_after(token(50)) is FenceMode.DRAINED


async def test_a_seal_whose_age_cannot_be_told_stops_the_group() -> None:
    assert await mode_after(token(50, incarnation=0)) is FenceMode.DRAINED


@pytest.mark.parametrize("number", [1, 2])
async def test_a_seal_has_the_incarnation_of_the_etcd_it_is_in_whatever_its_revision(
    number: int,
) -> None:
    """After an adoption revisions begin lower, and the fence remembers greater ones of before."""
    fenced = await opened_region()
    before = token(9_000)
    await fenced.obey(command(CommandStep.RELEASE), before)
    coordination = MemoryStore(clock=ManualClock())
    seal = Seal(group=GROUP, epoch=Epoch(1), failover=FailoverId("f-1"))
    known = CoordinationIncarnation(number=number, adoption="once")
    puts = (
        Put(CoordinationKeys.seal(GROUP), encode(seal)),
        Put(CoordinationKeys.incarnation, encode(known)),
    )
    outcome = await coordination.commit(Txn(operations=puts))
    assert isinstance(outcome, Committed)

    await stopping(fenced, coordination).obey_seal(GROUP)

    cut = await fenced.store.get(RegionalKeys.segment_cut(GROUP, Epoch(1)))
    if number == 1:
        assert cut is None, "the release came after that seal"
    else:
        assert cut is not None
        expected = Token(incarnation=2, revision=outcome.revision)
        assert decode(SegmentCut, cut.value).command_token == expected
