"""Writes go on by promise on real processes: the coordination etcd is killed under load."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from chaos.history import History
from chaos.planned import Load, loaded
from cli.sandbox.sandbox import Sandbox
from fencing.timing import PROFILES
from meshkit.errors import MeshError
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import GroupName

TC_S = PROFILES["fast"].coordination_ttl_ms / 1000
KEPT, LAPSING = GroupName("orders"), GroupName("users")


async def until(holds: Callable[[], Awaitable[bool]], *, within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while True:
            try:
                if await holds():
                    return
            except MeshError:
                pass
            await asyncio.sleep(0.05)


async def has_permit(load: Load, cluster: str, group: GroupName) -> bool:
    return await load.stores[cluster].get(RegionalKeys.permit(group)) is not None


async def has_pact(sandbox: Sandbox, load: Load, cluster: str) -> bool:
    store = sandbox.store()
    try:
        outside = await store.get(CoordinationKeys.pact(KEPT))
    finally:
        await store.close()
    here = await load.stores[cluster].get(RegionalKeys.pact(KEPT))
    return outside is not None and here is not None and outside.value == here.value


async def is_released(load: Load, cluster: str) -> bool:
    return await load.stores[cluster].get(RegionalKeys.promise(KEPT)) is None


def longest_gap_s(history: History, *, since_ns: int) -> float:
    times = sorted(w.return_ns for w in history.acknowledged() if w.return_ns >= since_ns)
    return max((b - a) / 1e9 for a, b in itertools.pairwise([since_ns, *times]))


@pytest.mark.e2e
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_lost_coordination_etcd_stops_only_the_group_that_lapses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Beyond `Tc`; then it is there again, both groups go on, and the one that kept moves."""
    sandbox = Sandbox.create(tmp_path / "sandbox", clusters=("a", "b"), timing="fast")
    await sandbox.start()
    try:
        async with sandbox.api() as api:
            policy = {"on_coordination_loss": "keep"}
            await api.put("/v1/groups/orders", {"policy": policy}, dry_run=False)
            users = {"prefixes": ["/users/"], "members": ["a", "b"]}
            await api.put("/v1/groups/users", users, dry_run=False)
        async with loaded(sandbox, guarded=2, bare=1, interval_s=0.01) as load:
            active = await load.active()
            other = next(name for name in ("a", "b") if name != active)
            await until(lambda: has_permit(load, "a", LAPSING))
            await until(lambda: has_pact(sandbox, load, active))

            killed_ns = time.monotonic_ns()
            for member in sandbox.coordination.members:
                member.kill() if how == "killed" else member.pause()
            await asyncio.sleep(TC_S + 3)
            kept = await has_permit(load, active, KEPT)
            lapsed = not await has_permit(load, "a", LAPSING)
            promised = await load.stores[other].get(RegionalKeys.promise(KEPT))
            gap_s = longest_gap_s(load.history, since_ns=killed_ns)

            for member in sandbox.coordination.members:
                member.start() if how == "killed" else member.resume()
            await until(lambda: has_permit(load, "a", LAPSING))
            whole_gap_s = longest_gap_s(load.history, since_ns=killed_ns)
            await until(lambda: is_released(load, other))
            move = await load.move(other)
            await load.stop_writers()
            verdicts = await load.verdicts(acknowledged_min=300)
    finally:
        await sandbox.stop()
        await asyncio.to_thread(sandbox.purge)

    with capsys.disabled():
        print(f"\n  longest silence {gap_s * 1000:.0f} ms, {whole_gap_s * 1000:.0f} ms in all")
    assert kept
    assert lapsed
    assert promised is not None
    assert whole_gap_s < TC_S, "no longer than a lapse would take, by far"
    assert move.phase == "succeeded", move.failover
    assert [verdict for verdict in verdicts if not verdict.is_valid] == []
