"""Claims about transactions that share a request: each keeps its own guards and its own outcome."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from meshkit.clock import ManualClock, settle
from meshkit.errors import LeaseLost, OutcomeUnknown, Unreachable
from meshkit.ordinals import LeaseId, Revision
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.shared import SHARED_MAX, SharedCommits
from meshkit.store.txn import (
    Attempt,
    Committed,
    Delete,
    Exists,
    Get,
    ModRevisionIs,
    Outcome,
    Put,
    Rejected,
    Txn,
    absent,
)


@attrs.define
class Held:
    """A store that is slow: requests wait until the test lets them through."""

    inner: MemoryStore
    requests: list[Txn] = attrs.field(factory=list)
    gate: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        self.requests.append(txn)
        await self.gate.wait()
        return await self.inner.commit(txn, timeout_ms=timeout_ms)


@asynccontextmanager
async def sharing(store: Held, *, index: bytes = b"") -> AsyncIterator[SharedCommits]:
    shared = SharedCommits(store=store, index=index)
    running = asyncio.create_task(shared.run())
    try:
        yield shared
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def store() -> Held:
    return Held(MemoryStore(clock=ManualClock()))


def put(name: str, *, guards: tuple[ModRevisionIs, ...] = ()) -> Txn:
    return Txn(guards=guards, operations=(Put(name.encode(), b"v"),))


async def waiting(shared: SharedCommits, *txns: Txn) -> list["asyncio.Task[Outcome]"]:
    tasks = [asyncio.create_task(shared.commit(txn)) for txn in txns]
    await settle()
    return tasks


async def test_what_waits_alone_is_sent_as_it_is(store: Held) -> None:
    store.gate.set()
    async with sharing(store) as shared:
        outcome = await shared.commit(put("a"))

    assert isinstance(outcome, Committed)
    assert store.requests == [put("a")]


async def test_what_waits_together_has_one_revision_and_each_its_own_outcome(store: Held) -> None:
    async with sharing(store) as shared:
        await waiting(shared, put("first"))
        refused = Txn(guards=(Exists(b"nowhere"),), operations=(Put(b"b", b"v"),))
        read = Txn(operations=(Get(b"first"),))
        tasks = await waiting(shared, put("a", guards=(absent(b"a"),)), refused, read)
        store.gate.set()
        a, b, first = await asyncio.gather(*tasks)

    assert len(store.requests) == 2
    assert isinstance(a, Committed)
    assert isinstance(b, Rejected)
    assert b.broken == refused.guards
    assert isinstance(first, Committed)
    assert first.reads[0][0].value == b"v"
    assert await store.inner.get(b"b") is None


@pytest.mark.parametrize(
    "other",
    [
        put("a"),
        Txn(operations=(Delete(b"a"),)),
        Txn(guards=(ModRevisionIs(b"a", Revision(0)),), operations=(Put(b"b", b"v"),)),
        Txn(operations=(Delete(b"a", b"z"),)),
    ],
    ids=["puts", "deletes", "compares", "deletes a range"],
)
async def test_what_touches_the_same_key_goes_one_after_the_other(store: Held, other: Txn) -> None:
    async with sharing(store) as shared:
        await waiting(shared, put("first"))
        tasks = await waiting(shared, put("a"), other, put("c"))
        store.gate.set()
        await asyncio.gather(*tasks)

    assert len(store.requests) == 3
    assert store.requests[1] == Txn(operations=(Attempt(put("a")), Attempt(put("c"))))
    assert store.requests[2] == other


async def test_a_request_is_bounded(store: Held) -> None:
    async with sharing(store) as shared:
        await waiting(shared, put("first"))
        tasks = await waiting(shared, *(put(f"k{n:03d}") for n in range(SHARED_MAX + 5)))
        store.gate.set()
        await asyncio.gather(*tasks)

    assert [len(request.operations) for request in store.requests] == [1, SHARED_MAX, 5]


async def test_one_that_etcd_would_not_look_at_does_not_hold_the_others(store: Held) -> None:
    lost = Txn(operations=(Put(b"b", b"v", LeaseId(77)),))
    async with sharing(store) as shared:
        await waiting(shared, put("first"))
        tasks = await waiting(shared, put("a"), lost, put("c"))
        store.gate.set()
        a, b, c = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(a, Committed)
    assert isinstance(b, LeaseLost)
    assert isinstance(c, Committed)


@pytest.mark.parametrize("fault", [Fault.REPLY_LOST, Fault.UNREACHABLE])
async def test_all_of_a_request_share_its_fate(fault: Fault) -> None:
    class Faults:
        calls = 0

        async def before(self, _operation: str) -> Fault:
            self.calls += 1
            return fault if self.calls == 2 else Fault.NONE

    memory = MemoryStore(clock=ManualClock())
    held = Held(memory.connect(faults=Faults()))
    async with sharing(held) as shared:
        await waiting(shared, put("first"))
        tasks = await waiting(shared, put("a"), put("b"))
        held.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    expected = OutcomeUnknown if fault is Fault.REPLY_LOST else Unreachable
    assert [type(outcome) for outcome in outcomes] == [expected, expected]
    there = [await memory.get(key) is not None for key in (b"a", b"b")]
    assert there == [fault is Fault.REPLY_LOST] * 2


async def test_the_index_is_put_once_and_only_under_the_guards_that_all_have(store: Held) -> None:
    leader = Exists(b"leader")
    txns = [
        Txn(guards=(leader, absent(k)), operations=(Put(k, b"v"), Put(b"index", k)))
        for k in (b"a", b"b")
    ]
    async with sharing(store, index=b"index") as shared:
        await waiting(shared, put("first"))
        tasks = await waiting(shared, *txns)
        store.gate.set()
        refused = await asyncio.gather(*tasks)
        await store.inner.commit(put("leader"))
        store.gate.clear()
        await waiting(shared, put("second"))
        tasks = await waiting(shared, *txns)
        store.gate.set()
        applied = await asyncio.gather(*tasks)

    assert [isinstance(outcome, Rejected) for outcome in refused] == [True, True]
    assert all(leader in outcome.broken for outcome in refused if isinstance(outcome, Rejected))
    assert [isinstance(outcome, Committed) for outcome in applied] == [True, True]
    assert applied[0].revision == applied[1].revision
    index = await store.inner.get(b"index")
    assert index is not None
    assert (index.version, index.mod_revision) == (1, applied[0].revision)


async def test_stopping_leaves_nobody_waiting(store: Held) -> None:
    async with sharing(store) as shared:
        under_way = await waiting(shared, put("a"))
        queued = await waiting(shared, put("b"))

    assert [type(t.exception()) for t in (*under_way, *queued)] == [OutcomeUnknown, Unreachable]


async def test_the_index_is_under_no_guard_of_those_that_leave_it_alone(store: Held) -> None:
    """A read beside them must not take their guards away: a deposed leader writes nothing."""
    leader = Exists(b"leader")
    moving = Txn(guards=(leader,), operations=(Put(b"a", b"v"), Put(b"index", b"1")))
    async with sharing(store, index=b"index") as shared:
        await waiting(shared, put("first"))
        tasks = await waiting(shared, Txn(operations=(Get(b"a"),)), moving, put("b"))
        store.gate.set()
        read, moved, other = await asyncio.gather(*tasks)

    assert len(store.requests) == 2
    assert [type(o) for o in (read, moved, other)] == [Committed, Rejected, Committed]
    assert await store.inner.get(b"index") is None


async def test_nobody_waits_for_what_has_stopped(store: Held) -> None:
    async with sharing(store) as shared:
        await settle()

    with pytest.raises(Unreachable):
        await shared.commit(put("late"))


async def test_what_compares_the_index_does_not_share_with_what_moves_it(store: Held) -> None:
    """etcd compares before it applies anything: it would not see the index move."""
    moving = Txn(operations=(Put(b"a", b"v"), Put(b"index", b"1")))
    comparing = Txn(guards=(absent(b"index"),), operations=(Put(b"b", b"v"),))
    async with sharing(store, index=b"index") as shared:
        await waiting(shared, put("first"))
        tasks = await waiting(shared, moving, comparing, put("c"))
        store.gate.set()
        outcomes = await asyncio.gather(*tasks)

    assert [type(outcome) for outcome in outcomes] == [Committed, Rejected, Committed]
    assert store.requests[-1] == comparing
