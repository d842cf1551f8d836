"""Claims about agent and upkeep with mirrors that lag, which a review once found untrue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshkit.codec import decode, encode
from meshkit.commands import AnswerOutcome, CommandStep
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.mirror import PrefixMirror
from meshkit.model import Lineage
from meshkit.ordinals import NO_TOKEN, Epoch, Sequence
from meshkit.regional import (
    Checkpoint,
    Fence,
    FenceIndex,
    FenceMode,
    GroupCheckpoint,
    SegmentScope,
)
from meshkit.store.txn import Delete, Put, Txn
from tests.replicator.test_agent import GROUP, World, authority, leading, new_world


@asynccontextmanager
async def late(mirror: PrefixMirror) -> AsyncIterator[None]:
    """The first read of this mirror is answered only at the end of the block."""
    release = asyncio.Event()
    run = mirror.run

    async def run_late() -> None:
        await release.wait()
        await run()

    mirror.run = run_late  # type: ignore[method-assign]
    try:
        yield
    finally:
        release.set()


def freeze(mirror: PrefixMirror) -> None:
    """From now on this mirror's watch is on a member that hangs: it shows what was."""
    mirror._take_in = lambda _: None  # type: ignore[method-assign]


def lineage_of(parent: str, epoch: int, sequence: int) -> Lineage:
    return Lineage(
        parent=parent,
        parent_incarnation="ia" if parent == "a" else "ib",
        parent_epoch=Epoch(epoch),
        sequence=Sequence(sequence),
    )


async def scope_of(world: World, epoch: int) -> SegmentScope | None:
    item = await world.regional.get(RegionalKeys.segment_scope(GROUP, Epoch(epoch)))
    return decode(SegmentScope, item.value) if item else None


async def joins_of(world: World) -> dict[str, GroupCheckpoint]:
    found = await world.regional.range(
        (RegionalKeys.checkpoints, RegionalKeys.checkpoints[:-1] + b"0")
    )
    return {
        item.key.decode().split("/")[4]: decode(GroupCheckpoint, item.value)
        for item in found.items
        if item.key.count(b"/") == 5
    }


async def test_no_permit_is_put_before_it_is_known_what_the_group_covers() -> None:
    """A successor obeys `open` before its groups were read: writes would be in no log."""
    world = new_world()
    await authority(world, "a")

    async with late(world.agent.groups), leading(world):
        await world.order(CommandStep.OPEN)
        await world.clock.advance_ms(1_000)

        scope = await scope_of(world, 1)
        assert not await world.has_permit() or (scope is not None and scope.prefixes)


async def drained_with_rogue(world: World, rogues: dict[str, bytes]) -> Lineage:
    """Epoch 1 opened and was drained here, then something that ignores permits wrote."""
    await world.answered(await world.order(CommandStep.OPEN))
    drained = await world.answered(await world.order(CommandStep.DRAIN))
    for key, value in rogues.items():
        await world.regional.commit(Txn(operations=(Put(key.encode(), value),)))
    return lineage_of("a", 1, drained.cut or 0)


async def kept(world: World) -> int:
    found = await world.regional.range(
        (RegionalKeys.quarantines, RegionalKeys.quarantines[:-1] + b"0")
    )
    return len(found.items)


async def test_reverse_does_not_pass_over_foreign_writes_because_groups_were_read_late() -> None:
    """S17 by a successor: with no prefixes known nothing is foreign, and nothing is set aside."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        lineage = await drained_with_rogue(world, {"/orders/rogue": b"late"})
    await authority(world, "b", epoch=2)

    successor = new_world(world)
    successor.streams.following.set()
    await successor.order(CommandStep.REVERSE, epoch=2, source="b", lineage=lineage)
    async with leading_late(successor):
        await successor.clock.advance_ms(500)
    async with leading(successor):
        await successor.clock.advance_ms(2_000)

    assert await kept(successor) == 1


@asynccontextmanager
async def leading_late(world: World) -> AsyncIterator[World]:
    async with late(world.agent.groups), leading(world):
        yield world


async def test_reverse_sets_aside_foreign_writes_of_any_size() -> None:
    """64 writes of 20 KB in one quarantine transaction are refused by etcd, again and again."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        rogues = {f"/orders/{n:03}": b"x" * 20_000 for n in range(64)}
        lineage = await drained_with_rogue(world, rogues)
        await authority(world, "b", epoch=2)
        await world.clock.advance_ms(1_000)
        world.streams.following.set()

        answer = await world.answered(
            await world.order(CommandStep.REVERSE, epoch=2, source="b", lineage=lineage)
        )

    assert answer.outcome is AnswerOutcome.DONE
    assert await kept(world) == 64


async def test_one_large_foreign_write_does_not_stop_a_failover() -> None:
    """A value that etcd accepted once is too large for it when it is kept as hexadecimal."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        lineage = await drained_with_rogue(world, {"/orders/large": b"x" * 900_000})
        await authority(world, "b", epoch=2)
        await world.clock.advance_ms(1_000)
        world.streams.following.set()

        answer = await world.answered(
            await world.order(CommandStep.REVERSE, epoch=2, source="b", lineage=lineage)
        )

    assert answer.outcome is AnswerOutcome.DONE


async def test_reverse_never_lowers_the_epoch_because_the_authority_was_read_late() -> None:
    """The command says who is active; a mirror that lags says that this cluster still is."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        lineage = await drained_with_rogue(world, {"/orders/rogue": b"late"})
        freeze(world.agent.authorities)
        await authority(world, "b", epoch=2)
        raised = Fence(
            group=GROUP,
            epoch=Epoch(2),
            mode=FenceMode.SUPERSEDED,
            token=NO_TOKEN,
            command_token=(await world.fence()).command_token,
        )
        await world.regional.commit(
            Txn(
                operations=(
                    Put(RegionalKeys.fence(GROUP), encode(raised)),
                    Put(RegionalKeys.fence_index, encode(FenceIndex(count=9))),
                )
            )
        )
        world.streams.following.set()

        await world.answered(
            await world.order(CommandStep.REVERSE, epoch=2, source="b", lineage=lineage)
        )

        assert (await world.fence()).epoch == 2
        assert set(await joins_of(world)) == {"b"}


async def test_reverse_asked_again_does_not_copy_again_what_was_copied() -> None:
    """Each attempt finds the same old writes; a copy longer than the limit would never end."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        lineage = await drained_with_rogue(world, {"/orders/rogue": b"late"})
        await authority(world, "b", epoch=2)
        await world.clock.advance_ms(1_000)
        await world.order(CommandStep.REVERSE, epoch=2, source="b", lineage=lineage)
        await world.clock.advance_ms(1_000)
        assert set(await joins_of(world)) == {"b"}
        checkpoint = Checkpoint(source="b", incarnation="ib", sequence=Sequence(50))
        await world.regional.commit(
            Txn(
                operations=(
                    Delete(RegionalKeys.group_checkpoint("b", GROUP)),
                    Delete(b"/orders/rogue"),
                    Put(RegionalKeys.checkpoint("b"), encode(checkpoint)),
                    Put(RegionalKeys.fence_index, encode(FenceIndex(count=99))),
                )
            )
        )
        world.streams.following.set()

        await world.answered(
            await world.order(CommandStep.REVERSE, epoch=2, source="b", lineage=lineage)
        )

    assert not await joins_of(world)


async def test_upkeep_never_ends_an_epoch_that_the_authority_gives_this_cluster() -> None:
    """A to B and back while upkeep's watch of the fences hangs: epoch 1 is over, not epoch 3."""
    world = new_world()
    await authority(world, "a")
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        await world.clock.advance_ms(1_000)
        freeze(world.upkeep.here)
        drained = await world.answered(await world.order(CommandStep.DRAIN))
        await authority(world, "b", epoch=2)
        away = lineage_of("a", 1, drained.cut or 0)
        world.streams.following.set()
        await world.answered(
            await world.order(CommandStep.REVERSE, epoch=2, source="b", lineage=away)
        )
        following = Fence(
            group=GROUP,
            epoch=Epoch(2),
            mode=FenceMode.SUPERSEDED,
            token=NO_TOKEN,
            command_token=(await world.fence()).command_token,
        )
        checkpoint = Checkpoint(source="b", incarnation="ib", sequence=Sequence(50))
        await world.regional.commit(
            Txn(
                operations=(
                    Put(RegionalKeys.fence(GROUP), encode(following)),
                    Put(RegionalKeys.checkpoint("b"), encode(checkpoint)),
                )
            )
        )
        await authority(world, "a", epoch=3)
        back = lineage_of("b", 2, 40)
        answer = await world.answered(await world.order(CommandStep.OPEN, epoch=3, lineage=back))
        assert answer.outcome is AnswerOutcome.DONE
        await world.clock.advance_ms(3_000)

        assert ((await world.fence()).epoch, (await world.fence()).mode) == (3, FenceMode.OPEN)
        assert await world.has_permit()


async def test_one_unreadable_group_does_not_stop_upkeep_of_the_others() -> None:
    """A group written by a newer MeshKit must not take every permit of the region with it."""
    world = new_world()
    await authority(world, "a")
    await world.coordination.commit(
        Txn(operations=(Put(CoordinationKeys.group("another"), b'{"schema":"group/99"}'),))
    )
    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        assert world.chain.lease is not None
        lost, world.chain.lease = world.chain.lease, None
        await world.regional.revoke(lost)
        await world.clock.advance_ms(3_000)

        assert await world.has_permit()
