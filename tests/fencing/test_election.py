"""One leader at a time, and no writing after one's term."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fencing.election import Election
from fencing.term import GuardsBroken, Term, commit_in_term
from meshkit.clock import ManualClock, settle
from meshkit.errors import TermEnded
from meshkit.ordinals import Revision
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.txn import Delete, ModRevisionIs, Put, Txn

KEY = b"/mesh/v1/coordinators/leader"
TTL_S = 10


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> MemoryStore:
    return MemoryStore(clock=clock)


def candidate(store: MemoryStore, clock: ManualClock, name: str = "same-name") -> Election:
    return Election(store=store, key=KEY, value=name.encode(), ttl_s=TTL_S, clock=clock)


@pytest.fixture
async def campaigns() -> AsyncIterator[list[asyncio.Task[Term]]]:
    tasks: list[asyncio.Task[Term]] = []
    yield tasks
    for task in tasks:
        task.cancel()
        for result in await asyncio.gather(task, return_exceptions=True):
            if isinstance(result, Term):
                await result.abandon()


def begin(campaigns: list[asyncio.Task[Term]], election: Election) -> asyncio.Task[Term]:
    campaigns.append(asyncio.ensure_future(election.campaign()))
    return campaigns[-1]


async def test_the_first_candidate_leads_and_the_second_waits(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    """Both have the same name: only revisions may decide."""
    first = await begin(campaigns, candidate(store.connect(), clock))
    second = begin(campaigns, candidate(store.connect(), clock))
    await clock.advance_ms(5 * TTL_S * 1000)

    item = await store.get(KEY)
    assert item is not None
    assert first.is_held()
    assert first.created_at == item.create_revision
    assert not second.done()


async def test_a_follower_takes_over_at_once_when_the_leader_resigns(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    first = await begin(campaigns, candidate(store.connect(), clock))
    second = begin(campaigns, candidate(store.connect(), clock))
    await settle()
    before_ms = clock.now_ms()

    await first.resign()
    term = await second

    assert clock.now_ms() == before_ms
    assert term.is_held()
    assert term.created_at > first.created_at
    assert await first.lost() == "resigned"


async def test_a_deposed_leader_cannot_commit(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    """It was stopped past its TTL (SIGSTOP, a long collection) and still believes in itself."""
    link = store.connect()
    first = await begin(campaigns, candidate(link, clock))
    second = begin(campaigns, candidate(store.connect(), clock))
    await settle()
    link.partition()
    await clock.advance_ms(TTL_S * 1000 + 1)
    await second
    link.heal()

    with pytest.raises(TermEnded):
        await commit_in_term(link, first, Txn(operations=(Put(b"/k", b"late"),)))

    assert await store.get(b"/k") is None
    assert not first.is_held()


async def test_a_cut_off_leader_stops_before_another_can_lead(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    link = store.connect()
    first = await begin(campaigns, candidate(link, clock))
    second = begin(campaigns, candidate(store.connect(), clock))
    await clock.advance_ms(2_500)
    link.partition()
    lost = asyncio.ensure_future(first.lost())

    while not lost.done():
        assert not second.done()
        await clock.advance_ms(50)

    assert not second.done()
    await clock.advance_ms(TTL_S * 1000)
    assert second.done()


async def test_lost_renewal_replies_do_not_end_a_term_that_can_still_be_renewed(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    faults = Lose({"keep_alive": [Fault.REPLY_LOST, Fault.UNREACHABLE] * 3})
    term = await begin(campaigns, candidate(store.connect(faults=faults), clock))

    await clock.advance_ms(3 * TTL_S * 1000)

    assert term.is_held()
    assert faults.plan["keep_alive"] == []


async def test_deleting_the_leader_key_ends_the_term(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    term = await begin(campaigns, candidate(store.connect(), clock))
    await settle()

    await store.commit(Txn(operations=(Delete(KEY),)))

    assert await term.lost() == "the leader key was deleted"


async def test_a_leader_whose_first_reply_was_lost_finds_out_that_it_leads(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    faults = Lose({"commit": [Fault.REPLY_LOST]})

    term = await begin(campaigns, candidate(store.connect(faults=faults), clock))

    await commit_in_term(store, term, Txn(operations=(Put(b"/k", b"v"),)))
    assert term.is_held()


async def test_a_candidate_whose_every_put_is_lost_pauses_between_attempts(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    """The key is never there, so there is nothing to watch: without a pause it would spin."""
    faults = Lose({"commit": [Fault.REQUEST_LOST] * 1000})
    campaign = begin(campaigns, candidate(store.connect(faults=faults), clock))
    await settle(1000)
    lost_at_once = 1000 - len(faults.plan["commit"])

    await clock.advance_ms(1_000)

    assert lost_at_once == 1
    assert 1000 - len(faults.plan["commit"]) <= 1 + 1_000 // 200
    faults.plan.clear()
    await clock.advance_ms(200)
    assert (await campaign).is_held()


async def test_a_conflict_of_the_caller_is_told_apart_from_the_end_of_the_term(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    term = await begin(campaigns, candidate(store.connect(), clock))
    guard = ModRevisionIs(b"/k", Revision(99))

    with pytest.raises(GuardsBroken) as caught:
        await commit_in_term(store, term, Txn(guards=(guard,), operations=(Put(b"/k", b"v"),)))

    assert caught.value.broken == (guard,)
    assert term.is_held()


async def test_observers_see_each_leader_and_each_gap(
    store: MemoryStore, clock: ManualClock, campaigns: list[asyncio.Task[Term]]
) -> None:
    seen: list[bytes | None] = []

    async def observe() -> None:
        async for leader in candidate(store.connect(), clock).observe():
            seen.append(leader.value if leader else None)  # noqa: PERF401 (seen while it goes on)

    watching = asyncio.ensure_future(observe())
    await settle()
    first = await begin(campaigns, candidate(store.connect(), clock, "one"))
    await settle()
    await first.resign()
    await begin(campaigns, candidate(store.connect(), clock, "two"))
    await settle()

    assert seen == [None, b"one", None, b"two"]
    watching.cancel()


async def test_leaving_the_block_resigns(store: MemoryStore, clock: ManualClock) -> None:
    async with candidate(store, clock).lead() as term:
        assert term.is_held()

    assert await store.get(KEY) is None


class Lose:
    """Faults by operation, in order; then none."""

    def __init__(self, plan: dict[str, list[Fault]]) -> None:
        self.plan = plan

    async def before(self, operation: str) -> Fault:
        planned = self.plan.get(operation)
        return planned.pop(0) if planned else Fault.NONE
