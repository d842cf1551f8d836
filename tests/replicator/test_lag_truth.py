"""Lag as it is measured, against the truth that only a test knows (P6 without real time)."""

from __future__ import annotations

import asyncio
import random

import attrs
import pytest

from meshkit.clock import ManualClock
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision, Sequence
from meshkit.status import Lag, StreamState
from meshkit.store.memory import MemoryStore
from replicator.inbound import Inbound
from replicator.lag import Anchor, CommitTimes, StreamLag
from replicator.limits import Limits
from replicator.outbound import Outbound
from tests.replicator.mesh import A, B, G, Mesh, Region
from tests.replicator.records import record

SHARE, LEAST_MS = 0.05, 50
"""What is promised: accurate to so much, or so many milliseconds, whichever is larger."""


def is_close(lag: Lag, true_ms: float) -> bool:
    return lag.lag_ms is not None and abs(lag.lag_ms - true_ms) <= max(LEAST_MS, SHARE * true_ms)


# --- the machine alone --------------------------------------------------------------------------


@attrs.define
class World:
    """A source that commits, a reader that is a little late, and a target that lags."""

    rng: random.Random
    now_ms: int = 1_000
    head: int = 10
    commits: dict[int, int] = attrs.field(factory=dict)
    """When each revision that holds a record was committed."""
    read: int = 10
    applied: int = 10
    times: CommitTimes = attrs.field(factory=CommitTimes)
    lag: StreamLag = attrs.field(factory=StreamLag)

    def step(self) -> None:
        self.now_ms += self.rng.randint(1, 15)
        act = self.rng.random()
        if act < 0.4:
            self.head += 1
            if self.rng.random() < 0.6:
                self.commits[self.head] = self.now_ms
        elif act < 0.8 and self.lag.is_connected:
            through = self.rng.randint(self.read, self.head)
            records = [record(n) for n in range(self.read + 1, through + 1) if n in self.commits]
            self.lag.on_read(Sequence(through), records)
            self.read = through
        elif act < 0.9 and self.lag.is_connected:
            self.applied = self.rng.randint(self.applied, self.read)
            self.lag.on_acknowledged(Sequence(self.applied), now_ms=self.now_ms)
        elif act < 0.92 and self.lag.is_connected:
            self.lag.on_disconnected()
        elif not self.lag.is_connected:
            self.lag.on_connected(Sequence(self.applied), is_fresh=False, now_ms=self.now_ms)
            self.read = self.applied

    def anchor(self) -> None:
        sent_ms, revision = self.now_ms, self.head
        self.now_ms += self.rng.randint(0, 3)
        self.times.on_anchor(
            Anchor(sent_ms=sent_ms, received_ms=self.now_ms, revision=Revision(revision))
        )

    def true_ms(self) -> int:
        missing = [at for revision, at in self.commits.items() if revision > self.applied]
        return self.now_ms - min(missing) if missing else 0


@pytest.mark.parametrize("seed", range(30))
def test_the_true_lag_is_never_further_off_than_the_bound_that_is_said(seed: int) -> None:
    """Whatever happened: late reads, lost connections, revisions of nobody, a stuck target."""
    world = World(random.Random(seed))
    world.anchor()
    world.lag.on_connected(Sequence(10), is_fresh=False, now_ms=world.now_ms)
    anchored_ms, checked = world.now_ms, 0
    for _ in range(3_000):
        world.step()
        if world.now_ms - anchored_ms >= 50:
            world.anchor()
            anchored_ms = world.now_ms
        lag, true_ms = world.lag.evaluate(world.times, now_ms=world.now_ms), world.true_ms()
        assert lag.lag_ms is not None
        assert lag.error_bound_ms is not None
        assert abs(lag.lag_ms - true_ms) <= lag.error_bound_ms, (lag, true_ms)
        if lag.records is not None:
            unread = [n for n in world.commits if n > world.read]
            missing = [n for n in world.commits if n > world.applied]
            assert len(missing) - len(unread) <= lag.records <= len(missing)
            checked += 1
    assert checked > 100


# --- two regions, with clocks of their own ------------------------------------------------------


class OwnClock(ManualClock):
    """A region's clock: runs with the world's, but started elsewhere and is set wrong."""

    def __init__(self, world: ManualClock, *, ahead_ms: int, wall_ahead_ms: int) -> None:
        super().__init__()
        self._world = world
        self._ahead_ms = ahead_ms
        self._wall_ahead_ms = wall_ahead_ms

    def now_ms(self) -> int:
        return self._world.now_ms() + self._ahead_ms

    def wall_ms(self) -> int:
        return self._world.wall_ms() + self._wall_ahead_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        await self._world.sleep_ms(duration_ms)


class SkewedMesh(Mesh):
    """As `Mesh`, but each region has a clock of its own."""

    def __init__(self, skews: dict[ClusterName, tuple[int, int]]) -> None:
        self.skews = skews
        super().__init__(*skews, limits=Limits())

    def own_clock(self, name: ClusterName) -> OwnClock:
        ahead_ms, wall_ahead_ms = self.skews[name]
        return OwnClock(self.clock, ahead_ms=ahead_ms, wall_ahead_ms=wall_ahead_ms)

    def _region(self, name: ClusterName) -> Region:
        store = MemoryStore(clock=self.clock)
        outbound = Outbound(
            store=store.connect(),
            clock=self.own_clock(name),
            cluster=name,
            incarnation=Incarnation(f"{name}-1"),
            limits=self.limits,
        )
        return Region(name, store, outbound)

    async def start(self, *names: ClusterName) -> None:
        for name in names or tuple(self.regions):
            region = self.regions[name]
            inbound = Inbound(
                store=region.store.connect(),
                clock=self.own_clock(name),
                cluster=name,
                dialer=self.network.dialer(name),
                limits=self.limits,
                rng=random.Random(1),
            )
            inbound.set_sources({other: (f"{other}:1",) for other in self.regions})
            region.inbound = inbound
            loop = asyncio.get_running_loop()
            region.tasks = [
                loop.create_task(region.outbound.run()),
                loop.create_task(inbound.run()),
            ]
            self.network.listen(f"{name}:1", region.outbound.serve)


MINUTES = 60_000
SKEWS = {
    "equal": {A: (0, 0), B: (0, 0)},
    "target-ahead": {A: (0, 0), B: (7 * MINUTES, 7 * MINUTES)},
    "target-behind": {A: (0, 0), B: (-7 * MINUTES, -9 * MINUTES)},
    "source-ahead": {A: (90 * MINUTES, 90 * MINUTES), B: (0, 0)},
    "source-behind": {A: (-3 * MINUTES, -90 * MINUTES), B: (0, 0)},
}


async def until_zero(mesh: Mesh) -> None:
    await mesh.until(lambda: mesh[A].outbound.lag(B).lag_ms == 0)


@pytest.mark.parametrize("skew", SKEWS)
async def test_a_clock_that_is_wrong_by_minutes_changes_nothing(skew: str) -> None:
    """Streaming, idle, stuck for a minute and catching up: as true as with clocks that agree."""
    mesh = SkewedMesh(SKEWS[skew])
    await mesh.start()
    await mesh.found(G, A)
    await mesh.converge(G)
    await until_zero(mesh)

    for _ in range(20):
        await mesh.clock.advance_ms(100)
        assert is_close(mesh[A].outbound.lag(B), 0), "idle"
    await mesh.stop(B)
    assert is_close(mesh[A].outbound.lag(B), 0)
    stuck_at_ms, samples, close = mesh.clock.now_ms(), 0, 0
    for n in range(600):
        if n % 5 == 0:
            await mesh.write(A, {f"/orders/{n}": "x"})
        await mesh.clock.advance_ms(100)
        lag = mesh[A].outbound.lag(B)
        samples += 1
        close += is_close(lag, mesh.clock.now_ms() - stuck_at_ms)
        assert lag.state is StreamState.STALLED
    assert close >= 0.99 * samples, "stuck"

    await mesh.start(B)
    await mesh.until(lambda: mesh.is_converged(G))
    await until_zero(mesh)
    assert mesh[A].outbound.lag(B).state is StreamState.STREAMING
    await mesh.close()
