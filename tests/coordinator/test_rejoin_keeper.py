"""When the coordinator takes a cluster to have come back superseded: never by one report alone."""

from __future__ import annotations

import attrs
import pytest

from coordinator.failover.record import ActiveFailover
from coordinator.rejoin.keeper import REPORTS_MIN, Keeper, must_rejoin
from coordinator.rejoin.record import RejoinPhase
from coordinator.rejoin.repository import LoadedRejoin, RejoinRepository
from meshkit.clock import ManualClock
from meshkit.codec import encode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority, Group
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Token
from meshkit.status import ClusterHealth, GroupHealth
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Delete, Put, Txn, prefix_range

A, B, ORDERS = ClusterName("a"), ClusterName("b"), GroupName("orders")
ENDED = GroupHealth(
    mode="drained", epoch=Epoch(1), command_token=NO_TOKEN, permit=False, in_step=True
)
FOLLOWS = attrs.evolve(ENDED, mode="superseded", epoch=Epoch(2))


@attrs.define
class Bench:
    """A coordinator's keeper, and the reports it goes by."""

    store: MemoryStore
    clock: ManualClock
    keeper: Keeper

    async def put(self, key: bytes, value: bytes) -> None:
        await self.store.commit(Txn(operations=(Put(key, value),)))

    async def reports(self, group: GroupHealth, *, wall_error_ms: int = 0) -> None:
        health = ClusterHealth(
            cluster=A,
            replicator="a-0",
            incarnation=Incarnation("ia"),
            etcd_version="3.5.16",
            etcd_cluster_id="1",
            revision=1,
            raft_index=1,
            db_size_bytes=1,
            groups={ORDERS: group},
            at_ms=self.clock.wall_ms() + wall_error_ms,
        )
        await self.put(Keys.health(A), encode(health))

    async def moves(self, epoch: int) -> None:
        token = Token(incarnation=1, revision=Revision(epoch))
        authority = Authority(group=ORDERS, epoch=Epoch(epoch), token=token, active=B)
        await self.put(Keys.authority(ORDERS), encode(authority))

    async def rejoins(self) -> list[LoadedRejoin]:
        return await RejoinRepository(store=self.store, clock=self.clock).all_of()

    async def looks(self) -> int:
        """Look once; return how many rejoins there are."""
        await self.keeper.look()
        return len((await self.store.range(prefix_range(Keys.rejoins))).items)


@pytest.fixture
async def bench() -> Bench:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    bench = Bench(store, clock, Keeper(store=store, clock=clock))
    group = Group(name=ORDERS, prefixes=("/orders/",), members=(A, B))
    await bench.put(Keys.group(ORDERS), encode(group))
    await bench.moves(2)
    return bench


async def test_a_cluster_of_which_three_reports_say_so_has_come_back(bench: Bench) -> None:
    """The second may have been read before a failover that has just ended had it follow."""
    await bench.reports(ENDED)
    seen = [await bench.looks(), await bench.looks()]
    await bench.reports(ENDED)
    seen += [await bench.looks(), await bench.looks()]
    await bench.reports(ENDED)

    assert seen == [0, 0, 0, 0], "one report, looked at twice, is one report"
    assert await bench.looks() == 1


@pytest.mark.parametrize(
    ("mode", "epoch", "is_left"),
    [
        ("open", 1, True),
        ("drained", 1, True),
        ("held", 1, True),
        ("held", 2, False),
        ("superseded", 1, False),
    ],
)
def test_who_was_active_or_frozen_in_an_older_epoch_was_left_behind(
    mode: str, epoch: int, *, is_left: bool
) -> None:
    """S18: a copy that is frozen for a failover which is over would be so for ever."""
    known = attrs.evolve(ENDED, mode=mode, epoch=Epoch(epoch))
    token = Token(incarnation=1, revision=Revision(2))
    authority = Authority(group=ORDERS, epoch=Epoch(2), token=token, active=B)

    assert must_rejoin(known, authority) is is_left


async def test_what_is_reported_while_a_failover_runs_says_nothing(bench: Bench) -> None:
    """It is about to have its source follow."""
    running = ActiveFailover(id=FailoverId("f-1"))
    await bench.put(Keys.failover_active(ORDERS), encode(running))
    during = []
    for _ in range(REPORTS_MIN):
        await bench.reports(ENDED)
        during.append(await bench.looks())
    await bench.store.commit(Txn(operations=(Delete(Keys.failover_active(ORDERS)),)))
    after = []
    for _ in range(REPORTS_MIN):
        after.append(await bench.looks())
        await bench.reports(ENDED)

    assert (during, after) == ([0] * REPORTS_MIN, [0, 0, 1])


async def test_a_report_from_before_it_followed_begins_nothing(bench: Bench) -> None:
    await bench.reports(ENDED)
    looks = [await bench.looks()]
    await bench.reports(FOLLOWS)
    looks.append(await bench.looks())
    await bench.reports(ENDED)
    looks.append(await bench.looks())

    assert looks == [0, 0, 0]


async def test_reports_from_both_sides_of_a_failover_do_not_add_up(bench: Bench) -> None:
    await bench.reports(ENDED)
    looks = [await bench.looks()]
    await bench.moves(3)
    for _ in range(REPORTS_MIN):
        await bench.reports(ENDED)
        looks.append(await bench.looks())

    assert looks == [0, 0, 0, 1]


@pytest.mark.parametrize("wall_error_ms", [-3_600_000, 3_600_000])
async def test_a_wrong_wall_clock_keeps_nobody_from_coming_back(
    bench: Bench, wall_error_ms: int
) -> None:
    """That another report came says that the cluster is there, whenever it thinks that was."""
    for _ in range(REPORTS_MIN):
        await bench.reports(ENDED, wall_error_ms=wall_error_ms)
        began = await bench.looks()

    assert began == 1


async def rejoined(bench: Bench) -> None:
    """Let it come back, and its rejoin end."""
    for _ in range(REPORTS_MIN):
        await bench.reports(ENDED)
        await bench.looks()
    (first,) = await bench.rejoins()
    over = attrs.evolve(first.record, phase=RejoinPhase.SUCCEEDED, awaiting=None)
    await bench.put(Keys.rejoin(ORDERS, A), encode(over))


async def test_what_was_reported_before_a_rejoin_ended_begins_no_other(bench: Bench) -> None:
    """A second one has nothing to do, and would take the place of the answer of the first."""
    await rejoined(bench)
    for _ in range(REPORTS_MIN - 1):
        await bench.looks()
        await bench.reports(ENDED)
    await bench.looks()
    await bench.reports(FOLLOWS)
    await bench.looks()

    assert [e.record.phase for e in await bench.rejoins()] == [RejoinPhase.SUCCEEDED]


async def test_a_cluster_that_is_superseded_again_after_its_rejoin_rejoins_again(
    bench: Bench,
) -> None:
    await rejoined(bench)
    for _ in range(REPORTS_MIN):
        await bench.reports(ENDED)
        await bench.looks()

    assert [e.record.phase for e in await bench.rejoins()] == [RejoinPhase.ADVANCING]
