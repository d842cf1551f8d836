"""Claims about the lag of a whole mesh while one group stands still: told in one way everywhere."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from coordinator.api.metrics import Metrics
from meshkit.keys import RegionalKeys
from meshkit.names import GroupName
from tests.coordinator.test_driver import asked
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_pausing import A, B, founded, has, pausing, stream, until, what, write
from tests.mesh.test_whole_mesh import GROUP, OPERATOR, until_equal, until_in_step

USERS = GroupName("users")
REFUSED_BYTES = 3_000


async def two_groups(mesh: MemoryMesh) -> None:
    await founded(mesh)
    await mesh.apply("users", "/users/")
    await until_in_step(mesh)
    await write(mesh, "/orders/1")
    await write(mesh, "/users/1")
    await until_equal(mesh)

    async def is_streaming() -> bool:
        return (await stream(mesh))["state"] == "streaming"

    await until(is_streaming)


async def copy_of(mesh: MemoryMesh, group: str = GROUP, *, at: str = "b") -> dict:
    view = await mesh.operations().group(GroupName(group))
    return next(c for c in view["clusters"] if c["cluster"] == at)


async def lag_check(mesh: MemoryMesh, group: str = GROUP) -> tuple[bool, str, dict]:
    seen = await mesh.operations().begin(
        GroupName(group), asked(B, request_id="", dry_run=True), OPERATOR
    )
    check = next(c for c in seen.body["preview"]["checks"] if c["name"] == "lag")
    return check["ok"], check["detail"], seen.body["preview"]


async def is_out(mesh: MemoryMesh) -> bool:
    return await mesh.stores["b"].get(RegionalKeys.group_checkpoint(A, GROUP)) is not None


def metric(streams: list[dict]) -> dict[str, float]:
    """What a coordinator tells Prometheus of these streams, by target."""
    text = Metrics().exposition(is_leading=True, streams=streams).decode()
    families = text_string_to_metric_families(text)
    lag = next(f for f in families if f.name == "mesh_replication_lag_seconds")
    return {s.labels["target"]: s.value for s in lag.samples}


async def until_zero(mesh: MemoryMesh) -> None:
    async def is_zero() -> bool:
        shown = await stream(mesh)
        return (shown["state"], shown["lag_ms"], shown["records"]) == ("streaming", 0, 0)

    await until(is_zero)


async def lags(mesh: MemoryMesh, at_least_ms: int = 600) -> None:
    async def is_late() -> bool:
        return ((await stream(mesh))["lag_ms"] or 0) >= at_least_ms

    await until(is_late)


async def test_a_paused_group_lags_and_says_so_wherever_lag_is_told() -> None:
    """Stream, metric, screen and check are one number; the other group has its own small one."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await two_groups(mesh)
        await pausing(mesh).pause_replication(what(GROUP, reason="why"), OPERATOR)
        await until(lambda: is_out(mesh))
        await write(mesh, "/orders/2")
        await write(mesh, "/users/2")
        await until(lambda: has(mesh, "/users/2", at="b"))

        await lags(mesh)
        streams = (await mesh.operations().streams(None))["streams"]
        shown = next(s for s in streams if s["target"] == "b")
        own, other = await copy_of(mesh), await copy_of(mesh, "users")
        ok, detail, seen = await lag_check(mesh)

        assert (shown["state"], shown["groups_out_of_step"]) == ("paused", [GROUP])
        assert shown["records"] == 1
        (behind,) = shown["behind"]
        assert (behind["why"], behind["state"], behind["records"]) == ("paused", "paused", 1)
        assert "paused by operator/" in behind["text"]
        assert "why" in behind["text"]
        assert behind["lag_ms"] == shown["lag_ms"]
        assert metric(streams)["b"] == shown["lag_ms"] / 1000
        assert (own["stream"], own["out_of_step"], own["records"]) == ("paused", "paused", 1)
        assert own["lag_ms"] >= shown["lag_ms"]
        assert not ok
        assert "the group is paused" in detail
        assert seen["stream"] == "paused"
        assert seen["lag_ms"] >= own["lag_ms"]
        assert (other["stream"], other["out_of_step"]) == ("streaming", None)
        assert other["lag_ms"] < 600
        assert (await lag_check(mesh, "users"))[0]

        await pausing(mesh).resume_replication(what(GROUP), OPERATOR)
        await until_zero(mesh)
        assert await mesh.content("b") == await mesh.content("a")

        async def is_well() -> bool:
            return (await copy_of(mesh))["stream"] == "streaming"

        await until(is_well)


async def test_a_paused_group_does_not_hold_up_the_failover_of_another() -> None:
    """Neither its checks nor its steps look at what the other one lacks."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await two_groups(mesh)
        await pausing(mesh).pause_replication(what(GROUP), OPERATOR)
        await until(lambda: is_out(mesh))
        await write(mesh, "/orders/2")
        await lags(mesh)

        operations = mesh.operations()
        begun = (await operations.begin(USERS, asked(B, request_id="r"), OPERATOR)).body["failover"]

        async def is_over() -> bool:
            return (await operations.failover(begun["id"])).record.phase.value == "succeeded"

        await until(is_over)
        assert (await operations.group(USERS))["active"] == "b"
        assert ((await copy_of(mesh))["lag_ms"] or 0) >= 600


async def test_a_group_with_a_refused_write_is_stalled_and_lags() -> None:
    """Until the key is changed; then all of it falls to a proven zero."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await two_groups(mesh)
        mesh.stores["b"].server.request_bytes_max = REFUSED_BYTES
        await write(mesh, "/orders/huge", "x" * 2 * REFUSED_BYTES)

        await lags(mesh)
        shown, own, other = await stream(mesh), await copy_of(mesh), await copy_of(mesh, "users")

        assert (shown["state"], shown["groups_out_of_step"]) == ("stalled", [GROUP])
        assert own["out_of_step"] == "parked"
        assert own["lag_ms"] >= 600
        assert "/orders/huge" in shown["behind"][0]["text"]
        assert (other["stream"], other["out_of_step"]) == ("streaming", None)
        await write(mesh, "/orders/huge", "small")
        await until_zero(mesh)


async def test_neither_a_lost_link_nor_a_new_leader_makes_a_paused_group_look_well() -> None:
    """Whoever counts anew says what it knows, or that it does not know."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await two_groups(mesh)
        await pausing(mesh).pause_replication(what(GROUP), OPERATOR)
        await until(lambda: is_out(mesh))
        await write(mesh, "/orders/2")
        await write(mesh, "/users/2")
        await lags(mesh)

        async def is_never_well(seen: list[str]) -> bool:
            shown, own = await stream(mesh), await copy_of(mesh)
            for lag_ms in (shown["lag_ms"], own["lag_ms"]):
                assert lag_ms is None or lag_ms >= 600, (shown, own)
            assert shown["state"] != "streaming"
            seen.append(shown["state"])
            return len(seen) > 20 and seen[-1] == "paused"

        links: list[str] = []
        mesh.network.break_all()
        await until(lambda: is_never_well(links))
        leaders: list[str] = []
        await mesh.processes["a-0"].kill()
        mesh.start_replicator("a", 0)
        await until(lambda: is_never_well(leaders))

        await pausing(mesh).resume_replication(what(GROUP), OPERATOR)
        await until_zero(mesh)
