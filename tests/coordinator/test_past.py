"""What is kept of failovers that have ended, and how little is read of it."""

from __future__ import annotations

import attrs
import pytest

from coordinator.failover import machine, past
from coordinator.failover.past import PastFailovers
from coordinator.failover.record import Phase
from coordinator.failover.repository import Loaded
from meshkit.errors import TermEnded
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import last_part
from meshkit.ordinals import Revision
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import CreateRevisionIs, KeyValue, Txn, prefix_range
from tests.coordinator.fake_region import ORDERS, FakeMesh, background
from tests.coordinator.test_driver import asked, begin, leading, until
from tests.coordinator.test_repository import Bench, bench

__all__ = ["bench"]


async def undone(bench: Bench, name: str) -> Loaded:
    begun = await bench.begun(name)
    abort = machine.AbortRequested(actor="operator/alice")
    return await bench.failovers.save(
        begun, machine.advance(begun.record, abort, now_ms=1), what="abort"
    )


async def succeeded(bench: Bench, name: str = "f-1") -> Loaded:
    loaded = await bench.begun(name)
    while not loaded.record.phase.is_final:
        loaded = await bench.next(loaded)
    assert loaded.record.phase is Phase.SUCCEEDED
    return loaded


async def kept(store: MemoryStore) -> set[str]:
    """Return the ids of which anything is left, be it record or event."""
    records = await store.range(prefix_range(Keys.failover_records(ORDERS)))
    every = prefix_range(Keys.failovers)
    events = [item for item in (await store.range(every)).items if b"/events/" in item.key]
    ids = {last_part(item.key) for item in records.items}
    assert {item.key.split(b"/")[-2].decode() for item in events} == ids
    return ids


async def test_the_oldest_are_forgotten_with_their_events(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never one that runs, nor the last that succeeded: the cool-down counts from it."""
    monkeypatch.setattr(past, "ENDED_MAX", 3)
    store = bench.mesh.store
    await succeeded(bench, "f-0")
    for n in range(1, 7):
        await undone(bench, f"f-{n}")
    await bench.begun("f-running")

    forgotten = await PastFailovers(store=store).forget_oldest(ORDERS)
    again = await PastFailovers(store=store).forget_oldest(ORDERS)

    assert (forgotten, again) == (3, 0)
    assert await kept(store) == {"f-0", "f-4", "f-5", "f-6", "f-running"}


async def test_many_are_forgotten_in_transactions_of_bounded_size(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade: etcd takes 128 operations in one."""
    monkeypatch.setattr(past, "ENDED_MAX", 1)
    for n in range(2 * past.FORGOTTEN_AT_ONCE + 5):
        await undone(bench, f"f-{n:02d}")

    forgotten = await PastFailovers(store=bench.mesh.store).forget_oldest(ORDERS)

    assert forgotten == 2 * past.FORGOTTEN_AT_ONCE + 4
    assert await kept(bench.mesh.store) == {"f-44"}


@attrs.frozen
class Deposed:
    """A term that is over, and does not know it."""

    created_at: Revision = Revision(1)  # noqa: RUF009  a NewType

    def guard(self) -> CreateRevisionIs:
        return CreateRevisionIs(Keys.coordinator_leader, self.created_at)

    def end(self, reason: str) -> None:
        """It has ended already."""

    async def lost(self) -> str:
        return "deposed"

    async def resign(self) -> None:
        """Nobody resigns here."""


async def test_a_deposed_leader_forgets_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "ENDED_MAX", 1)
    for n in range(3):
        await undone(bench, f"f-{n}")

    with pytest.raises(TermEnded):
        await PastFailovers(store=bench.mesh.store, term=Deposed()).forget_oldest(ORDERS)

    assert await kept(bench.mesh.store) == {"f-0", "f-1", "f-2"}


async def test_the_leader_forgets_when_a_failover_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "ENDED_MAX", 1)
    mesh = FakeMesh()
    async with mesh.running(), background(leading(mesh)):
        first = await begin(mesh)
        await until(mesh, first, Phase.SUCCEEDED)
        await mesh.report()
        second = await begin(mesh, asked("us-east", request_id="r-2"))
        await until(mesh, second, Phase.SUCCEEDED)
        for _ in range(20):
            await mesh.clock.advance_ms(1)

        assert await kept(mesh.store) == {second}


@attrs.define(eq=False)
class Reading:
    """A store that counts the values it gave out."""

    store: MemoryStore
    values: int = 0

    async def get(self, key: bytes) -> KeyValue | None:
        self.values += 1
        return await self.store.get(key)

    async def commit(self, txn: Txn, **more):
        outcome = await self.store.commit(txn, **more)
        self.values += sum(bool(item.value) for items in outcome.reads for item in items)
        return outcome

    async def range(self, key_range, **more):
        found = await self.store.range(key_range, **more)
        self.values += sum(bool(item.value) for item in found.items)
        return found


async def test_a_preview_reads_only_what_it_needs(bench: Bench) -> None:
    """However many there are: the last that succeeded, and the one that began last."""
    await undone(bench, "f-0")
    await succeeded(bench, "f-1")
    for n in range(2, 30):
        await undone(bench, f"f-{n}")
    reading = Reading(bench.mesh.store)
    failovers = PastFailovers(store=reading)

    latest = await failovers.latest(ORDERS)
    assert reading.values == 1
    last = await failovers.last_succeeded(ORDERS)
    newest_first = [each.record.id for each in await failovers.all_of(ORDERS)]

    assert latest is not None
    assert latest.record.id == "f-29"
    assert last is not None
    assert last.record.id == "f-1"
    assert newest_first == [f"f-{n}" for n in reversed(range(30))]


async def test_usually_the_last_one_succeeded(bench: Bench) -> None:
    """Then one batch is enough."""
    for n in range(25):
        await undone(bench, f"f-{n}")
    await succeeded(bench, "f-25")
    reading = Reading(bench.mesh.store)

    last = await PastFailovers(store=reading).last_succeeded(ORDERS)

    assert last is not None
    assert last.record.id == "f-25"
    assert reading.values == past.READ_AT_ONCE


async def test_a_group_that_never_failed_over_has_no_past(bench: Bench) -> None:
    failovers = PastFailovers(store=bench.mesh.store)

    assert await failovers.latest(ORDERS) is None
    assert await failovers.last_succeeded(ORDERS) is None
    assert await failovers.forget_oldest(ORDERS) == 0
