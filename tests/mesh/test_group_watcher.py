"""Claims about the watcher of a group in a whole mesh that moves under writes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import attrs
import pytest

from chaos.history import History
from chaos.traffic import GuardedWriter
from coordinator.failover.record import Phase
from fencing.group_log import GroupChanges, Reset
from fencing.group_watcher import GroupWatcher
from meshkit.names import ClusterName
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import GROUP, move, until_in_step, until_written

DEADLINE_S = 20


@attrs.define
class Consumer:
    """Builds the state from what it is told, and remembers what that was."""

    state: dict[bytes, bytes] = attrs.field(factory=dict)
    told: dict[bytes, list[bytes | None]] = attrs.field(factory=dict)
    resets: list[str] = attrs.field(factory=list)
    clusters: list[str] = attrs.field(factory=list)
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def run(self, watcher: GroupWatcher) -> None:
        async for item in watcher.items():
            if self.clusters[-1:] != [item.cluster]:
                self.clusters.append(item.cluster)
            if isinstance(item, Reset):
                self.state = dict(item.state)
                self.resets.append(item.reason)
            else:
                self._on_changes(item)
            self.changed.set()

    def _on_changes(self, item: GroupChanges) -> None:
        for event in item.events:
            if event.is_repeat:
                continue
            if event.is_delete:
                self.state.pop(event.key, None)
            else:
                self.state[event.key] = event.value
            self.told.setdefault(event.key, []).append(None if event.is_delete else event.value)

    async def until_equal(self, mesh: MemoryMesh, cluster: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.state != await mesh.content(cluster):
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def consuming(
    mesh: MemoryMesh,
) -> AsyncIterator[tuple[Consumer, dict[ClusterName, MemoryStore]]]:
    members = {ClusterName(name): mesh.stores[name].connect() for name in mesh.clusters}
    watcher = GroupWatcher(
        GROUP, routing=(mesh.coordination,), members=members, drain_patience_ms=150
    )
    consumer = Consumer()
    async with watcher:
        task = asyncio.create_task(consumer.run(watcher))
        try:
            async with asyncio.timeout(DEADLINE_S):
                await consumer.changed.wait()
            yield consumer, members
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def writing(mesh: MemoryMesh, history: History) -> AsyncIterator[None]:
    async with mesh.gate() as gate:
        writers = [
            GuardedWriter(
                name=f"w{n}", gate=gate, prefix="/orders/", history=history, interval_s=0.005
            )
            for n in range(3)
        ]
        tasks = [asyncio.create_task(writer.run()) for writer in writers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def not_told(history: History, consumer: Consumer) -> list[bytes]:
    return [w.key for w in history.acknowledged() if w.value not in consumer.told.get(w.key, [])]


@pytest.mark.slow
async def test_moves_under_writes_show_every_acknowledged_write_exactly_once() -> None:
    """Planned moves with every cluster in sight: the old one is read to its cut."""
    mesh = MemoryMesh()
    history = History()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        async with consuming(mesh) as (consumer, _):
            async with writing(mesh, history):
                for number, target in enumerate(["b", "c", "a", "b"]):
                    await until_written(history, 20 * (number + 1))
                    assert await move(mesh, target, f"move-{number}") is Phase.SUCCEEDED
                await until_written(history, 100)

            await consumer.until_equal(mesh, "b")

    assert not_told(history, consumer) == []
    assert {len(values) for values in consumer.told.values()} == {1}
    assert consumer.clusters == ["a", "b", "c", "a", "b"]
    assert consumer.resets == ["the watch begins"]


@pytest.mark.slow
async def test_a_watcher_cut_off_from_the_old_cluster_goes_on_at_the_new_one() -> None:
    """The checkpoint's history says where: nothing is missed, what was told already is marked."""
    mesh = MemoryMesh()
    history = History()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        async with consuming(mesh) as (consumer, members):
            async with writing(mesh, history):
                active = "a"
                for number, target in enumerate(["b", "c", "a"]):
                    await until_written(history, 30 * number + 20)
                    members[ClusterName(active)].partition()
                    await until_written(history, 30 * number + 30)
                    assert await move(mesh, target, f"move-{number}") is Phase.SUCCEEDED
                    await until_told(history, consumer)
                    members[ClusterName(active)].heal()
                    active = target
                await until_written(history, 120)

            await consumer.until_equal(mesh, "a")

    assert not_told(history, consumer) == []
    assert {len(values) for values in consumer.told.values()} == {1}
    assert consumer.clusters == ["a", "b", "c", "a"]
    assert consumer.resets == ["the watch begins"]


async def until_told(history: History, consumer: Consumer) -> None:
    async with asyncio.timeout(DEADLINE_S):
        wanted = History(list(history.acknowledged()))
        while not_told(wanted, consumer):
            consumer.changed.clear()
            await consumer.changed.wait()


@pytest.mark.slow
async def test_a_key_that_is_overwritten_across_moves_never_goes_back() -> None:
    mesh = MemoryMesh()
    key = b"/orders/counter"
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        async with consuming(mesh) as (consumer, members), mesh.gate() as gate:
            moves = asyncio.create_task(moved(mesh, members, ["b", "a", "c"]))
            count = 0
            while not moves.done():
                await gate.write((Put(key, b"%06d" % count),))
                count += 1
                await asyncio.sleep(0.002)
            phases = await moves

            await consumer.until_equal(mesh, "c")

    told = consumer.told[key]
    assert phases == [Phase.SUCCEEDED] * 3
    assert told == sorted(told, key=lambda value: value or b"")
    assert told[-1] == b"%06d" % (count - 1)
    assert consumer.resets == ["the watch begins"]


async def moved(
    mesh: MemoryMesh, members: dict[ClusterName, MemoryStore], targets: list[str]
) -> list[Phase]:
    """Move to each target; the watcher is cut off from the old cluster every second time."""
    phases = []
    active = "a"
    for number, target in enumerate(targets):
        if number % 2 == 0:
            members[ClusterName(active)].partition()
        phases.append(await move(mesh, target, f"move-{number}"))
        members[ClusterName(active)].heal()
        active = target
    return phases
