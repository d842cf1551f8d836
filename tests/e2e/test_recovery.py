"""A region that was away, or fell so far behind that its position is gone, comes back by itself.

Nobody tells it to, nothing acknowledged is lost, and what was deleted meanwhile stays deleted.
"""

import asyncio
import time

import pytest

from chaos.planned import Load, loaded
from meshkit.codec import decode
from meshkit.errors import Compacted
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Revision
from meshkit.regional import Checkpoint
from meshkit.store.txn import Delete, Put, prefix_range
from tests.e2e.conftest import CLUSTERS, Rig
from tests.e2e.test_kills import DEADLINE_S, judged, ready, writes_go_on

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

MISSED = 200
"""How many writes the region is made to miss."""


async def standby(load: Load) -> ClusterName:
    """Return a cluster that follows the active one."""
    active = await load.active()
    return ClusterName(CLUSTERS[(CLUSTERS.index(active) + 1) % len(CLUSTERS)])


async def missed_writes(load: Load, count: int = MISSED) -> None:
    """Wait until that many more writes are acknowledged."""
    goal = len(load.history.acknowledged()) + count
    async with asyncio.timeout(DEADLINE_S):
        while len(load.history.acknowledged()) < goal:
            await asyncio.sleep(0.02)


async def keys_in(load: Load, cluster: ClusterName, prefix: str) -> set[bytes]:
    result = await load.stores[cluster].range(prefix_range(prefix.encode()), keys_only=True)
    return {item.key for item in result.items}


async def is_behind(load: Load, cluster: ClusterName) -> bool:
    """Return whether acknowledged writes are missing there: the fault took effect."""
    present = await keys_in(load, cluster, load.prefix)
    return sum(write.key not in present for write in load.history.acknowledged()) >= MISSED // 2


async def follows_again(load: Load, cluster: ClusterName) -> None:
    """Wait until a write acknowledged from now on is there."""
    await writes_go_on(load)
    newest = load.history.acknowledged()[-1].key
    async with asyncio.timeout(DEADLINE_S):
        while await load.stores[cluster].get(newest) is None:
            await asyncio.sleep(0.02)


async def kill_replicators(rig: Rig, cluster: ClusterName) -> None:
    for process in rig.sandbox.replicators[cluster]:
        await asyncio.to_thread(process.kill)


async def position(load: Load, *, of: ClusterName, at: ClusterName) -> Revision:
    """Return how far `at` has durably applied `of`."""
    item = await load.stores[at].get(RegionalKeys.checkpoint(of))
    assert item is not None
    return Revision(decode(Checkpoint, item.value).sequence)


async def compact_at_head(load: Load, cluster: ClusterName) -> Revision:
    """Drop all history of a cluster's etcd, and return where it ends."""
    head = (await load.stores[cluster].range(prefix_range(b"/"), limit=1)).revision
    await load.stores[cluster].compact(head)
    return head


async def test_a_standby_without_replicators_catches_up_when_they_are_back(rig: Rig) -> None:
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        away = await standby(load)
        await kill_replicators(rig, away)
        await missed_writes(load)
        assert await is_behind(load, away)

        rig.revive()
        await follows_again(load, away)

        assert await judged(load) == []


async def test_a_standby_whose_position_was_compacted_away_is_copied_anew(rig: Rig) -> None:
    """The history of what it missed is gone, deletions included; only a copy can tell."""
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        active, away = ClusterName(await load.active()), await standby(load)
        prefix = f"{load.prefix}doomed-{time.time_ns():x}/"
        doomed = [f"{prefix}{number:02d}".encode() for number in range(50)]
        await load.gates[0].write(tuple(Put(key, b"to be deleted") for key in doomed))
        async with asyncio.timeout(DEADLINE_S):
            while await keys_in(load, away, prefix) != set(doomed):
                await asyncio.sleep(0.02)

        await kill_replicators(rig, away)
        await load.gates[0].write(tuple(Delete(key) for key in doomed[1:]))
        await missed_writes(load)
        behind = await position(load, of=active, at=away)
        assert behind < await compact_at_head(load, active)
        with pytest.raises(Compacted):
            await load.stores[active].range(prefix_range(b"/"), revision=behind)
        assert await keys_in(load, away, prefix) == set(doomed)
        assert await is_behind(load, away)
        rig.revive()
        await follows_again(load, away)

        assert await judged(load) == []
        for cluster in load.stores:
            assert await keys_in(load, cluster, prefix) == set(doomed[:1]), cluster


@pytest.mark.parametrize("history", [pytest.param("kept", marks=pytest.mark.chaos), "compacted"])
async def test_a_standby_that_was_away_through_a_failover_follows_the_new_writer(
    rig: Rig, history: str
) -> None:
    """Its stream of the old writer ends in a cut it never saw; that of the new one begins there."""
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        away = await standby(load)
        old = ClusterName(await load.active())
        new = next(ClusterName(name) for name in CLUSTERS if name not in {old, away})
        await kill_replicators(rig, away)
        await missed_writes(load)
        move = await load.move(new)
        assert move.phase == "succeeded", move.failover
        await missed_writes(load, MISSED // 2)
        assert await is_behind(load, away)
        if history == "compacted":
            for cluster in (old, new):
                behind = await position(load, of=cluster, at=away)
                assert behind < await compact_at_head(load, cluster)

        rig.revive()
        await follows_again(load, away)

        assert await judged(load) == []


async def test_a_standby_whose_etcd_was_killed_catches_up_when_it_is_back(rig: Rig) -> None:
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        away = await standby(load)
        etcd = rig.sandbox.etcd(away)
        etcd.kill()
        assert not etcd.is_running
        try:
            await missed_writes(load)
        finally:
            etcd.start()
        await asyncio.to_thread(etcd.wait_ready)
        await follows_again(load, away)

        assert await judged(load) == []


async def test_an_active_cluster_whose_etcd_was_killed_goes_on_in_its_epoch(rig: Rig) -> None:
    """Nothing acknowledged is lost by a crash of the etcd that acknowledged it."""
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        before = await load.api.get(f"/v1/groups/{load.group}")
        await writes_go_on(load)
        etcd = rig.sandbox.etcd(before["active"])
        etcd.kill()
        try:
            async with asyncio.timeout(DEADLINE_S):
                while load.gates[0].active is not None:
                    await asyncio.sleep(0.02)
        finally:
            etcd.start()
        await asyncio.to_thread(etcd.wait_ready)
        await writes_go_on(load)

        after = await load.api.get(f"/v1/groups/{load.group}")
        assert (after["active"], after["epoch"]) == (before["active"], before["epoch"])
        assert await judged(load) == []


async def test_a_whole_mesh_that_was_stopped_goes_on_where_it_was(rig: Rig) -> None:
    """Data, epoch and active cluster are those from before; writes are accepted again."""
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        move = await load.move(await standby(load))
        assert move.phase == "succeeded"
        await writes_go_on(load)
        assert await judged(load) == []
        group = await load.api.get(f"/v1/groups/{load.group}")
        contents = await load.states()

    await rig.sandbox.stop()
    assert rig.sandbox.running() == []
    await rig.sandbox.start()

    async with loaded(rig.sandbox, guarded=0, bare=0) as quiet:
        found = await quiet.api.get(f"/v1/groups/{quiet.group}")
        assert (found["active"], found["epoch"]) == (group["active"], group["epoch"])
        assert await quiet.states() == contents
    async with loaded(rig.sandbox, guarded=2, bare=1) as again:
        await writes_go_on(again)
        assert await judged(again) == []
