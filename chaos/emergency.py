"""An emergency on real processes: a region is killed under load, and left dead."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from chaos.history import History
from chaos.planned import FINAL_PHASES, QUIET_S, Load, loaded
from cli.sandbox.process import MeshProcess
from cli.sandbox.sandbox import Sandbox
from meshkit.errors import MeshError
from meshkit.names import ClusterName
from meshkit.store.txn import prefix_range

WRITE_INTERVAL_S = 0.002
DEADLINE_S = 60


@attrs.frozen(kw_only=True)
class Rescue:
    """What came of one emergency, as clients and the harness saw it."""

    failover: Mapping[str, Any]
    history: History
    content: Mapping[bytes, bytes]
    """Of the group, at the cluster that was promoted."""
    source: ClusterName
    died_ns: int
    asked_ns: int
    served_ns: int
    """When the first write was acknowledged by the promoted cluster."""

    @property
    def from_death_ms(self) -> float:
        """From the death of the region to the first acknowledged write."""
        return (self.served_ns - self.died_ns) / 1e6

    @property
    def from_command_ms(self) -> float:
        """From the command to the first acknowledged write."""
        return (self.served_ns - self.asked_ns) / 1e6

    def offences(self) -> list[str]:
        """Return what contradicts the loss as it was stated: promise 3, nothing if it is kept."""
        loss = self.failover["emergency"]["loss"]
        certain = loss["target"]["certain"] or 0
        mine = [w for w in self.history.acknowledged() if w.cluster == self.source]
        missing = [w for w in mine if w.key not in self.content]
        found = [
            f"{w.key.decode()} was lost from before the stated point"
            for w in missing
            if w.revision is not None and w.revision <= certain
        ]
        if missing and loss["seconds"] is not None:
            span_ns = max(w.return_ns for w in mine) - min(w.return_ns for w in missing)
            if span_ns / 1e9 > loss["seconds"]:
                found.append(f"writes of {span_ns / 1e9:.1f} s were lost, {loss['seconds']} stated")
        if missing and loss["target"]["is_none"]:
            found.append(f"{len(missing)} writes were lost, and none was stated")
        return found


def kill_region(sandbox: Sandbox, cluster: str) -> int:
    """Kill a region's replicators and its etcd; return when."""
    died_ns = time.monotonic_ns()
    for process in sandbox.replicators[cluster]:
        process.kill()
    sandbox.etcd(cluster).kill()
    return died_ns


async def rescue(
    sandbox: Sandbox,
    *,
    wait_s: float = 0.0,
    no_fence_wait: bool = False,
    by_policy: bool = False,
    with_leader: bool = False,
) -> Rescue:
    """Kill the active region under writes, promote another after `wait_s`, and watch clients.

    With `by_policy` nobody asks for it; `with_leader` kills the leading coordinator too.
    """
    async with loaded(sandbox, guarded=2, bare=0, interval_s=WRITE_INTERVAL_S) as load:
        await _until(lambda: len(load.history.acknowledged()) >= 200)
        source = ClusterName(await load.active())
        target = next(ClusterName(c) for c in sandbox.spec.clusters if c != source)
        leader = await _leader(load) if with_leader else None
        died_ns = kill_region(sandbox, source)
        if leader is not None:
            leader.kill()
        await asyncio.sleep(wait_s)
        asked_ns = time.monotonic_ns()
        if by_policy:
            failover = await _begun_by_policy(load)
            target = ClusterName(failover["target"])
        else:
            failover = await _promote(load, target, no_fence_wait=no_fence_wait)
        await _until(lambda: any(w.cluster == target for w in load.history.acknowledged()))
        await load.stop_writers()
        result = await load.stores[target].range(prefix_range(load.prefix.encode()))
        served = min(w.return_ns for w in load.history.acknowledged() if w.cluster == target)
    return Rescue(
        failover=failover,
        history=load.history,
        content={item.key: item.value for item in result.items},
        source=source,
        died_ns=died_ns,
        asked_ns=asked_ns,
        served_ns=served,
    )


async def _promote(load: Load, target: ClusterName, *, no_fence_wait: bool) -> Mapping[str, Any]:
    body = {
        "target": target,
        "kind": "emergency",
        "reason": "the region was killed",
        "accept_loss": {"unknown": True},
        "no_fence_wait": no_fence_wait,
        "request_id": f"rescue-{time.monotonic_ns()}",
    }
    answer = await load.api.post(f"/v1/groups/{load.group}/failovers", body)
    failover: Mapping[str, Any] = answer.body["failover"]
    ended = await load.settled(str(failover["id"]))
    assert ended["phase"] in FINAL_PHASES, ended
    return ended


async def _begun_by_policy(load: Load) -> Mapping[str, Any]:
    """Return the failover that begins by itself, once it has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(MeshError):
            shown = await load.api.get(f"/v1/groups/{load.group}")
            last = shown["automatic"]["last"]
            if last is not None:
                ended = await load.settled(str(last["failover"]))
                assert ended["phase"] in FINAL_PHASES, ended
                return ended
        await asyncio.sleep(QUIET_S)
    raise AssertionError(f"nothing begins by itself: {shown['automatic']}")


async def _leader(load: Load) -> MeshProcess:
    """Return the coordinator that leads."""
    name = str((await load.api.get("/readyz"))["leader"])
    return next(p for p in load.sandbox.coordinators if p.name == name)


async def _until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "it does not come true"
        await asyncio.sleep(QUIET_S)
