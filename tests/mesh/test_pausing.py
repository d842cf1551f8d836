"""Claims about pausing a whole mesh: what stands still, what goes on, and what is told."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.api.bodies import PauseAsked
from coordinator.api.pausing import Pausing
from coordinator.api.problems import ChecksFailed
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.store.txn import Put, Txn
from tests.coordinator.test_driver import asked
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import DEADLINE_S, GROUP, OPERATOR, until_equal, until_in_step

A, B = ClusterName("a"), ClusterName("b")


def what(
    group: str | None = None, *, stream: tuple[str, str] | None = None, reason: str = ""
) -> PauseAsked:
    source, target = stream or (None, None)
    return PauseAsked(
        group=GroupName(group) if group else None,
        source=ClusterName(source) if source else None,
        target=ClusterName(target) if target else None,
        reason=reason,
    )


def pausing(mesh: MemoryMesh) -> Pausing:
    return Pausing(store=mesh.coordination, clock=mesh.clock)


async def write(mesh: MemoryMesh, key: str, value: str = "x", *, at: str = "a") -> None:
    await mesh.stores[at].commit(Txn(operations=(Put(key.encode(), value.encode()),)))


async def until(claim) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await claim():
            await asyncio.sleep(0.02)


async def stream(mesh: MemoryMesh, target: str = "b") -> dict:
    streams = (await mesh.operations().streams(None))["streams"]
    return next(s for s in streams if s["target"] == target)


async def has(mesh: MemoryMesh, key: str, *, at: str) -> bool:
    return await mesh.stores[at].get(key.encode()) is not None


async def founded(mesh: MemoryMesh) -> None:
    await mesh.apply()
    await until_in_step(mesh)
    assert (await mesh.operations().group(GROUP))["active"] == "a"


async def test_a_paused_stream_sends_nothing_and_its_lag_grows() -> None:
    """The other streams go on; resumed, nothing is missing and nothing was copied."""
    mesh = MemoryMesh()
    async with running(mesh):
        await founded(mesh)
        done = await pausing(mesh).pause_replication(
            what(stream=("a", "b"), reason="why"), OPERATOR
        )
        assert done["changed"]

        async def is_paused() -> bool:
            return (await stream(mesh))["state"] == "paused"

        await until(is_paused)
        await write(mesh, "/orders/1")
        await until(lambda: has(mesh, "/orders/1", at="c"))

        async def lags() -> bool:
            return ((await stream(mesh))["lag_ms"] or 0) > 600

        await until(lags)
        shown = await stream(mesh)
        assert shown["state"] == "paused"
        assert "the stream a -> b is paused by operator/" in shown["problem"]
        assert "why" in shown["problem"]
        assert not await has(mesh, "/orders/1", at="b")
        assert (await stream(mesh, "c"))["state"] == "streaming"

        await pausing(mesh).resume_replication(what(stream=("a", "b")), OPERATOR)
        await until_equal(mesh)
        await until_in_step(mesh)


@pytest.mark.parametrize("is_compacted", [False, True], ids=["in-history", "compacted"])
async def test_a_paused_group_stands_still_and_the_others_of_its_stream_go_on(
    is_compacted: bool,
) -> None:
    """Resumed, it follows from its place, or is copied, and meets the stream again."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await founded(mesh)
        await mesh.apply("users", "/users/")
        await until_in_step(mesh)
        await write(mesh, "/orders/1")
        await until_equal(mesh)
        await pausing(mesh).pause_replication(what(GROUP), OPERATOR)

        async def is_out() -> bool:
            return await mesh.stores["b"].get(RegionalKeys.group_checkpoint(A, GROUP)) is not None

        await until(is_out)
        await write(mesh, "/orders/2")
        await write(mesh, "/users/1")
        await until(lambda: has(mesh, "/users/1", at="b"))
        assert not await has(mesh, "/orders/2", at="b")

        async def is_shown() -> bool:
            view = (await mesh.operations().group(GROUP))["clusters"]
            own = next(c for c in view if c["cluster"] == "b")
            return own["in_step"] is False and "paused by operator/" in own["problem"]

        await until(is_shown)
        if is_compacted:
            head = (await mesh.stores["a"].range((b"/orders/", b""))).revision
            await mesh.stores["a"].compact(head)
        await pausing(mesh).resume_replication(what(GROUP), OPERATOR)
        await until(lambda: has(mesh, "/orders/2", at="b"))
        await until_in_step(mesh)
        assert await mesh.content("b") == await mesh.content("a")


@pytest.mark.parametrize(
    ("paused", "resumed"),
    [
        (what(GROUP), what(GROUP)),
        (what(stream=("a", "b")), what(stream=("a", "b"))),
        (what(stream=("b", "a")), what(stream=("b", "a"))),
        (what(), what()),
    ],
    ids=["group", "stream", "stream-back", "all"],
)
async def test_a_pause_blocks_a_planned_failover_by_name(
    paused: PauseAsked, resumed: PauseAsked
) -> None:
    """Also of the stream back: the old active cluster could not follow the new one."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await founded(mesh)
        await pausing(mesh).pause_replication(paused, OPERATOR)

        with pytest.raises(ChecksFailed, match=r"not_paused: .* is paused by operator/"):
            await mesh.operations().begin(GROUP, asked(B, request_id="r"), OPERATOR)

        await pausing(mesh).resume_replication(resumed, OPERATOR)
        view = (await mesh.operations().group(GROUP))["clusters"]
        blockers = next(c for c in view if c["cluster"] == "b")["if_promoted"]["blockers"]
        assert "not_paused" not in blockers


async def test_pausing_and_resuming_twice_changes_nothing_and_is_audited_once() -> None:
    """Whoever repeats a request because the answer was lost does no harm."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await founded(mesh)
        here = pausing(mesh)
        changed = [
            (await here.pause_replication(what(GROUP), OPERATOR))["changed"],
            (await here.pause_replication(what(GROUP), OPERATOR))["changed"],
            (await here.resume_replication(what(), OPERATOR))["changed"],
            (await here.resume_replication(what(GROUP), OPERATOR))["changed"],
            (await here.resume_replication(what(GROUP), OPERATOR))["changed"],
        ]
        audit = (await mesh.operations().audit(GROUP, after=0, limit=50))["entries"]

    assert changed == [True, False, False, True, False]
    actions = [e["action"] for e in audit if e["action"].startswith("replication.")]
    assert actions == ["replication.paused", "replication.resumed"]


async def test_paused_automation_begins_nothing_unless_told_to_by_name() -> None:
    """Writes and streams go on, and every status says so."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await founded(mesh)
        await pausing(mesh).pause_automation("change freeze", OPERATOR)
        operations = mesh.operations()
        with pytest.raises(ChecksFailed, match=r"automation: .*change freeze"):
            await operations.begin(GROUP, asked(B, request_id="r"), OPERATOR)
        bodies = [
            await operations.clusters(),
            await operations.groups(),
            await operations.group(GROUP),
            await operations.streams(None),
            await operations.failovers(None),
        ]
        assert [body["automation"]["paused"] for body in bodies] == [True] * 5
        await write(mesh, "/orders/1")
        await until(lambda: has(mesh, "/orders/1", at="b"))

        waived = asked(B, request_id="r2", waive=("automation",))
        begun = (await operations.begin(GROUP, waived, OPERATOR)).body["failover"]

        async def is_over() -> bool:
            return (await operations.failover(begun["id"])).record.phase.value == "succeeded"

        await until(is_over)
        assert (await pausing(mesh).resume_automation("", OPERATOR))["changed"]
        assert not (await operations.groups())["automation"]["paused"]
