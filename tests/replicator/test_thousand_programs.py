"""A thousand random programs: the standby is the source at every checkpoint, whatever breaks.

Puts, deletes, range deletes, transactions of thousands of keys and leases that run out, with
crashes, reconnects and lost replies drawn at random (issue 3, claim 2).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator

import attrs
import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from meshkit.codec import decode
from meshkit.keys import RegionalKeys
from meshkit.ordinals import Revision, Sequence
from meshkit.regional import Checkpoint, PartsCheckpoint
from meshkit.store.memory import Fault
from meshkit.store.txn import Committed, Delete, Operation, Put, Txn
from replicator.applier import Applier
from replicator.batch import MainBatch
from replicator.limits import Limits
from replicator.source import Tail, load_segments
from replicator.transaction import nested
from tests.replicator.mesh import A, B, G, H, Mesh

PROGRAMS = int(os.environ.get("MESH_PROGRAMS", "1000"))
LIMITS = Limits(
    frame_bytes_max=8_000,
    frame_writes_max=150,
    window_bytes_max=40_000,
    side_window_bytes_max=20_000,
    record_whole_bytes_max=24_000,
    batch_writes_max=120,
    batch_writes_min=4,
    batch_bytes_max=6_000,
    batch_bytes_min=300,
    page_keys_max=200,
    page_bytes_max=8_000,
    redial_ms_max=200,
    checkpoint_idle_ms=500,
)
TARGET_REQUEST_BYTES = 16_000
"""The target takes less in one request than the source: large transactions come in parts."""
MAIN, PARTS = RegionalKeys.checkpoint(A), RegionalKeys.parts(A)
SCOPES = (b"/orders/", b"/users/")

few = st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=5)
actions = st.one_of(
    st.tuples(st.just("write"), few),
    st.tuples(st.just("write"), few),
    st.tuples(st.just("write_many"), st.sampled_from([40, 300, 900, 2_500]), st.integers(0, 2)),
    st.tuples(st.just("delete_range"), st.integers(0, 30), st.integers(0, 30)),
    st.tuples(st.just("lease"), st.integers(1, 3), st.lists(st.integers(0, 30), max_size=4)),
    st.tuples(st.just("wait"), st.integers(1, 1_500)),
    st.tuples(st.just("break"), st.booleans()),
    st.tuples(st.just("restart"), st.sampled_from([A, B, B])),
)
programs = st.lists(actions, min_size=2, max_size=7)


@attrs.define
class Unreliable:
    """Loses requests and replies of the target now and then, the same ones for one seed."""

    rng: random.Random

    async def before(self, operation: str) -> Fault:
        if operation != "commit" or self.rng.random() >= 0.04:
            return Fault.NONE
        return self.rng.choice([Fault.UNREACHABLE, Fault.REQUEST_LOST, Fault.REPLY_LOST])


class Program:
    """Carries out one program at the source, and what happens to those who replicate it."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self.mesh = mesh
        self.rng = random.Random(seed)
        self.count = 0

    async def run(self, program: list[tuple]) -> None:
        mesh = self.mesh
        await mesh.start()
        await mesh.found(G, A)
        await mesh.found(H, A)
        await mesh.converge()
        mesh[B].store.server.request_bytes_max = TARGET_REQUEST_BYTES
        for action in program:
            await getattr(self, f"do_{action[0]}")(*action[1:])
            if self.rng.random() < 0.5:
                await mesh.clock.advance_ms(self.rng.randint(1, 15))
        # What was put and deleted again looks the same before any of it has arrived.
        await mesh.until(self.has_arrived, within_ms=60_000)
        await mesh.converge()

    def has_arrived(self) -> bool:
        stored, head = self.mesh[B].checkpoint(A), self.mesh[A].store.server.history.revision
        return stored is not None and stored.sequence >= head

    def key(self, number: int) -> bytes:
        return SCOPES[number % 3 == 0] + b"%05d" % number

    async def commit(self, operations: list[Operation]) -> None:
        outcome = await self.mesh[A].store.commit(Txn(operations=nested(operations)))
        assert isinstance(outcome, Committed)

    async def do_write(self, changes: list[tuple[int, bool]]) -> None:
        operations: dict[bytes, Operation] = {}
        for number, is_delete in changes:
            self.count += 1
            key = self.key(number)
            operations[key] = Delete(key) if is_delete else Put(key, b"%d" % self.count)
        await self.commit(list(operations.values()))

    async def do_write_many(self, size: int, kind: int) -> None:
        """Put many keys, or delete what was put so, in one transaction."""
        self.count += 1
        keys = [self.key(1_000 + n) for n in range(size)]
        if kind == 0:
            await self.commit([Delete(key) for key in keys])
        else:
            await self.commit([Put(key, b"%d" % self.count) for key in keys])

    async def do_delete_range(self, low: int, high: int) -> None:
        """Delete a range of both groups, or everything: one operation each at the source."""
        ends = [(scope + b"%05d" % low, scope + b"%05d" % high) for scope in SCOPES]
        if low >= high:
            ends = [(scope, scope[:-1] + b"0") for scope in SCOPES]
        await self.commit([Delete(start, end=end) for start, end in ends])

    async def do_lease(self, ttl_s: int, numbers: list[int]) -> None:
        lease = await self.mesh[A].store.grant(ttl_s=ttl_s)
        keys = {self.key(number) for number in numbers}
        puts = [Put(key, b"leased", lease=lease.lease_id) for key in sorted(keys)]
        if puts:
            await self.commit(list(puts))

    async def do_wait(self, duration_ms: int) -> None:
        await self.mesh.clock.advance_ms(duration_ms)

    async def do_break(self, drop: bool) -> None:
        await self.mesh.clock.advance_ms(self.rng.randint(0, 30))
        self.mesh.network.break_all(drop=drop)

    async def do_restart(self, name) -> None:
        await self.mesh.clock.advance_ms(self.rng.randint(0, 30))
        await self.mesh.stop(name)
        await self.mesh.start(name)


def changed_in_scope(changes) -> list[bytes]:
    return [c.key for c in changes.changes if c.key.startswith(SCOPES)]


def check_atomic(mesh: Mesh) -> int:
    """Every source transaction is in one revision of the target, or in parts that say so.

    And of a transaction in parts every key is changed once, and none beside them. Returns how many
    came in parts.
    """
    source = {i.revision: set(changed_in_scope(i)) for i in mesh[A].store.server.history._log}
    own = RegionalKeys.checkpoints_of(A)
    open_parts: dict[Sequence, list[bytes]] = {}
    whole = 0
    for item in mesh[B].store.server.history._log:
        keys = {change.key: change for change in item.changes}
        touched = changed_in_scope(item)
        mark = keys.get(PARTS)
        moved = keys.get(MAIN)
        if mark is not None and not mark.is_delete:
            parts = decode(PartsCheckpoint, mark.item.value)
            assert moved is None, "the checkpoint waits for the last part"
            open_parts.setdefault(parts.sequence, []).extend(touched)
            continue
        if moved is not None:
            sequence = decode(Checkpoint, moved.item.value).sequence
            if sequence in open_parts:
                done = open_parts.pop(sequence) + touched
                assert sorted(done) == sorted(source[Revision(sequence)])
                whole += 1
            continue
        is_copy = any(k.startswith(own) and k != PARTS for k in keys)
        assert is_copy or not touched, f"{touched} changed beside any checkpoint"
    assert not open_parts
    return whole


async def check_replay(mesh: Mesh, after: Sequence) -> None:
    """Send everything after `after` again: it changes nothing, not even a revision."""
    target = mesh[B].store
    before = target.server.history.revision
    applier = Applier(target.connect(), me=B, source=A, limits=LIMITS)
    own = await applier.begin()
    assert own is not None
    head = own.sequence
    tail = Tail(
        mesh[A].store.connect(),
        clock=mesh.clock,
        after=after,
        segments=await load_segments(mesh[A].store, Revision(after)),
        takes_pieces=True,
        limits=LIMITS,
    )
    reading = asyncio.ensure_future(tail.run())
    try:
        while tail.position < head:
            batch = await tail.next_batch()
            work = MainBatch(after=batch.after, through=batch.through, records=batch.records)
            if batch.through <= head:
                assert await applier.apply_main(work) is None
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert target.server.history.revision == before


async def carry_out(program: list[tuple], seed: int, *, is_faulty: bool) -> int:
    """Run one program and check everything; return how many transactions came in parts."""
    rng = random.Random(seed)
    mesh = Mesh(
        A,
        B,
        limits=LIMITS,
        seed=seed,
        faults=lambda name: Unreliable(random.Random(seed)) if is_faulty and name == B else None,
    )
    try:
        await Program(mesh, seed).run(program)
        await mesh.stop()
        assert mesh.check_history() > 0
        in_parts = check_atomic(mesh)
        stored = mesh[B].checkpoint(A)
        assert stored is not None
        for position in sorted({2, rng.randint(2, stored.sequence), stored.sequence}):
            await check_replay(mesh, Sequence(position))
    finally:
        await mesh.close()
    return in_parts


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False
    )
    yield
    structlog.reset_defaults()


TALLY: list[int] = []


@settings(
    max_examples=PROGRAMS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
    # A program that fails is printed as it is: making it small would take longer than the rest.
    phases=(Phase.explicit, Phase.generate),
)
@given(programs, st.integers(0, 10**6), st.booleans())
def run_programs(program: list[tuple], seed: int, is_faulty: bool) -> None:
    TALLY.append(asyncio.run(carry_out(program, seed, is_faulty=is_faulty)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_programs_end_as_the_source_did() -> None:
    """State at every checkpoint, every transaction whole or in marked parts, replay without effect.

    A run that never met a transaction in parts would prove too little.
    """
    TALLY.clear()

    run_programs()

    assert len(TALLY) >= PROGRAMS
    assert sum(TALLY) > PROGRAMS // 20
