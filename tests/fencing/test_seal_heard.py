"""S26: what a region does that is told of its seal by another cluster, in any order and late."""

from fencing import fence as fences
from meshkit.codec import decode
from meshkit.commands import CommandStep
from meshkit.keys import RegionalKeys as Keys
from meshkit.ordinals import Epoch, Token
from meshkit.regional import FenceMode, SegmentCut
from meshkit.store.txn import Committed, Txn
from tests.fencing.test_fence import GROUP, LEADER, Region, command, opened_region, token


async def told(region: Region, seal: Token, *, epoch: int = 1) -> Txn | None:
    view = await region.view()
    return fences.seal_heard(view, epoch=Epoch(epoch), seal=seal, leader=LEADER)


async def obeyed(region: Region, seal: Token) -> None:
    txn = await told(region, seal)
    assert txn is not None
    assert isinstance(await region.store.commit(txn), Committed)


async def test_the_cut_carries_the_seal_and_no_permit_is_left() -> None:
    region = await opened_region()

    await obeyed(region, token(20))

    cut = await region.store.get(Keys.segment_cut(GROUP, Epoch(1)))
    assert cut is not None
    assert decode(SegmentCut, cut.value).command_token == token(20)
    assert not await region.may_write()
    assert (await region.view()).mode is FenceMode.DRAINED


async def test_to_be_told_again_changes_nothing() -> None:
    region = await opened_region()
    await obeyed(region, token(20))

    assert await told(region, token(20)) is None


async def test_the_order_to_seal_that_comes_after_it_is_obeyed_and_keeps_the_cut() -> None:
    region = await opened_region()
    await obeyed(region, token(20))
    before = (await region.view()).cut

    decision = await region.obey(command(CommandStep.SEAL), token(20))

    assert isinstance(decision, fences.Act)
    assert (await region.view()).cut == before


async def test_a_release_opens_it_again_and_the_word_of_that_seal_comes_too_late() -> None:
    """S26, with a word that was on its way while the emergency was given up."""
    region = await opened_region()
    await obeyed(region, token(20))

    decision = await region.obey(command(CommandStep.RELEASE), token(30))

    assert isinstance(decision, fences.Act)
    assert await region.may_write()
    assert await told(region, token(20)) is None
    assert await told(region, token(40)) is not None


async def test_a_seal_of_another_epoch_says_nothing() -> None:
    region = await opened_region()

    assert await told(region, token(20), epoch=2) is None
    assert await told(region, token(20), epoch=0) is None


async def test_a_region_that_knows_nothing_of_the_group_has_nothing_to_stop() -> None:
    assert await told(await Region().begin(), token(20)) is None


async def test_a_fence_that_moves_meanwhile_refuses_it() -> None:
    region = await opened_region()
    txn = await told(region, token(20))
    assert txn is not None

    await region.obey(command(CommandStep.DRAIN), token(15))
    await region.obey(command(CommandStep.UNDRAIN), token(30))

    assert not isinstance(await region.store.commit(txn), Committed)
    assert await region.may_write()
