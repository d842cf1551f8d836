"""A command to open waits for what was promised, and has nothing more promised meanwhile (S13)."""

from meshkit.asking import AskPromises, Promised
from meshkit.codec import decode
from meshkit.commands import AnswerOutcome, CommandStep
from meshkit.incarnations import FIRST_INCARNATION
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision, Sequence
from meshkit.peer import PeerIdentity
from meshkit.promises import PromisesRefused
from replicator.promising import answer_about_promises
from tests.replicator.test_agent import GROUP, World, authority, leading, new_world, passive_in_step

LINEAGE = Lineage(parent="b", parent_incarnation="ib", parent_epoch=Epoch(1), sequence=Sequence(10))


async def promised(world: World, number: int) -> bool:
    question = AskPromises(
        groups={GROUP: Epoch(1)},
        coordination=FIRST_INCARNATION,
        term=Revision(5),
        round=number,
        ttl_s=4,
    )
    peer = PeerIdentity(role="cluster", name="b")
    answer = await answer_about_promises(world.regional, question, peer, me=ClusterName("a"))
    assert isinstance(answer, Promised)
    return answer.groups == (GROUP,)


async def test_open_waits_for_a_promise_and_the_old_active_cluster_gets_no_other() -> None:
    """Asked once a second, it would be renewed for ever, and nobody would ever open."""
    world = new_world()
    await passive_in_step(world, 10)
    assert await promised(world, 1)
    await authority(world, "a", epoch=2)
    async with leading(world):
        token = await world.order(CommandStep.OPEN, epoch=2, lineage=LINEAGE)
        await world.clock.advance_ms(1_000)

        again = await promised(world, 2)
        waits = await world.regional.get(RegionalKeys.promises_refused(GROUP))
        was_open = await world.has_permit()
        answer = await world.answered(token)

        left = await world.regional.get(RegionalKeys.promises_refused(GROUP))
        promise = await world.regional.get(RegionalKeys.promise(GROUP))

    assert not again
    assert waits is not None
    assert decode(PromisesRefused, waits.value).epoch == 2
    assert not was_open
    assert answer.outcome is AnswerOutcome.DONE
    assert (left, promise) == (None, None)
    assert await world.has_permit()
