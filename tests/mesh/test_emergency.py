"""Claims about emergencies in the whole mesh, in one process: a region dies, or is cut off."""

import pytest

from chaos.checkers import check_one_writer
from chaos.history import History
from coordinator.failover.loss import FenceStatus
from coordinator.failover.record import Phase
from meshkit.names import ClusterName
from tests.mesh.emergencies import (
    GROUP,
    acknowledged,
    begin,
    emergency,
    kill_region,
    until,
    until_written,
    writing,
)
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import until_in_step


@pytest.mark.slow
async def test_a_dead_regions_group_is_promoted_and_its_clients_go_on() -> None:
    """Promises 1 and 3: nothing before the stated point is lost, and the seconds are a bound."""
    mesh = MemoryMesh(clusters=("a", "b"))
    history = History()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        async with mesh.gate() as gate, writing(gate, history):
            await until_written(history, 60)
            await kill_region(mesh, "a")

            record = await until(mesh, await begin(mesh, emergency("b")))

            await until_written(history, 20, at="b")
        content = await mesh.content("b")

    assert record.phase is Phase.SUCCEEDED, record.problem
    assert record.emergency is not None
    assert record.emergency.fence is FenceStatus.LEASE_EXPIRED
    statement = record.emergency.loss
    assert statement is not None
    assert statement.target.certain is not None
    at_a = acknowledged(history, at="a")
    kept = [w for w in at_a if w.revision is not None and w.revision <= statement.target.certain]
    assert [w for w in kept if w.key not in content] == []
    lost = [w for w in at_a if w.key not in content]
    if lost:
        span_ms = (at_a[-1].return_ns - min(w.return_ns for w in lost)) / 1e6
        assert statement.target.window_ms is not None
        assert span_ms <= statement.target.window_ms
    assert check_one_writer(history).is_valid
    view = await mesh.operations().group(GROUP)
    assert (view["active"], view["epoch"]) == (ClusterName("b"), 2)
    assert not view["sealed"]
