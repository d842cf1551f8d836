"""Which head of a source an emergency goes by: none that was made while the copy was frozen."""

from __future__ import annotations

import attrs
import pytest

from coordinator.failover.repository import FailoverRepository
from coordinator.lookout import Lookout
from coordinator.rescue import Rescue
from meshkit.clock import ManualClock
from meshkit.codec import Stored, encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Sequence
from meshkit.status import ClusterHealth, GroupHealth, LogHead
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn

A, B, ORDERS = ClusterName("a"), ClusterName("b"), GroupName("orders")
FOLLOWS = GroupHealth(
    mode="superseded", epoch=Epoch(1), command_token=NO_TOKEN, permit=False, in_step=True
)


@attrs.define
class Bench:
    store: MemoryStore
    rescue: Rescue

    async def put(self, key: bytes, record: Stored) -> None:
        await self.store.commit(Txn(operations=(Put(key, encode(record)),)))

    async def source_is_at(self, sequence: int) -> None:
        head = LogHead(
            cluster=A, incarnation=Incarnation("ia"), sequence=Sequence(sequence), at_ms=1
        )
        await self.put(Keys.head(A), head)

    async def target_reports(self, group: GroupHealth) -> None:
        health = ClusterHealth(
            cluster=B,
            replicator="b-0",
            incarnation=Incarnation("ib"),
            etcd_version="3.5.16",
            etcd_cluster_id="1",
            revision=1,
            raft_index=1,
            db_size_bytes=1,
            groups={ORDERS: group},
            at_ms=1,
        )
        await self.put(Keys.health(B), health)

    async def is_asked_to(self, step: CommandStep) -> None:
        command = Command(
            group=ORDERS,
            cluster=B,
            step=step,
            incarnation=1,
            epoch=Epoch(1),
            failover=FailoverId("f-1"),
            source=A,
            target=B,
        )
        await self.put(Keys.command(B, ORDERS), command)

    async def head(self) -> int | None:
        found = await self.rescue.head_before_freeze(A, B, ORDERS)
        return found.sequence if found else None


@pytest.fixture
def bench() -> Bench:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    rescue = Rescue(
        store=store,
        failovers=FailoverRepository(store=store, clock=clock),
        lookout=Lookout(store=store, clock=clock),
        clock=clock,
    )
    return Bench(store, rescue)


async def test_what_a_source_says_while_the_copy_is_frozen_is_not_said_of_the_copy(
    bench: Bench,
) -> None:
    """Its stream goes on without the group: all of the log is acknowledged, and lag is none."""
    await bench.source_is_at(14)
    await bench.target_reports(FOLLOWS)
    await bench.is_asked_to(CommandStep.FREEZE)
    await bench.source_is_at(27)

    assert await bench.head() == 14


async def test_of_a_copy_that_was_frozen_or_out_of_step_before_no_head_speaks(
    bench: Bench,
) -> None:
    await bench.source_is_at(14)
    await bench.target_reports(attrs.evolve(FOLLOWS, in_step=False))
    await bench.is_asked_to(CommandStep.FREEZE)

    assert await bench.head() is None


async def test_without_its_history_no_head_is_known(bench: Bench) -> None:
    await bench.source_is_at(14)
    await bench.target_reports(FOLLOWS)
    await bench.is_asked_to(CommandStep.FREEZE)
    await bench.source_is_at(27)
    await bench.store.compact(bench.store.server.history.revision)

    assert await bench.head() is None
