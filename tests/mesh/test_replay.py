"""Claims about sending history again in a whole mesh: API, replicators and streams together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.api.bodies import ReplayAsked, replay_of
from coordinator.api.replaying import Replaying
from meshkit.errors import InvalidInput, NotFound
from meshkit.names import ClusterName
from meshkit.ordinals import Sequence
from meshkit.store.txn import Put, Txn
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import DEADLINE_S, GROUP, OPERATOR, until_equal, until_in_step


def asked(request_id: str, start: int = 2, *, target: str | None = None) -> ReplayAsked:
    name = ClusterName(target) if target else None
    return ReplayAsked(target=name, start=Sequence(start), request_id=request_id)


async def replayed(mesh: MemoryMesh, request: ReplayAsked) -> dict[str, dict[str, Any]]:
    """Ask, and return each cluster's result."""
    replaying = Replaying(store=mesh.coordination, clock=mesh.clock)
    assert (await replaying.ask(GROUP, request, OPERATOR))["changed"]
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = (await replaying.results(GROUP))["replays"]
            if all(each["status"] == "done" for each in found):
                return {each["target"]: each["result"] for each in found}
            await asyncio.sleep(0.02)


async def test_history_is_sent_again_and_nothing_is_written() -> None:
    """Reported, audited, and the copies' etcds hold no revision more of the group."""
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        first = (await mesh.stores["a"].range((b"/orders/", b""))).revision
        for number in range(30):
            await mesh.stores["a"].commit(Txn(operations=(Put(b"/orders/k", b"%d" % number),)))
        await until_equal(mesh)
        before = await mesh.stores["b"].get(b"/orders/k")

        results = await replayed(mesh, asked("r-1", first + 1))
        again = await Replaying(store=mesh.coordination, clock=mesh.clock).ask(
            GROUP, asked("r-1", first + 1), OPERATOR
        )

        assert set(results) == {"b", "c"}
        for result in results.values():
            assert (result["outcome"], result["source"]) == ("done", "a"), result
            assert result["records"] == result["duplicates"] >= 29
        assert await mesh.stores["b"].get(b"/orders/k") == before
        assert not again["changed"]
        audit = (await mesh.operations().audit(GROUP, after=0, limit=50))["entries"]
        assert [e["action"] for e in audit if e["action"].startswith("replay.")] == [
            "replay.requested"
        ]


async def test_history_that_is_compacted_is_refused_clearly() -> None:
    """The copy is as it was; the reason says where the history ends."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        for number in range(10):
            await mesh.stores["a"].commit(Txn(operations=(Put(b"/orders/k", b"%d" % number),)))
        await until_equal(mesh)
        head = (await mesh.stores["a"].range((b"/orders/", b""))).revision
        await mesh.stores["a"].compact(head)

        result = (await replayed(mesh, asked("r-1", target="b")))["b"]

        assert result["outcome"] == "refused"
        assert "compacted away" in result["reason"]
        await mesh.stores["a"].commit(Txn(operations=(Put(b"/orders/k", b"after"),)))
        await until_equal(mesh)


async def test_what_cannot_be_asked_for_is_refused() -> None:
    """Before anything is stored."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        replaying = Replaying(store=mesh.coordination, clock=mesh.clock)
        with pytest.raises(InvalidInput, match="is active"):
            await replaying.ask(GROUP, asked("r", target="a"), OPERATOR)
        with pytest.raises(NotFound, match="no member"):
            await replaying.ask(GROUP, asked("r", target="x"), OPERATOR)
        assert (await replaying.results(GROUP))["replays"] == []
    for body in ({}, {"start": 1}, {"start": "2"}):
        with pytest.raises(InvalidInput, match="start"):
            replay_of(body, idempotency_key="k")
