"""Random programs over a mesh of three: whatever happens, every checkpoint tells the truth."""

from __future__ import annotations

import asyncio
import contextlib
import random

import attrs
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.errors import Conflict
from meshkit.ordinals import LeaseId
from meshkit.regional import FenceMode
from meshkit.store.memory import Fault
from meshkit.store.txn import Put, Txn
from tests.replicator.mesh import PREFIXES, A, B, C, G, H, Mesh

ALL = (A, B, C)


@attrs.define
class Unreliable:
    """Loses replies and requests now and then, always in the same places for one seed."""

    rng: random.Random
    rate: float = 0.05

    async def before(self, operation: str) -> Fault:
        if operation != "commit" or self.rng.random() >= self.rate:
            return Fault.NONE
        return self.rng.choice([Fault.UNREACHABLE, Fault.REQUEST_LOST, Fault.REPLY_LOST])


writes = st.tuples(
    st.just("write"),
    st.sampled_from([(G,), (H,), (G, H)]),
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=6),
)
actions = st.one_of(
    writes,
    writes,
    writes,
    st.tuples(st.just("lease"), st.sampled_from([G, H]), st.integers(0, 8), st.integers(1, 3)),
    st.tuples(st.just("end"), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.integers(1, 400)),
    st.tuples(st.just("move"), st.sampled_from([G, H]), st.sampled_from(ALL)),
    st.tuples(st.just("break"), st.booleans()),
    st.tuples(st.just("restart"), st.sampled_from(ALL)),
    st.tuples(st.just("undrain"), st.sampled_from([G, H]), st.booleans()),
    st.tuples(st.just("join"), st.sampled_from([G, H]), st.sampled_from(ALL)),
    st.tuples(st.just("compact"), st.sampled_from(ALL)),
    st.tuples(st.just("cut_off"), st.sampled_from(ALL), st.sampled_from(ALL)),
)


class Program:
    """Carries out the actions of one random program."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self.mesh = mesh
        self.rng = random.Random(seed)
        self.count = 0
        self.cut_off: set[tuple[str, str]] = set()
        mesh.network.is_reachable = lambda t, s: (t, s) not in self.cut_off

    async def run(self, program: list[tuple]) -> None:
        mesh = self.mesh
        await mesh.start()
        await mesh.found(G, A)
        await mesh.found(H, B)
        for action in program:
            await getattr(self, f"do_{action[0]}")(*action[1:])
        self.cut_off.clear()
        await mesh.converge()
        mesh.check_history()
        await mesh.until(mesh.knows_leases)

    async def do_write(self, groups: tuple, changes: list[tuple[int, bool]]) -> None:
        """Write guarded: each group only where it is active."""
        by_cluster: dict[str, dict[str, str | None]] = {}
        for group in groups:
            for number, is_delete in changes:
                self.count += 1
                prefix = PREFIXES[group][number % len(PREFIXES[group])]
                value = None if is_delete else f"{self.count}"
                at = self.mesh.active[group]
                by_cluster.setdefault(at, {})[f"{prefix}{number}"] = value
        for at, together in by_cluster.items():
            await self.mesh.write(at, together)
        if self.rng.random() < 0.5:
            await self.mesh.clock.advance_ms(self.rng.randint(1, 20))

    async def do_lease(self, group, number: int, lease: int) -> None:
        """Put a key under a lease where its group is active; a group has leases of its own."""
        at, prefix = self.mesh.active[group], PREFIXES[group][number % len(PREFIXES[group])]
        self.count += 1
        id_ = LeaseId(7_000 + lease if group == G else 8_000 + lease)
        store = self.mesh[at].store
        with contextlib.suppress(Conflict):
            await store.grant(ttl_s=10**6 + lease, lease_id=id_)
        put = Put(f"{prefix}{number}".encode(), f"{self.count}".encode(), id_)
        await store.commit(Txn(operations=(put,)))

    async def do_end(self, lease: int) -> None:
        """A client lets go of its lease, wherever it lives."""
        for base in (7_000, 8_000):
            for name in ALL:
                await self.mesh[name].store.revoke(LeaseId(base + lease))

    async def do_wait(self, duration_ms: int) -> None:
        await self.mesh.clock.advance_ms(duration_ms)

    async def do_move(self, group, to) -> None:
        if self.mesh.active[group] == to:
            return
        self.cut_off.clear()
        await self.mesh.until(
            lambda: (
                not self.mesh[to].is_out_of_step(group)
                and self.mesh[to].fence(group).epoch == self.mesh.epochs[group]
            )
        )
        await self.mesh.move(group, to)

    async def do_break(self, drop: bool) -> None:
        self.mesh.network.break_all(drop=drop)

    async def do_restart(self, name) -> None:
        await self.mesh.stop(name)
        await self.mesh.clock.advance_ms(self.rng.randint(0, 500))
        await self.mesh.start(name)

    async def do_undrain(self, group, is_dirty: bool) -> None:
        await self.mesh.drain(group)
        if is_dirty:
            await self.mesh.write(
                self.mesh.active[group], {f"{PREFIXES[group][0]}sneaked": f"{self.count}"}
            )
        await self.mesh.clock.advance_ms(self.rng.randint(0, 300))
        await self.mesh.undrain(group)

    async def do_join(self, group, at) -> None:
        fence = self.mesh[at].fence(group)
        assert fence is not None
        if self.mesh.active[group] != at and fence.mode is FenceMode.SUPERSEDED:
            await self.mesh.join(at, group)

    async def do_compact(self, name) -> None:
        server = self.mesh[name].store.server
        await self.mesh[name].store.compact(server.history.revision)

    async def do_cut_off(self, target, source) -> None:
        self.cut_off.add((target, source))
        self.mesh.network.break_all()


async def carry_out(program: list[tuple], seed: int, *, rate: float = 0.0) -> Mesh:
    mesh = Mesh(
        *ALL,
        seed=seed,
        faults=lambda name: Unreliable(random.Random(f"{seed}-{name}"), rate) if rate else None,
    )
    runner = Program(mesh, seed)
    try:
        await runner.run(program)
    finally:
        await mesh.close()
    return mesh


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False
    )
    yield
    structlog.reset_defaults()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(actions, min_size=1, max_size=25), st.integers(0, 10**6))
def test_every_checkpoint_of_every_program_tells_the_truth(program: list[tuple], seed: int) -> None:
    """Moves, restarts, broken links, copies, compaction, undrain: state equals the source's."""
    asyncio.run(carry_out(program, seed))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(actions, min_size=1, max_size=25), st.integers(0, 10**6))
def test_lost_requests_and_replies_change_nothing(program: list[tuple], seed: int) -> None:
    """An unknown outcome is settled by reading back, never by doing it twice or not at all."""
    asyncio.run(carry_out(program, seed, rate=0.1))
