"""A change wakes those it concerns, all of them, and nobody else."""

from __future__ import annotations

import asyncio

from meshkit.clock import settle
from meshkit.names import GroupName
from meshkit.ordinals import Sequence
from replicator.awaited import AwaitedGroups, AwaitedPositions

G, H = GroupName("g"), GroupName("h")


async def test_a_position_wakes_those_who_wait_for_it_or_for_less() -> None:
    awaited = AwaitedPositions()
    tasks = [asyncio.create_task(awaited.until(Sequence(n))) for n in (30, 10, 20, 10)]
    await settle()

    awaited.on_position(Sequence(19))
    await settle()
    first = [task.done() for task in tasks]
    awaited.wake_all()
    await settle()

    assert first == [False, True, False, True]
    assert all(task.done() for task in tasks)


async def test_a_group_wakes_only_those_who_wait_for_it() -> None:
    awaited = AwaitedGroups()
    tasks = [asyncio.create_task(awaited.change_of(group)) for group in (G, G, H)]
    await settle()

    awaited.on_change(G)
    await settle()
    first = [task.done() for task in tasks]
    awaited.wake_all()
    await settle()

    assert first == [True, True, False]
    assert tasks[2].done()


async def test_one_that_gave_up_waiting_is_nobody() -> None:
    positions = AwaitedPositions()
    task = asyncio.create_task(positions.until(Sequence(1)))
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    positions.on_position(Sequence(5))
    positions.wake_all()
