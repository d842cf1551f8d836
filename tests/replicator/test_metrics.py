"""Claims about a replicator's metrics: unknown is absent, and standing by says so."""

import attrs
from aiohttp.test_utils import TestClient, TestServer

from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Sequence
from meshkit.status import GroupBehind, GroupHealth, Lag, StreamState, StreamStatus
from replicator.metrics import Reading, application


def stream(target: str, lag: Lag, applied: int | None = None) -> StreamStatus:
    return StreamStatus(
        source="a",
        target=target,
        incarnation=Incarnation("i"),
        lag=lag,
        head=Sequence(50),
        applied=None if applied is None else Sequence(applied),
    )


def reading() -> Reading:
    known = Lag(state=StreamState.STREAMING, lag_ms=250, error_bound_ms=50, records=3)
    group = GroupHealth(
        mode="open", epoch=Epoch(4), command_token=NO_TOKEN, permit=True, in_step=True
    )
    return Reading(
        cluster="a",
        streams=[stream("b", known, 47), stream("c", Lag(state=StreamState.UNKNOWN))],
        groups={"orders": group},
        foreign_writes=2,
        leases_problem="",
    )


async def scraped(read) -> str:
    async with TestClient(TestServer(application(read))) as client:
        answer = await client.get("/metrics")
        assert answer.status == 200
        return await answer.text()


async def test_a_lag_that_is_not_known_has_no_sample() -> None:
    """A zero because nothing is known is the lie that dashboards are built on."""
    text = await scraped(reading)

    assert 'mesh_replication_lag_seconds{source="a",target="b"} 0.25' in text
    assert 'mesh_replication_lag_seconds{source="a",target="c"}' not in text
    assert 'mesh_replication_lag_known{source="a",target="c"} 0.0' in text
    assert 'mesh_replication_state{source="a",state="unknown",target="c"} 1.0' in text


async def test_what_a_group_may_do_here_is_told() -> None:
    text = await scraped(reading)

    assert 'mesh_group_epoch{cluster="a",group="orders"} 4.0' in text
    assert 'mesh_group_permit{cluster="a",group="orders"} 1.0' in text
    assert 'mesh_group_kept{cluster="a",group="orders"} 0.0' in text
    kept = attrs.evolve(reading(), kept=("orders",))
    assert 'mesh_group_kept{cluster="a",group="orders"} 1.0' in await scraped(lambda: kept)
    assert 'mesh_foreign_writes{cluster="a"} 2.0' in text
    assert 'mesh_leases_healthy{cluster="a"} 1.0' in text


async def test_a_replicator_that_stands_by_says_only_that() -> None:
    text = await scraped(lambda: None)

    assert "mesh_replicator_leading 0.0" in text
    assert "mesh_group_epoch" not in text


async def test_what_is_not_known_of_history_has_no_sample() -> None:
    """Headroom, spool and compaction: absent, never zero."""
    text = await scraped(reading)

    assert 'mesh_replication_history_headroom_seconds{source="a"' not in text
    assert 'mesh_spool_bytes{cluster="a"}' not in text
    assert 'mesh_history_compacted_revision{cluster="a"}' not in text

    known = attrs.evolve(reading(), spool_bytes=7, compacted_revision=1234)
    text = await scraped(lambda: known)
    assert 'mesh_spool_bytes{cluster="a"} 7.0' in text
    assert 'mesh_history_compacted_revision{cluster="a"} 1234.0' in text


async def test_a_group_out_of_step_has_a_lag_of_its_own_if_that_is_known() -> None:
    """Only those: there are as many series as groups that need somebody."""
    paused = Lag(state=StreamState.PAUSED, lag_ms=4_000, error_bound_ms=50, records=3)
    told = GroupBehind(group="orders", why="paused", lag=paused)
    status = attrs.evolve(
        stream("b", paused, 47), groups_out_of_step=("orders", "users"), behind=(told,)
    )
    text = await scraped(lambda: attrs.evolve(reading(), streams=[status]))

    of_one = '{group="orders",source="a",target="b"}'
    assert f"mesh_replication_group_lag_seconds{of_one} 4.0" in text
    assert 'mesh_replication_group_lag_seconds{group="users"' not in text
    out = 'mesh_replication_group_out_of_step{group="%s",source="a",target="b",why="%s"} 1.0'
    assert out % ("orders", "paused") in text
    assert out % ("users", "unknown") in text
