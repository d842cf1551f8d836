"""The hooks by which tests and simulation make the etcd in memory misbehave."""

from __future__ import annotations

import asyncio

import attrs
import pytest

from meshkit.clock import ManualClock, settle
from meshkit.errors import Compacted, LeaseLost, NoSpace, OutcomeUnknown, Unreachable
from meshkit.ordinals import Revision
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.port import Progress, Store
from meshkit.store.txn import WHOLE_STORE, Delete, Put, Txn


def put(key: bytes, value: bytes = b"x", lease: int = 0) -> Txn:
    return Txn(operations=(Put(key, value, lease),))


@attrs.define
class Script:
    """Faults in the order in which they happen; then none."""

    faults: list[Fault]
    calls: list[str] = attrs.field(factory=list)

    async def before(self, operation: str) -> Fault:
        self.calls.append(operation)
        return self.faults.pop(0) if self.faults else Fault.NONE


def make_store(*faults: Fault) -> MemoryStore:
    return MemoryStore(clock=ManualClock(), faults=Script(list(faults)))


async def test_it_is_a_store() -> None:
    store: Store = make_store()

    assert (await store.range(WHOLE_STORE)).revision == 1


@pytest.mark.parametrize(
    ("fault", "error", "applied"),
    [
        (Fault.UNREACHABLE, Unreachable, False),
        (Fault.REQUEST_LOST, OutcomeUnknown, False),
        (Fault.REPLY_LOST, OutcomeUnknown, True),
    ],
)
async def test_a_fault_decides_whether_a_write_happened(
    fault: Fault, error: type[Exception], applied: bool
) -> None:
    store = make_store(fault)

    with pytest.raises(error):
        await store.commit(put(b"a"))

    assert (await store.get(b"a") is not None) is applied


async def test_a_fault_makes_a_read_unreachable() -> None:
    for fault in (Fault.UNREACHABLE, Fault.REQUEST_LOST, Fault.REPLY_LOST):
        with pytest.raises(Unreachable):
            await make_store(fault).get(b"a")


async def test_a_lost_reply_hides_a_refusal_too() -> None:
    with pytest.raises(OutcomeUnknown):
        await make_store(Fault.REPLY_LOST).commit(put(b"a", lease=7))


async def test_clients_of_one_server_fail_apart() -> None:
    one = make_store()
    two = one.connect()
    one.partition()

    await two.commit(put(b"a"))
    with pytest.raises(Unreachable):
        await one.get(b"a")
    one.heal()

    assert await one.get(b"a") is not None


async def test_a_watch_is_silent_under_a_partition_and_then_catches_up() -> None:
    store = make_store()
    other = store.connect()

    async with store.watch(WHOLE_STORE, start=Revision(1)) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await settle()
        store.partition()
        await other.commit(put(b"a"))
        await settle()
        assert not waiting.done()
        store.heal()
        item = await waiting

    assert item.revision == 2


async def test_a_synced_watch_outlives_compaction_and_a_broken_one_does_not() -> None:
    store = make_store()

    async with store.watch(WHOLE_STORE, start=Revision(1)) as watch:
        for _ in range(3):
            await store.commit(put(b"a"))
        await store.compact(Revision(4))
        first = await anext(watch)
        store.disconnect_watches()
        with pytest.raises(Compacted):
            await anext(watch)

    assert first.revision == 2


async def test_a_broken_watch_raises_once_and_is_over() -> None:
    store = make_store()

    async with store.watch(WHOLE_STORE, start=Revision(1)) as watch:
        store.break_watches()
        with pytest.raises(Unreachable):
            await anext(watch)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_progress_moves_the_resume_point() -> None:
    store = make_store()

    async with store.watch((b"b", b""), start=Revision(1)) as watch:
        await store.commit(put(b"a"))
        store.announce_progress()
        progress = await anext(watch)
        await store.compact(Revision(2))
        await store.commit(put(b"b"))
        store.disconnect_watches()
        item = await anext(watch)

    assert progress == Progress(revision=Revision(2))
    assert item.revision == 3


async def test_a_waiting_watcher_learns_of_an_expiry_as_the_clock_advances() -> None:
    store = make_store()
    clock = store.clock
    assert isinstance(clock, ManualClock)
    short = await store.grant(ttl_s=3)
    long = await store.grant(ttl_s=10)
    await store.commit(put(b"short", lease=short.lease_id))
    await store.commit(put(b"long", lease=long.lease_id))

    async with store.watch(WHOLE_STORE, start=Revision(4)) as watch:
        await clock.advance_ms(2_999)
        assert await store.get(b"short") is not None
        await store.keep_alive(short.lease_id)
        await clock.advance_ms(20_000)
        gone = [(await anext(watch)).changes[0].key for _ in range(2)]

    assert gone == [b"short", b"long"]
    with pytest.raises(LeaseLost):
        await store.keep_alive(long.lease_id)
    await store.close()


async def test_a_new_leader_gives_every_lease_its_full_ttl() -> None:
    """etcd forgets how far leases had run when it elects a leader: they last longer, not less."""
    store = make_store()
    clock = store.clock
    assert isinstance(clock, ManualClock)
    lease = await store.grant(ttl_s=5)
    await clock.advance_ms(4_000)

    store.restart_refreshing_leases()

    assert await store.time_to_live(lease.lease_id) == 5
    await store.close()


async def test_a_full_store_refuses_puts_and_takes_deletes() -> None:
    store = make_store()
    await store.commit(put(b"a"))
    store.server.has_space = False

    with pytest.raises(NoSpace):
        await store.commit(put(b"b"))
    with pytest.raises(NoSpace):
        await store.grant(ttl_s=5)
    await store.commit(Txn(operations=(Delete(b"a"),)))

    assert await store.get(b"a") is None
    assert (await store.status()).alarms == ("NOSPACE",)


async def test_closing_one_client_leaves_the_others_their_expiries() -> None:
    store = make_store()
    other = store.connect()
    clock = store.clock
    assert isinstance(clock, ManualClock)
    lease = await store.grant(ttl_s=5)
    await store.commit(put(b"a", lease=lease.lease_id))

    async with other.watch(WHOLE_STORE, start=Revision(3)) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await settle()
        await store.close()
        await clock.advance_ms(6_000)
        item = await asyncio.wait_for(waiting, 1)

    assert item.changes[0].is_delete
    await other.close()
