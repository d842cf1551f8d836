"""Waiting for no longer than one should, and being cancelled while a group fails."""

from __future__ import annotations

import asyncio

import pytest

from fencing.patience import give_way


async def test_a_cancellation_is_not_lost_to_a_failure_of_the_same_moment() -> None:
    """A leader whose term ends just as its process is told to stop does not lead again."""
    began, handled = asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("the term ended")

    async def lead() -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(fails())
            except* ValueError:
                handled.set()
            give_way()

    leading = asyncio.create_task(lead())
    await began.wait()
    leading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await leading
    assert handled.is_set()


async def test_nobody_gives_way_who_is_not_cancelled() -> None:
    give_way()
