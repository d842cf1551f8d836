"""Guarded writes go to the one cluster that may accept them, and claim nothing they cannot know."""

import asyncio
from collections.abc import AsyncIterator

import attrs
import pytest

from fencing.gate_view import Opening
from fencing.in_flight import ANSWER_GRACE_MS
from fencing.write_gate import (
    ACCESS_PATIENCE_MS,
    GateClosed,
    GuardFailed,
    WriteGate,
    Written,
    permit_key,
)
from meshkit.clock import ManualClock, settle
from meshkit.codec import encode
from meshkit.errors import InvalidInput, NotAllowed, OutcomeUnknown, TooLarge
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Routing
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch
from meshkit.regional import Beat
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.txn import Delete, ModRevisionIs, Put, Txn, ValueIs, absent
from tests.fencing.region import STEP_MS, A, B, Faulty, G, permit_of, token_of

TR_MS = 2_000
BEAT_MS = 500
KEY = b"/orders/1"


@attrs.define(kw_only=True)
class Mesh:
    """Two regions whose replicators beat, and a client with a gate."""

    clock: ManualClock
    coordination: MemoryStore
    regions: dict[ClusterName, MemoryStore]
    links: dict[ClusterName, MemoryStore] = attrs.field(factory=dict)
    faults: dict[ClusterName, Faulty] = attrs.field(factory=dict)
    beating: set[ClusterName] = attrs.field(factory=set)
    connects: list[ClusterName] = attrs.field(factory=list)
    tasks: list[asyncio.Task[None]] = attrs.field(factory=list)
    rounds: int = 0

    async def connect(self, cluster: ClusterName, endpoints: tuple[str, ...]) -> MemoryStore:
        assert endpoints
        self.connects.append(cluster)
        self.faults[cluster] = Faulty()
        self.links[cluster] = self.regions[cluster].connect(faults=self.faults[cluster])
        return self.links[cluster]

    def gate(self, **options: object) -> WriteGate:
        return WriteGate(
            G,
            routing=[self.coordination],
            connect=self.connect,
            clock=self.clock,
            **options,  # type: ignore[arg-type]
        )

    async def route(self, active: ClusterName, epoch: int, *, suffix: str = "") -> None:
        routing = Routing(
            group=G,
            epoch=Epoch(epoch),
            token=token_of(epoch),
            active=active,
            endpoints={c: (f"https://{c}{suffix}:2379",) for c in self.regions},
        )
        put = Put(CoordinationKeys.routing(G), encode(routing))
        await self.coordination.commit(Txn(operations=(put,)))

    async def permit(self, cluster: ClusterName, epoch: int) -> None:
        put = Put(permit_key(G), permit_of(epoch))
        await self.regions[cluster].commit(Txn(operations=(put,)))

    async def forbid(self, cluster: ClusterName) -> None:
        await self.regions[cluster].commit(Txn(operations=(Delete(permit_key(G)),)))

    async def beat(self, cluster: ClusterName) -> None:
        self.rounds += 1
        record = Beat(replicator="r", round=self.rounds, regional_ttl_ms=TR_MS)
        put = Put(RegionalKeys.beat, encode(record))
        await self.regions[cluster].commit(Txn(operations=(put,)))

    async def run_beats(self) -> None:
        while True:
            for cluster in sorted(self.beating):
                await self.beat(cluster)
            await self.clock.sleep_ms(BEAT_MS)

    async def finished(self, task: "asyncio.Task[Written]", *, within_ms: int = 5_000) -> Written:
        for _ in range(within_ms // STEP_MS):
            if task.done():
                break
            await self.clock.advance_ms(STEP_MS)
        return await task


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    clock = ManualClock()
    mesh = Mesh(
        clock=clock,
        coordination=MemoryStore(clock=clock),
        regions={A: MemoryStore(clock=clock), B: MemoryStore(clock=clock)},
        beating={A, B},
    )
    mesh.tasks.append(asyncio.ensure_future(mesh.run_beats()))
    await mesh.route(A, 1)
    await mesh.permit(A, 1)
    yield mesh
    for task in mesh.tasks:
        task.cancel()


@pytest.fixture
async def gate(mesh: Mesh) -> AsyncIterator[WriteGate]:
    async with mesh.gate() as gate:
        await mesh.clock.advance_ms(2 * BEAT_MS)
        yield gate


def put(value: bytes = b"v", key: bytes = KEY) -> tuple[Put]:
    return (Put(key, value),)


async def test_a_write_goes_to_the_active_cluster_under_its_permit(
    mesh: Mesh, gate: WriteGate
) -> None:
    written = await gate.write(put())

    item = await mesh.regions[A].get(KEY)
    assert item is not None
    assert (written.cluster, written.epoch, written.revision) == (A, 1, item.mod_revision)
    assert await mesh.regions[B].get(KEY) is None


async def test_writes_follow_the_permit_the_moment_it_appears(mesh: Mesh, gate: WriteGate) -> None:
    """Drain, pivot, open: the write in between waits and lands in the new epoch."""
    await mesh.forbid(A)
    waiting = asyncio.ensure_future(gate.write(put()))
    await mesh.clock.advance_ms(300)
    assert not waiting.done()

    await mesh.route(B, 2)
    await mesh.permit(B, 2)
    await settle()

    written = waiting.result()
    assert (written.cluster, written.epoch) == (B, 2)
    assert await mesh.regions[A].get(KEY) is None
    assert sorted(mesh.connects) == [B, A]


async def test_a_drain_that_the_watch_has_not_told_yet_is_found_by_the_compare(
    mesh: Mesh, gate: WriteGate
) -> None:
    mesh.links[A].disconnect_watches()
    for watch in mesh.links[A]._watches:
        watch._is_over = True
    await mesh.forbid(A)

    waiting = asyncio.ensure_future(gate.write(put()))
    await settle()
    assert not waiting.done()
    await mesh.route(B, 2)
    await mesh.permit(B, 2)

    assert (await mesh.finished(waiting)).cluster == B
    assert await mesh.regions[A].get(KEY) is None


async def test_the_gate_shuts_when_beats_stop_though_the_permit_lives_on(
    mesh: Mesh, gate: WriteGate
) -> None:
    """S1, S21: etcd gave the lease its time again; nobody's replicator is there."""
    mesh.beating.clear()
    await mesh.clock.advance_ms(TR_MS)

    assert gate.active is None
    with pytest.raises(GateClosed, match=r"us-east has a permit, but its last beat is \d+ ms old"):
        await gate.write(put(), deadline_ms=0)


async def test_after_a_restart_that_refreshed_leases_only_a_new_beat_opens(mesh: Mesh) -> None:
    """S1: A's etcd starts two hours later; its permit lives again, and a client connects first."""
    lease = (await mesh.regions[A].grant(ttl_s=2)).lease_id
    value = Put(permit_key(G), permit_of(1), lease)
    await mesh.regions[A].commit(Txn(operations=(value,)))
    mesh.beating.clear()
    for _ in range(10):
        await mesh.clock.advance_ms(1_000)
        mesh.regions[A].restart_refreshing_leases()
    async with mesh.gate() as gate:
        for _ in range(10):
            await mesh.clock.advance_ms(1_000)
            mesh.regions[A].restart_refreshing_leases()
        assert await mesh.regions[A].get(permit_key(G)) is not None
        assert gate.active is None

        mesh.beating.add(A)
        await mesh.clock.advance_ms(2 * BEAT_MS)

        assert gate.active is not None


async def test_a_beat_that_waited_in_a_buffer_opens_nothing(mesh: Mesh, gate: WriteGate) -> None:
    """The client was cut off; A beat on for a while, then its replicator died; the link heals."""
    mesh.links[A].partition()
    await mesh.clock.advance_ms(5_000)
    mesh.beating.clear()
    await mesh.clock.advance_ms(60_000)

    mesh.links[A].heal()
    for _ in range(20):
        await mesh.clock.advance_ms(STEP_MS)
        assert gate.active is None


async def test_an_answer_after_the_gate_has_closed_is_unknown(mesh: Mesh, gate: WriteGate) -> None:
    """S21: the write was in flight at a frozen etcd, and landed at its thaw."""

    async def freeze() -> Fault:
        mesh.beating.clear()
        await mesh.clock.sleep_ms(TR_MS)
        return Fault.NONE

    mesh.faults[A].plan["commit"] = [freeze]
    writing = asyncio.ensure_future(gate.write(put()))

    with pytest.raises(OutcomeUnknown, match="after the gate had closed"):
        await mesh.finished(writing)


async def test_an_unknown_outcome_is_told_and_never_tried_again(
    mesh: Mesh, gate: WriteGate
) -> None:
    mesh.faults[A].plan["commit"] = [Fault.REPLY_LOST]

    with pytest.raises(OutcomeUnknown):
        await gate.write(put())

    item = await mesh.regions[A].get(KEY)
    assert item is not None
    assert item.version == 1


async def test_a_request_that_was_certainly_not_sent_is_tried_again(
    mesh: Mesh, gate: WriteGate
) -> None:
    mesh.faults[A].plan["commit"] = [Fault.UNREACHABLE, Fault.UNREACHABLE]

    written = await mesh.finished(asyncio.ensure_future(gate.write(put())))

    assert written.cluster == A


async def test_a_write_for_a_cluster_that_died_is_not_held_by_looking_for_it(
    mesh: Mesh, gate: WriteGate
) -> None:
    """An etcd client looks for a member for seconds; what has not been sent may go elsewhere."""

    async def looked_for() -> Fault:
        await mesh.clock.sleep_ms(TR_MS)
        return Fault.UNREACHABLE

    mesh.beating.discard(A)
    mesh.faults[A].plan["commit"] = [looked_for]
    mesh.links[A].partition()
    writing = asyncio.ensure_future(gate.write(put()))
    await mesh.clock.advance_ms(STEP_MS)
    await mesh.route(B, 2)
    await mesh.permit(B, 2)
    await settle()

    assert writing.done()
    assert writing.result().cluster == B


async def test_a_write_that_hangs_in_a_cluster_that_writes_left_is_unknown_soon(
    mesh: Mesh, gate: WriteGate
) -> None:
    """It was sent: nobody knows what became of it, and a late answer could not be believed."""

    async def hang() -> Fault:
        await asyncio.Event().wait()
        return Fault.NONE

    mesh.faults[A].plan["commit"] = [hang]
    writing = asyncio.ensure_future(gate.write(put()))
    await mesh.clock.advance_ms(STEP_MS)
    mesh.beating.discard(A)
    await mesh.route(B, 2)
    await mesh.permit(B, 2)
    await mesh.clock.advance_ms(ANSWER_GRACE_MS - STEP_MS)
    was_done = writing.done()
    await mesh.clock.advance_ms(2 * STEP_MS)
    await settle()

    assert not was_done
    with pytest.raises(OutcomeUnknown, match=f"{A} did not answer and writes have moved on"):
        await asyncio.wait_for(writing, 10)
    assert (await gate.write(put())).cluster == B


async def test_an_answer_that_was_on_its_way_while_writes_moved_is_told(
    mesh: Mesh, gate: WriteGate
) -> None:
    async def tarry() -> Fault:
        await mesh.clock.sleep_ms(ANSWER_GRACE_MS // 2)
        return Fault.NONE

    mesh.faults[A].plan["commit"] = [tarry]
    writing = asyncio.ensure_future(gate.write(put()))
    await mesh.clock.advance_ms(STEP_MS)
    await mesh.route(B, 2)
    await mesh.permit(B, 2)
    await mesh.clock.advance_ms(ANSWER_GRACE_MS)

    assert (await asyncio.wait_for(writing, 10)).cluster == A
    await mesh.clock.advance_ms(ANSWER_GRACE_MS)
    assert (await gate.write(put())).cluster == B


async def not_allowed_yet() -> Fault:
    raise NotAllowed("commit: permission denied")


async def test_right_after_a_move_a_write_waits_until_etcd_allows_it(
    mesh: Mesh, gate: WriteGate
) -> None:
    """`fence_mode: rbac` gives the application its writes a little after the permit."""
    mesh.faults[B].plan["commit"] = [not_allowed_yet, not_allowed_yet]
    await mesh.forbid(A)
    await mesh.route(B, 2)
    await mesh.permit(B, 2)

    written = await mesh.finished(asyncio.ensure_future(gate.write(put())))

    assert written.cluster == B
    await mesh.clock.advance_ms(ACCESS_PATIENCE_MS)
    mesh.faults[B].plan["commit"] = [not_allowed_yet]
    with pytest.raises(NotAllowed):
        await gate.write(put())


async def test_the_callers_own_guard_is_told_apart_from_the_permit(
    mesh: Mesh, gate: WriteGate
) -> None:
    await gate.write(put(), guards=(absent(KEY),))

    with pytest.raises(GuardFailed) as caught:
        await gate.write(put(b"other"), guards=(absent(KEY), ValueIs(KEY, b"v")))

    assert caught.value.broken == (absent(KEY),)


async def test_a_guard_on_a_revision_is_bound_to_the_opening_it_was_read_in(
    mesh: Mesh, gate: WriteGate
) -> None:
    """The same revision number means another write in another cluster."""
    await gate.write(put())
    reading = await gate.read(KEY)
    assert reading.item is not None
    guard = ModRevisionIs(KEY, reading.item.mod_revision)
    with pytest.raises(InvalidInput):
        await gate.write(put(), guards=(guard,))
    await gate.write(put(b"v2"), guards=(guard,), since=reading.opening)

    await mesh.forbid(A)
    await mesh.route(B, 2)
    await mesh.permit(B, 2)

    with pytest.raises(GuardFailed, match="moved to eu-west"):
        await gate.write(put(b"v3"), guards=(guard,), since=reading.opening)


async def test_a_permit_of_an_older_epoch_is_never_used(mesh: Mesh, gate: WriteGate) -> None:
    """Routing says epoch 2; a superseded cluster still shows epoch 1."""
    await mesh.route(B, 2)
    await settle()

    assert gate.active is None
    with pytest.raises(GateClosed, match="epoch 1, which is over"):
        await gate.write(put(), deadline_ms=0)


async def test_what_etcd_refuses_as_such_is_passed_on(mesh: Mesh, gate: WriteGate) -> None:
    with pytest.raises(TooLarge):
        await gate.write(put(b"x" * 2_000_000))


async def test_waiting_ends_at_the_deadline(mesh: Mesh, gate: WriteGate) -> None:
    await mesh.forbid(A)
    began_ms = mesh.clock.now_ms()

    waiting = asyncio.ensure_future(gate.write(put(), deadline_ms=1_000))
    with pytest.raises(GateClosed, match="has no permit"):
        await mesh.finished(waiting)

    assert mesh.clock.now_ms() <= began_ms + 1_000 + STEP_MS


async def test_events_tell_every_move_and_every_pause(mesh: Mesh, gate: WriteGate) -> None:
    seen: list[ClusterName | None] = []

    async def listen() -> None:
        opening: Opening | None
        async for opening in gate.events():
            seen.append(opening.cluster if opening else None)  # noqa: PERF401 (seen meanwhile)

    mesh.tasks.append(asyncio.ensure_future(listen()))
    await settle()
    await mesh.forbid(A)
    await settle()
    await mesh.permit(B, 2)
    await settle()
    mesh.beating.clear()
    await mesh.clock.advance_ms(TR_MS)

    assert seen == [A, None, B, None]


async def test_the_regional_copy_of_the_routing_record_is_enough(mesh: Mesh) -> None:
    """A client that can see only its own region."""
    item = await mesh.coordination.get(CoordinationKeys.routing(G))
    assert item is not None
    copy = Put(RegionalKeys.routing(G), item.value)
    await mesh.regions[A].commit(Txn(operations=(copy,)))
    source = mesh.regions[A].connect()

    async with WriteGate(G, routing=[source], connect=mesh.connect, clock=mesh.clock) as gate:
        await mesh.clock.advance_ms(2 * BEAT_MS)

        assert gate.active is not None


async def test_new_endpoints_make_a_new_connection(mesh: Mesh, gate: WriteGate) -> None:
    await mesh.route(A, 1, suffix="-new")
    await mesh.clock.advance_ms(2 * BEAT_MS)

    assert sorted(mesh.connects) == [B, B, A, A]
    assert (await gate.write(put())).cluster == A


async def test_a_steady_gate_stays_open_between_beats(mesh: Mesh, gate: WriteGate) -> None:
    for _ in range(20_000 // STEP_MS):
        assert gate.active is not None
        await mesh.clock.advance_ms(STEP_MS)


async def test_it_stays_open_through_a_stall_of_the_coordination_etcd(
    mesh: Mesh, gate: WriteGate
) -> None:
    """S23: the beats pause, but for less than `Tr` less what an anchor lags."""
    mesh.beating.clear()
    for _ in range((TR_MS * 3 // 4 - BEAT_MS) // STEP_MS):
        assert gate.active is not None
        await mesh.clock.advance_ms(STEP_MS)


async def test_leaving_closes_what_connect_made(mesh: Mesh) -> None:
    async with mesh.gate() as gate:
        await mesh.clock.advance_ms(2 * BEAT_MS)

    assert gate.active is None
    assert all(link._is_closed for link in mesh.links.values())
