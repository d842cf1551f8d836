"""Whoever watches a group of real processes misses nothing, wherever it moves."""

import asyncio
import time

import pytest

from chaos.history import History
from chaos.planned import loaded
from fencing.group_watcher import GroupWatcher
from meshkit.names import ClusterName
from meshkit.store.txn import Put
from tests.e2e.conftest import Rig
from tests.e2e.test_kills import DEADLINE_S, judged, next_target, ready, writes_go_on
from tests.mesh.test_group_watcher import Consumer, not_told

LARGE_BYTES = 1_468_006
"""1.4 MiB, of the 1.5 MiB that etcd takes in a request."""
MOVES = 3


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_a_watcher_is_told_every_write_once_across_failovers(rig: Rig) -> None:
    """And so is one of a value that is almost as large as etcd takes, over the real link."""
    prefix = f"/orders/watched-{time.time_ns():x}/"
    large = (f"{prefix}large".encode(), (b"0123456789abcdef" * LARGE_BYTES)[:LARGE_BYTES])
    consumer = Consumer()
    async with loaded(rig.sandbox, prefix=prefix, guarded=2, bare=1) as load:
        await ready(load)
        was_at = [ClusterName(await load.active())]
        watcher = GroupWatcher(load.group, routing=tuple(load.stores.values()), members=load.stores)
        async with watcher:
            watching = asyncio.create_task(consumer.run(watcher))
            async with asyncio.timeout(DEADLINE_S):
                await consumer.changed.wait()
            shown = set(consumer.state)
            for _ in range(MOVES):
                await writes_go_on(load)
                target = await next_target(load)
                assert (await load.move(target)).phase == "succeeded"
                was_at.append(ClusterName(target))
            await load.gates[0].write((Put(*large),))
            await writes_go_on(load)
            assert await judged(load) == []
            await until_told(load.history, consumer, large[0], besides=shown)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        states = await load.states()

    mine = {key: told for key, told in consumer.told.items() if key.startswith(prefix.encode())}
    assert set(not_told(load.history, consumer)) <= shown
    assert {len(told) for told in mine.values()} == {1}
    assert mine[large[0]] == [large[1]]
    assert [state[large[0]] for state in states.values()] == [large[1]] * len(states)
    assert consumer.clusters == was_at
    assert consumer.resets == ["the watch begins"]


async def until_told(
    history: History, consumer: Consumer, last: bytes, *, besides: set[bytes]
) -> None:
    """Wait until the consumer was told of everything acknowledged that was not there before."""
    async with asyncio.timeout(DEADLINE_S):
        while set(not_told(history, consumer)) - besides or last not in consumer.told:
            consumer.changed.clear()
            await consumer.changed.wait()
