"""A promise is stored before it is given, and nothing that comes late makes it shorter."""

import attrs
import pytest

from meshkit.asking import (
    Answer,
    AskPromises,
    Counted,
    DeclineCode,
    Declined,
    EndPromises,
    Promised,
)
from meshkit.clock import ManualClock
from meshkit.codec import Stored, decode, encode
from meshkit.incarnations import FIRST_INCARNATION, SuspectStore, Suspension
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Revision, Token
from meshkit.peer import PeerIdentity
from meshkit.promises import Promise, PromisesRefused
from meshkit.regional import Fence, FenceMode
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.txn import Put, Txn
from replicator.promising import answer_about_promises
from replicator.recognition import Observation
from tests.fencing.region import Faulty

A, B = ClusterName("a"), ClusterName("b")
ORDERS, USERS = GroupName("orders"), GroupName("users")
ASKER = PeerIdentity(role="cluster", name=A)
ANOTHER = PeerIdentity(role="cluster", name="c")
TOKEN = Token(incarnation=1, revision=Revision(9))
QUESTION = AskPromises(
    groups={ORDERS: Epoch(3)},
    coordination=FIRST_INCARNATION,
    term=Revision(50),
    round=1,
    ttl_s=5,
)


@attrs.define
class Bench:
    clock: ManualClock
    store: MemoryStore

    async def put(self, key: bytes, record: Stored) -> None:
        await self.store.commit(Txn(operations=(Put(key, encode(record)),)))

    async def fence(self, mode: FenceMode, epoch: int, group: GroupName = ORDERS) -> None:
        fence = Fence(group=group, epoch=Epoch(epoch), mode=mode, token=TOKEN)
        await self.put(RegionalKeys.fence(group), fence)

    async def ask(
        self,
        question: AskPromises | EndPromises = QUESTION,
        *,
        over: MemoryStore | None = None,
        by: PeerIdentity = ASKER,
    ) -> Answer:
        return await answer_about_promises(over or self.store, question, by, me=B)

    async def promise(self) -> Promise | None:
        item = await self.store.get(RegionalKeys.promise(ORDERS))
        return decode(Promise, item.value) if item else None


@pytest.fixture
async def bench() -> Bench:
    clock = ManualClock()
    made = Bench(clock, MemoryStore(clock=clock))
    await made.fence(FenceMode.SUPERSEDED, 3)
    return made


async def test_it_lasts_as_long_as_was_asked_and_no_longer(bench: Bench) -> None:
    answer = await bench.ask()

    assert answer == Promised(cluster=B, groups=(ORDERS,), ttl_s=5)
    await bench.clock.advance_ms(4_900)
    assert await bench.promise() is not None
    await bench.clock.advance_ms(1_000)
    assert await bench.promise() is None


@pytest.mark.parametrize(
    ("mode", "epoch"),
    [
        (FenceMode.HELD, 3),
        (FenceMode.HELD, 2),
        (FenceMode.OPEN, 4),
        (FenceMode.OPEN, 2),
        (FenceMode.DRAINED, 3),
        (FenceMode.SUPERSEDED, 4),
    ],
)
async def test_who_is_frozen_or_further_promises_nothing(
    bench: Bench, mode: FenceMode, epoch: int
) -> None:
    await bench.fence(mode, epoch)

    answer = await bench.ask()

    assert isinstance(answer, Promised)
    assert answer.groups == ()
    assert answer.refused[ORDERS]
    assert await bench.promise() is None


@pytest.mark.parametrize(("mode", "epoch"), [(FenceMode.SUPERSEDED, 2), (FenceMode.DRAINED, 2)])
async def test_who_is_behind_may_promise(bench: Bench, mode: FenceMode, epoch: int) -> None:
    await bench.fence(mode, epoch)

    answer = await bench.ask()

    assert isinstance(answer, Promised)
    assert answer.groups == (ORDERS,)


async def test_one_group_that_is_refused_does_not_cost_the_other(bench: Bench) -> None:
    await bench.fence(FenceMode.HELD, 3, USERS)
    both = attrs.evolve(QUESTION, groups={ORDERS: Epoch(3), USERS: Epoch(3)})

    answer = await bench.ask(both)

    assert isinstance(answer, Promised)
    assert answer.groups == (ORDERS,)
    assert set(answer.refused) == {USERS}


async def test_more_groups_than_fit_in_one_transaction(bench: Bench) -> None:
    names = [GroupName(f"g{number}") for number in range(100)]
    for name in names:
        await bench.fence(FenceMode.SUPERSEDED, 3, name)

    answer = await bench.ask(attrs.evolve(QUESTION, groups=dict.fromkeys(names, Epoch(3))))

    assert isinstance(answer, Promised)
    assert set(answer.groups) == set(names)


async def test_a_command_to_open_that_waits_ends_all_promising_to_older_epochs(
    bench: Bench,
) -> None:
    """Else the old active cluster would ask again and again, and the command wait for ever."""
    waits = PromisesRefused(group=ORDERS, epoch=Epoch(4), command_token=TOKEN)
    await bench.put(RegionalKeys.promises_refused(ORDERS), waits)

    refused = await bench.ask()
    later = await bench.ask(attrs.evolve(QUESTION, groups={ORDERS: Epoch(4)}))

    assert isinstance(refused, Promised)
    assert refused.groups == ()
    assert isinstance(later, Promised)
    assert later.groups == (ORDERS,), "whoever is active in that epoch is another"


async def test_a_suspended_region_promises_nothing(bench: Bench) -> None:
    suspension = Suspension(
        cluster=B,
        store=SuspectStore.COORDINATION,
        incarnation=FIRST_INCARNATION,
        reason="went back",
        replicator="b-0",
        at_ms=1,
    )
    await bench.put(RegionalKeys.suspended, suspension)

    answer = await bench.ask()

    assert isinstance(answer, Declined)
    assert await bench.promise() is None


async def test_a_region_whose_etcd_went_back_promises_nothing(bench: Bench) -> None:
    """It may have forgotten what was opened there; who promises needs no coordination etcd."""
    suspension = Suspension(
        cluster=B,
        store=SuspectStore.REGIONAL,
        incarnation=Incarnation("i"),
        reason="went back",
        replicator="b-0",
        at_ms=1,
    )
    await bench.put(RegionalKeys.replaced, suspension)

    answer = await bench.ask()

    assert isinstance(answer, Declined)
    assert await bench.promise() is None


async def test_who_never_had_to_do_with_a_group_promises_nothing(bench: Bench) -> None:
    """An etcd that is empty may have had to do with it before."""
    answer = await bench.ask(attrs.evolve(QUESTION, groups={USERS: Epoch(3)}))

    assert isinstance(answer, Promised)
    assert answer.groups == ()
    assert "never" in answer.refused[USERS]
    assert answer.overtaken == {}


@pytest.mark.parametrize(
    ("mode", "epoch", "overtaken"),
    [
        (FenceMode.HELD, 3, {}),
        (FenceMode.OPEN, 2, {}),
        (FenceMode.SUPERSEDED, 4, {ORDERS: Epoch(4)}),
        (FenceMode.HELD, 5, {ORDERS: Epoch(5)}),
    ],
)
async def test_a_refusal_says_which_newer_epoch_there_is(
    bench: Bench, mode: FenceMode, epoch: int, overtaken: dict[GroupName, Epoch]
) -> None:
    await bench.fence(mode, epoch)

    answer = await bench.ask()

    assert isinstance(answer, Promised)
    assert answer.overtaken == overtaken


async def test_regions_that_know_different_coordination_etcds_promise_nothing(
    bench: Bench,
) -> None:
    """One of them was adopted without the other: authority may be elsewhere by now."""
    seen = Observation(
        cluster=B,
        etcd_cluster_id="1",
        revision=1,
        raft_index=1,
        incarnation=Incarnation("2-adopted"),
    )
    await bench.put(RegionalKeys.coordination_seen, seen)

    answer = await bench.ask()

    assert isinstance(answer, Promised)
    assert "adopted" in answer.refused[ORDERS]


async def test_a_freeze_between_looking_and_promising_wins(bench: Bench) -> None:
    async def freeze() -> Fault:
        await bench.fence(FenceMode.HELD, 3)
        return Fault.NONE

    faults = Faulty(plan={"grant": [freeze]})

    answer = await bench.ask(over=bench.store.connect(faults=faults))

    assert isinstance(answer, Promised)
    assert answer.groups == ()
    assert await bench.promise() is None


async def test_an_older_question_that_arrives_late_does_not_shorten_a_newer_promise(
    bench: Bench,
) -> None:
    """The replicator that handles it was stopped after its lease was granted."""

    async def stopped() -> Fault:
        await bench.clock.advance_ms(4_000)
        newer = attrs.evolve(QUESTION, round=2)
        answer = await bench.ask(newer)
        assert isinstance(answer, Promised)
        assert answer.groups == (ORDERS,)
        return Fault.NONE

    faults = Faulty(plan={"commit": [stopped]})
    await bench.ask(over=bench.store.connect(faults=faults))

    await bench.clock.advance_ms(4_500)
    assert await bench.promise() is not None


async def test_a_shorter_question_does_not_shorten_what_was_promised(bench: Bench) -> None:
    await bench.ask(attrs.evolve(QUESTION, ttl_s=9))

    await bench.ask(attrs.evolve(QUESTION, round=2, ttl_s=5))

    await bench.clock.advance_ms(8_500)
    assert await bench.promise() is not None


async def test_a_promise_is_taken_back_only_by_whoever_asked_and_not_over_a_newer_one(
    bench: Bench,
) -> None:
    await bench.ask(attrs.evolve(QUESTION, round=7))

    early = await bench.ask(EndPromises(groups=(ORDERS,), term=Revision(50), round=6))
    another = await bench.ask(EndPromises(groups=(ORDERS,), term=Revision(49), round=9))
    assert await bench.promise() is not None
    own = await bench.ask(EndPromises(groups=(ORDERS,), term=Revision(50), round=7))

    assert (early, another, own) == (Counted(count=0), Counted(count=0), Counted(count=1))
    assert await bench.promise() is None


@pytest.mark.parametrize("epoch", [2, 3])
async def test_what_somebody_relies_on_is_not_promised_away(bench: Bench, epoch: int) -> None:
    """Whoever was superseded unseen asks too, and says at its end that it relies on nothing."""
    await bench.fence(FenceMode.SUPERSEDED, 2)
    await bench.ask()
    older = attrs.evolve(QUESTION, groups={ORDERS: Epoch(epoch)}, term=Revision(70))

    refused = await bench.ask(older, by=ANOTHER)
    ended = EndPromises(groups=(ORDERS,), term=Revision(70), round=1)
    await bench.ask(ended, by=ANOTHER)

    assert isinstance(refused, Promised)
    assert refused.groups == ()
    assert "epoch 3 is not overtaken" in refused.refused[ORDERS]
    promise = await bench.promise()
    assert promise is not None
    assert promise.to == A


async def test_the_newest_epoch_is_promised_over_an_older_one(bench: Bench) -> None:
    await bench.ask()

    newer = await bench.ask(attrs.evolve(QUESTION, groups={ORDERS: Epoch(4)}), by=ANOTHER)

    assert isinstance(newer, Promised)
    assert newer.groups == (ORDERS,)
    promise = await bench.promise()
    assert promise is not None
    assert (promise.to, promise.epoch) == ("c", 4)


@pytest.mark.parametrize(("term", "number"), [(50, 7), (49, 9)])
async def test_a_late_question_and_its_end_take_no_newer_promise_back(
    bench: Bench, term: int, number: int
) -> None:
    await bench.ask(attrs.evolve(QUESTION, round=8))

    await bench.ask(attrs.evolve(QUESTION, term=Revision(term), round=number))
    ended = await bench.ask(EndPromises(groups=(ORDERS,), term=Revision(term), round=number))

    assert ended == Counted(count=0)
    promise = await bench.promise()
    assert promise is not None
    assert (promise.term, promise.round) == (50, 8)


async def test_nothing_that_only_reads_is_a_transaction(bench: Bench) -> None:
    """Whoever asks may go away at any time; etcd 3.5.1 panics where such a one is cancelled."""
    faults = Faulty(plan={"commit": [Fault.NONE, Fault.REQUEST_LOST]})
    store = bench.store.connect(faults=faults)

    answer = await bench.ask(over=store)
    refused = await bench.ask(attrs.evolve(QUESTION, groups={ORDERS: Epoch(1)}), over=store)

    assert isinstance(answer, Promised)
    assert isinstance(refused, Promised)
    assert faults.plan["commit"] == [Fault.REQUEST_LOST], "one commit: that of the promise"


async def test_only_clusters_are_promised_anything(bench: Bench) -> None:
    peer = PeerIdentity(role="coordinator", name="c1")

    answer = await answer_about_promises(bench.store, QUESTION, peer, me=B)

    assert isinstance(answer, Declined)
    assert answer.code is DeclineCode.NOT_ALLOWED
    item = await bench.store.get(RegionalKeys.promise(ORDERS))
    assert (item.mod_revision if item else ABSENT) == ABSENT


async def test_nobody_is_kept_from_opening_for_long(bench: Bench) -> None:
    answer = await bench.ask(attrs.evolve(QUESTION, ttl_s=3_600))

    assert isinstance(answer, Promised)
    assert answer.groups == ()
