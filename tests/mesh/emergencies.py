"""What the tests of emergencies share: killing and cutting off regions, asking, judging."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import attrs
import pytest

from chaos.history import History, Write
from chaos.traffic import GuardedWriter
from coordinator.api.bodies import FailoverRequest
from coordinator.failover.loss import LossBound
from coordinator.failover.record import Failover, FailoverKind, Phase
from fencing.write_gate import WriteGate
from meshkit.errors import Refused
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.peer import PeerIdentity
from tests.mesh.inmemory import MemoryMesh

GROUP = GroupName("orders")
OPERATOR = PeerIdentity(role="operator", name="test")
DEADLINE_S = 30
ANYTHING = LossBound(unknown=True)


def emergency(target: str, request_id: str = "e-1", **changes: object) -> FailoverRequest:
    request = FailoverRequest(
        target=ClusterName(target),
        kind=FailoverKind.EMERGENCY,
        expect_epoch=None,
        reason="the region is gone",
        change="",
        waive=(),
        dry_run=False,
        request_id=request_id,
        accept_loss=LossBound(records=1_000, seconds=10),
    )
    return attrs.evolve(request, **changes)


async def begin(mesh: MemoryMesh, request: FailoverRequest, group: str = "orders") -> FailoverId:
    done = await mesh.operations().begin(GroupName(group), request, OPERATOR)
    return FailoverId(done.body["failover"]["id"])


async def until(mesh: MemoryMesh, failover: FailoverId, *phases: Phase) -> Failover:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            record = (await mesh.operations().failover(failover)).record
            if record.phase in phases or (not phases and record.phase.is_final):
                return record
            await asyncio.sleep(0.005)


async def until_step(
    mesh: MemoryMesh, failover: FailoverId, step: str, *, every_s: float = 0.002
) -> Failover:
    """Return the failover at a step. One that nothing holds there is seen only with `every_s=0`."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            loaded = await mesh.operations().failover(failover)
            view = loaded.record
            if view.history and view.history[-1].step == step:
                return view
            assert not view.phase.is_final, view.problem
            await asyncio.sleep(every_s)


async def kill_region(mesh: MemoryMesh, cluster: str) -> None:
    """The power is gone: its replicators, its etcd, and every connection to them."""
    mesh.stores[cluster].partition()
    for name in [n for n in mesh.processes if n.startswith(f"{cluster}-")]:
        mesh.network.hang_up(name)
        await mesh.processes[name].kill()


@contextlib.asynccontextmanager
async def writing(
    gate: WriteGate,
    history: History,
    *,
    writers: int = 3,
    interval_s: float = 0.005,
    name: str = "w",
) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(
            GuardedWriter(
                name=f"{name}{number}",
                gate=gate,
                prefix="/orders/",
                history=history,
                interval_s=interval_s,
            ).run()
        )
        for number in range(writers)
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_written(history: History, count: int, *, at: str | None = None) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len(acknowledged(history, at=at)) < count:
            await asyncio.sleep(0.005)


def acknowledged(history: History, *, at: str | None = None) -> list[Write]:
    return [w for w in history.acknowledged() if at is None or w.cluster == at]


def hears_of_no_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every source be as one that is not told of its seal: nobody gets through, or it is old."""

    async def refuse(*_: object) -> bool:
        raise Refused("it does not listen")

    monkeypatch.setattr("replicator.stopping.Stopping.obey_told_seal", refuse)
