"""Claims about the whole: coordinators, replicators, streams and gates together, in one process."""

import asyncio

import pytest

from chaos.checkers import (
    check_identical,
    check_no_ghosts,
    check_nothing_lost,
    check_one_writer,
    check_traffic,
)
from chaos.history import History
from chaos.traffic import GuardedWriter
from coordinator.api.bodies import FailoverRequest
from coordinator.failover.record import FailoverKind, Phase
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.peer import PeerIdentity
from tests.mesh.inmemory import MemoryMesh, running

GROUP = GroupName("orders")
OPERATOR = PeerIdentity(role="operator", name="test")
DEADLINE_S = 30


async def until_in_step(mesh: MemoryMesh) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            view = await mesh.operations().group(GROUP)
            ready = view["active"] is not None and all(
                c["in_step"] and (c["active"] or c["stream"] == "streaming")
                for c in view["clusters"]
            )
            if ready:
                return
            await asyncio.sleep(0.02)


async def move(
    mesh: MemoryMesh, target: str, request_id: str, *, waive: tuple[str, ...] = ()
) -> Phase:
    request = FailoverRequest(
        target=ClusterName(target),
        kind=FailoverKind.PROMOTE,
        expect_epoch=None,
        reason="",
        change="",
        waive=waive,
        dry_run=False,
        request_id=request_id,
    )
    done = await mesh.operations().begin(GROUP, request, OPERATOR)
    failover = FailoverId(done.body["failover"]["id"])
    async with asyncio.timeout(DEADLINE_S):
        while True:
            loaded = await mesh.operations().failover(failover)
            if loaded.record.phase.is_final:
                return loaded.record.phase
            await asyncio.sleep(0.005)


async def until_equal(mesh: MemoryMesh) -> dict[ClusterName, dict[bytes, bytes]]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            states = {ClusterName(c): await mesh.content(c) for c in mesh.clusters}
            if check_identical(states).is_valid:
                return states
            await asyncio.sleep(0.02)


async def until_written(history: History, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len(history.acknowledged()) < count:
            await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_moves_in_a_row_under_load_lose_nothing_and_leave_all_clusters_identical() -> None:
    """Promises 1 and 2, over every pair of three clusters and back again."""
    mesh = MemoryMesh()
    history = History()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        async with mesh.gate() as gate:
            writers = [
                asyncio.create_task(
                    GuardedWriter(
                        name=f"w{number}",
                        gate=gate,
                        prefix="/orders/",
                        history=history,
                        interval_s=0.005,
                    ).run()
                )
                for number in range(3)
            ]

            phases = []
            for number, target in enumerate(["b", "c", "a", "c", "b", "a", "b", "a"]):
                await until_written(history, 10 * (number + 1))
                phases.append(await move(mesh, target, f"move-{number}"))

            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
        states = await until_equal(mesh)

    assert set(phases) == {Phase.SUCCEEDED}
    verdicts = [
        check_traffic(history, acknowledged_min=50),
        check_nothing_lost(history, states),
        check_no_ghosts(history, states),
        check_one_writer(history),
    ]
    assert [verdict for verdict in verdicts if not verdict.is_valid] == []


@pytest.mark.slow
async def test_a_standby_that_was_down_comes_back_by_itself_without_loss() -> None:
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        await mesh.processes["c-0"].kill()
        async with mesh.gate() as gate:
            history = History()
            writer = GuardedWriter(name="w", gate=gate, prefix="/orders/", history=history)
            for number in range(50):
                await writer.write_once(number)

        mesh.start_replicator("c", 0)
        states = await until_equal(mesh)

    assert check_nothing_lost(history, states).is_valid


@pytest.mark.slow
async def test_a_standby_whose_position_was_compacted_away_comes_back_by_itself() -> None:
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        await mesh.processes["c-0"].kill()
        async with mesh.gate() as gate:
            history = History()
            writer = GuardedWriter(name="w", gate=gate, prefix="/orders/", history=history)
            for number in range(50):
                await writer.write_once(number)
        head = (await mesh.stores["a"].status()).revision
        await mesh.stores["a"].compact(head)

        mesh.start_replicator("c", 0)
        states = await until_equal(mesh)

    assert check_nothing_lost(history, states).is_valid
