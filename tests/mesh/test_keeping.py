"""Claims about groups whose writes go on by promise, in a whole mesh in one process."""

import asyncio
import itertools

import pytest

from chaos.checkers import check_one_writer
from chaos.history import History
from coordinator.failover.loss import FenceStatus
from coordinator.failover.record import Failover, Phase
from fencing.write_gate import WriteGate
from meshkit.codec import decode
from meshkit.errors import MeshError
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import CoordinationLoss, GroupPolicy
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.promises import Pact
from meshkit.store.txn import Put
from tests.mesh.emergencies import (
    ANYTHING,
    GROUP,
    OPERATOR,
    acknowledged,
    begin,
    emergency,
    hears_of_no_seal,
    until,
    until_step,
    until_written,
    writing,
)
from tests.mesh.inmemory import TIMING, MemoryMesh, running
from tests.mesh.test_whole_mesh import move, until_equal, until_in_step

pytestmark = pytest.mark.slow

KEEP = GroupPolicy(on_coordination_loss=CoordinationLoss.KEEP)
TC_S = TIMING.coordination_ttl_ms / 1000


def lose_coordination(mesh: MemoryMesh, *clusters: str) -> None:
    for name, sight in mesh.sights.items():
        if name.split("-")[0] in clusters:
            sight.partition()


def find_coordination(mesh: MemoryMesh) -> None:
    for sight in mesh.sights.values():
        sight.heal()


async def until_pact(mesh: MemoryMesh, at: str) -> Pact:
    """Return the pact once it stands in both etcds."""
    async with asyncio.timeout(10):
        while True:
            here = await mesh.stores[at].get(RegionalKeys.pact(GROUP))
            outside = await mesh.coordination.get(CoordinationKeys.pact(GROUP))
            if here and outside and here.value == outside.value:
                pact = decode(Pact, here.value)
                if pact.cluster == at:
                    return pact
            await asyncio.sleep(0.02)


async def until_promised(mesh: MemoryMesh, by: str) -> None:
    async with asyncio.timeout(10):
        while await mesh.stores[by].get(RegionalKeys.promise(GROUP)) is None:
            await asyncio.sleep(0.01)


async def can_write(gate: WriteGate, key: bytes, *, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await gate.write((Put(key, b"x"),))
    except (TimeoutError, MeshError):
        return False
    return True


async def test_a_group_that_keeps_writes_on_and_one_that_lapses_waits() -> None:
    """The coordination etcd is gone for every region, beyond `Tc`; then it is back."""
    mesh = MemoryMesh()
    history = History()
    async with running(mesh):
        await mesh.apply(policy=KEEP)
        await mesh.apply("users", "/users/")
        await until_in_step(mesh)
        await until_pact(mesh, "a")
        async with (
            mesh.gate() as gate,
            mesh.gate("users") as lapsing,
            writing(gate, history),
        ):
            await until_written(history, 30)
            assert await can_write(lapsing, b"/users/1", within_s=2)
            lose_coordination(mesh, "a", "b", "c")

            await asyncio.sleep(TC_S + 1)
            lapsed = await can_write(lapsing, b"/users/2", within_s=0.5)
            at_loss = len(acknowledged(history))
            await until_written(history, at_loss + 100)

            find_coordination(mesh)
            back = await can_write(lapsing, b"/users/3", within_s=10)
            await until_written(history, len(acknowledged(history)) + 50)
        states = await until_equal(mesh)

    assert not lapsed
    assert back
    gaps_s = gaps(history)
    assert max(gaps_s) < TC_S, "no longer than a busy machine may stall"
    assert [w for w in history.acknowledged() if w.key not in states[ClusterName("b")]] == []
    assert check_one_writer(history).is_valid


def gaps(history: History) -> list[float]:
    times = sorted(w.return_ns for w in history.acknowledged())
    return [(b - a) / 1e9 for a, b in itertools.pairwise(times)]


async def test_members_promise_also_where_nobody_leads() -> None:
    """A replicator that starts while the coordination etcd is lost does not lead; it promises."""
    mesh = MemoryMesh(clusters=("a", "b"), replicators_each=2)
    history = History()
    async with running(mesh):
        await mesh.apply(policy=KEEP)
        await until_in_step(mesh)
        await until_pact(mesh, "a")
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 30)
            lose_coordination(mesh, "a", "b")
            await until_promised(mesh, "b")
            await mesh.processes["b-0"].kill()
            mesh.network.hang_up("b-0")
            await asyncio.sleep(TC_S)

            count = len(acknowledged(history, at="a"))
            await until_written(history, count + 50, at="a")

    assert max(gaps(history)) < TC_S


async def test_s13_an_emergency_ends_what_is_kept_and_opens_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A is cut off, B is not: it promised, is promoted, and opens when the promise has ended."""
    hears_of_no_seal(monkeypatch)
    mesh = MemoryMesh(clusters=("a", "b"))
    history = History()
    async with running(mesh):
        await mesh.apply(policy=KEEP)
        await until_in_step(mesh)
        await until_pact(mesh, "a")
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 30)
            lose_coordination(mesh, "a")
            await until_promised(mesh, "b")
            failover = await begin(mesh, emergency("b"))
            waits = await until_step(mesh, failover, "consent")
            view = await mesh.operations().group(GROUP)
            await mesh.operations().steering.consent(failover, ANYTHING, OPERATOR)
            record = await until(mesh, failover)
            await until_written(history, 30, at="b")

    assert waits.emergency is not None
    assert waits.emergency.fence is FenceStatus.UNKNOWN
    assert record.phase is Phase.SUCCEEDED, record.problem
    assert view["on_coordination_loss"]["cluster"] == "a"
    assert check_one_writer(history).is_valid
    assert opened_after_promise(record)


def opened_after_promise(record: Failover) -> bool:
    steps = {step.step: step for step in record.history}
    return steps["open"].ended_ms is not None


async def test_s13_a_source_that_is_told_of_its_seal_keeps_nothing_and_loses_nothing() -> None:
    """Its log has an end that the target sees; the promise holds until it ends all the same."""
    mesh = MemoryMesh(clusters=("a", "b"))
    history = History()
    async with running(mesh):
        await mesh.apply(policy=KEEP)
        await until_in_step(mesh)
        await until_pact(mesh, "a")
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 30)
            lose_coordination(mesh, "a")
            await until_promised(mesh, "b")
            record = await until(mesh, await begin(mesh, emergency("b", accept_loss=None)))
            await until_written(history, 30, at="b")
        content = await mesh.content("b")

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.fence is FenceStatus.CONFIRMED
    assert record.emergency.loss is not None
    assert record.emergency.loss.target.is_none
    assert [write for write in history.acknowledged() if write.key not in content] == []
    assert check_one_writer(history).is_valid


async def test_an_emergency_that_is_pivoted_at_once_still_waits_for_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Consent is given beforehand, nothing is waited for: only the promise stands in the way."""
    hears_of_no_seal(monkeypatch)
    mesh = MemoryMesh(clusters=("a", "b"))
    history = History()
    async with running(mesh):
        await mesh.apply(policy=KEEP)
        await until_in_step(mesh)
        await until_pact(mesh, "a")
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 30)
            lose_coordination(mesh, "a")
            await until_promised(mesh, "b")
            asked = emergency("b", accept_loss=ANYTHING, no_fence_wait=True)
            record = await until(mesh, await begin(mesh, asked))
            await until_written(history, 30, at="b")

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.fence is FenceStatus.UNKNOWN
    assert check_one_writer(history).is_valid


async def test_a_group_that_keeps_moves_as_fast_as_any_other_and_its_pact_with_it() -> None:
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply(policy=KEEP)
        await until_in_step(mesh)
        before = await until_pact(mesh, "a")
        lose_coordination(mesh, "a")
        await until_promised(mesh, "b")
        find_coordination(mesh)
        await until_in_step(mesh)

        phase = await move(mesh, "b", "move-1", waive=("lag",))
        record = await last_failover(mesh)
        after = await until_pact(mesh, "b")

    assert phase is Phase.SUCCEEDED
    steps = {step.step: step for step in record.history}
    pivot, opened = steps["pivot"].ended_ms, steps["open"].ended_ms
    assert pivot is not None
    assert opened is not None
    assert opened - pivot < 1_500, "no promise stood in the way"
    assert (before.epoch, after.epoch) == (1, 2)
    assert set(after.members) == {"a", "b", "c"}


async def last_failover(mesh: MemoryMesh) -> Failover:
    view = await mesh.operations().group(GROUP)
    last = view["last_failover"]
    return (await mesh.operations().failover(FailoverId(last["id"]))).record


async def test_what_is_kept_is_shown() -> None:
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply(policy=KEEP)
        await until_in_step(mesh)
        await until_pact(mesh, "a")
        idle = (await mesh.operations().group(GROUP))["on_coordination_loss"]
        lose_coordination(mesh, "a")
        async with asyncio.timeout(10):
            while True:
                view = await mesh.operations().group(GroupName("orders"))
                if view["on_coordination_loss"]["goes_on"]:
                    break
                await asyncio.sleep(0.05)

    assert idle["text"] == "writes would go on at a, by the promise of b"
    assert "writes go on at a by the promise of b" in view["on_coordination_loss"]["text"]


async def test_a_group_that_stops_to_keep_has_no_pact() -> None:
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply(policy=KEEP)
        await until_in_step(mesh)
        await until_pact(mesh, "a")
        await mesh.apply(policy=GroupPolicy())

        async with asyncio.timeout(10):
            while await mesh.coordination.get(CoordinationKeys.pact(GROUP)) is not None:
                await asyncio.sleep(0.02)
        here = await mesh.stores["a"].get(RegionalKeys.pact(GROUP))

    assert here is not None
    assert not decode(Pact, here.value).is_in_force
