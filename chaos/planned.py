"""Planned failovers under load on a whole sandbox of real processes, and what they are judged by.

`python -m chaos.planned --moves 50` runs it by itself and prints the pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Sequence

import attrs

from chaos.checkers import (
    SegmentSpan,
    State,
    Verdict,
    check_epochs_rise,
    check_identical,
    check_inside_segments,
    check_no_ghosts,
    check_nothing_lost,
    check_one_writer,
    check_traffic,
)
from chaos.history import Gap, History, longest_gap
from chaos.traffic import CompareWriter, GuardedWriter
from cli.api import MeshApi
from cli.sandbox.sandbox import Sandbox
from fencing.write_gate import WriteGate
from meshkit.errors import Conflict, MeshError, Refused, Unreachable
from meshkit.keys import RegionalKeys, parts_below
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch
from meshkit.store.etcd import EtcdStore
from meshkit.store.txn import prefix_range

FINAL_PHASES = ("succeeded", "rolled_back", "refused")
QUIET_S = 0.05


@attrs.frozen(kw_only=True)
class Move:
    """One failover as the harness saw it."""

    failover: dict[str, object]
    began_ns: int
    ended_ns: int

    @property
    def phase(self) -> str:
        """How it ended."""
        return str(self.failover["phase"])


@attrs.define(kw_only=True)
class Load:
    """A sandbox with writers on one group, and their history."""

    sandbox: Sandbox
    api: MeshApi
    group: GroupName
    prefix: str
    stores: dict[ClusterName, EtcdStore]
    gates: list[WriteGate]
    history: History = attrs.field(factory=History)
    moves: list[Move] = attrs.field(factory=list)
    writers: list[asyncio.Task[None]] = attrs.field(factory=list)

    async def stop_writers(self) -> None:
        """Stop the writers; a write under way is recorded as unknown."""
        await stop(self.writers)

    async def ready(self, *, timeout_s: float = 60) -> None:
        """Wait until nothing stands in the way of a failover to any member.

        Raises:
            AssertionError: something still does; it says what.
        """
        deadline = time.monotonic() + timeout_s
        problems: dict[str, object] = {"API": "did not answer"}
        while problems:
            assert time.monotonic() < deadline, f"not ready after {timeout_s:g} s: {problems}"
            with contextlib.suppress(MeshError):
                view = await self.api.get(f"/v1/groups/{self.group}")
                problems = {
                    member["cluster"]: promoted["blockers"] if promoted else "not known"
                    for member in view["clusters"]
                    if not member["active"]
                    and ((promoted := member["if_promoted"]) is None or promoted["blockers"])
                }
            if problems:
                await asyncio.sleep(QUIET_S)

    async def begin(self, target: str, **more: object) -> dict[str, object]:
        """Begin a planned failover to `target`, asking until the API takes it.

        Raises:
            Refused: it will not be done (a check failed).
        """
        body = {"target": target, "request_id": f"to-{target}-{time.monotonic_ns()}", **more}
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = await self.api.post(f"/v1/groups/{self.group}/failovers", body)
            except (Unreachable, Conflict, Refused):
                # A leader that has just died: lag and health are unknown until its successor
                # reports. Asking again under the same id is safe.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(QUIET_S)
                continue
            failover: dict[str, object] = answer.body["failover"]
            return failover

    async def settled(self, failover_id: str, *, timeout_s: float = 90) -> dict[str, object]:
        """Return the failover once it ended, or as it stands when time is up."""
        deadline = time.monotonic() + timeout_s
        latest: dict[str, object] = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(MeshError):
                latest = await self.api.get(f"/v1/failovers/{failover_id}")
                if latest["phase"] in FINAL_PHASES:
                    break
            await asyncio.sleep(QUIET_S)
        return latest

    async def move(self, target: str) -> Move:
        """Promote `target` and wait for the end."""
        began_ns = time.monotonic_ns()
        failover = await self.begin(target)
        ended = await self.settled(str(failover["id"]))
        move = Move(failover=ended, began_ns=began_ns, ended_ns=time.monotonic_ns())
        self.moves.append(move)
        return move

    async def active(self) -> str:
        """Return the active cluster, as the API knows it."""
        view = await self.api.get(f"/v1/groups/{self.group}")
        return str(view["active"])

    def pauses(self) -> list[Gap]:
        """Return, for each successful move, the longest gap between acknowledged writes."""
        acknowledged = self.history.acknowledged()
        gaps = [
            longest_gap(acknowledged, from_ns=move.began_ns, to_ns=move.ended_ns)
            for move in self.moves
            if move.phase == "succeeded"
        ]
        return [gap for gap in gaps if gap is not None]

    async def states(self) -> dict[ClusterName, State]:
        """Return every cluster's content of the group, once all are equal or time is up."""
        deadline = time.monotonic() + 30
        while True:
            states: dict[ClusterName, State] = {}
            for cluster, store in self.stores.items():
                result = await store.range(prefix_range(self.prefix.encode()))
                states[cluster] = {item.key: item.value for item in result.items}
            if check_identical(states).is_valid or time.monotonic() > deadline:
                return states
            await asyncio.sleep(QUIET_S)

    async def spans(self) -> list[SegmentSpan]:
        """Return where each epoch was open, from the keys in the regional etcds."""
        spans = []
        for cluster, store in self.stores.items():
            result = await store.range(prefix_range(RegionalKeys.segments))
            revisions = {}
            for item in result.items:
                parts = parts_below(RegionalKeys.segments, item.key)
                if parts is not None and parts[0] == self.group:
                    revisions[int(parts[1]), parts[2]] = item.mod_revision
            spans += [
                SegmentSpan(
                    cluster=cluster,
                    epoch=Epoch(epoch),
                    opened=opened,
                    cut=revisions.get((epoch, "cut")),
                )
                for (epoch, what), opened in revisions.items()
                if what == "opened"
            ]
        return spans

    async def verdicts(self, *, acknowledged_min: int) -> list[Verdict]:
        """Judge the run; call after the writers have stopped."""
        states = await self.states()
        spans = await self.spans()
        return [
            check_traffic(self.history, acknowledged_min=acknowledged_min),
            check_nothing_lost(self.history, states),
            check_no_ghosts(self.history, states),
            check_identical(states),
            check_one_writer(self.history),
            check_inside_segments(self.history, spans),
            check_epochs_rise(spans),
        ]


@contextlib.asynccontextmanager
async def loaded(
    sandbox: Sandbox,
    *,
    group: str = "orders",
    prefix: str = "/orders/",
    guarded: int = 3,
    bare: int = 1,
    interval_s: float = 0.01,
) -> AsyncIterator[Load]:
    """Run writers against a started sandbox; they stop when the block ends."""
    clusters = [ClusterName(name) for name in sandbox.spec.clusters]
    stores = {cluster: sandbox.store(cluster) for cluster in clusters}
    gates = [
        WriteGate(GroupName(group), routing=tuple(stores.values()), members=stores)
        for _ in range(guarded)
    ]
    async with contextlib.AsyncExitStack() as stack, sandbox.api() as api:
        for store in stores.values():
            stack.push_async_callback(store.close)
        for gate in gates:
            await stack.enter_async_context(gate)
        load = Load(
            sandbox=sandbox,
            api=api,
            group=GroupName(group),
            prefix=prefix,
            stores=stores,
            gates=gates,
        )
        run = f"{time.time_ns():x}"
        writers = [
            GuardedWriter(
                name=f"sdk-{run}-{number}",
                gate=gate,
                prefix=prefix,
                history=load.history,
                interval_s=interval_s,
            ).run()
            for number, gate in enumerate(gates)
        ]
        writers += [
            CompareWriter(
                name=f"bare-{run}-{number}",
                group=GroupName(group),
                stores=stores,
                prefix=prefix,
                history=load.history,
            ).run()
            for number in range(bare)
        ]
        tasks = [asyncio.create_task(writer) for writer in writers]
        load.writers = tasks
        try:
            yield load
        finally:
            await stop(tasks)


async def stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Stop writers; a write under way is recorded as unknown."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def pause_line(gaps: Sequence[Gap]) -> str:
    """Return the pauses as one line for people."""
    if not gaps:
        return "no pause was measured"
    ms = sorted(gap.ms for gap in gaps)
    p99 = ms[min(len(ms) - 1, int(len(ms) * 0.99))]
    return (
        f"write pause over {len(ms)} failovers: p50 {statistics.median(ms):.0f} ms,"
        f" p99 {p99:.0f} ms, max {ms[-1]:.0f} ms"
    )
