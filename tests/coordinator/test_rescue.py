"""What an emergency finds out: which head of a source counts, and how surely it is fenced."""

from __future__ import annotations

import attrs
import pytest

from coordinator.failover import machine
from coordinator.failover.loss import FenceStatus
from coordinator.failover.record import Emergency, Failover, FailoverKind, with_revision
from coordinator.failover.repository import FailoverRepository
from coordinator.governance.preflight import PROMISES, Situation
from coordinator.governance.rescue_checks import rescue_preview
from coordinator.lookout import Lookout
from coordinator.rescue import Rescue
from meshkit.clock import ManualClock
from meshkit.codec import Stored, encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Holder
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.promises import Pact
from meshkit.status import ClusterHealth, GroupHealth, LogHead
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from tests.coordinator.test_preflight import good

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


# --- groups whose writes may go on by promise ---------------------------------------------------


def fencing(*, no_fence_wait: bool = False, waivers: tuple[str, ...] = ()) -> Failover:
    """Return an emergency whose seal is put and whose source is silent."""
    record = Failover(
        id=FailoverId("f-1"),
        group=ORDERS,
        kind=FailoverKind.EMERGENCY,
        plan="emergency/1",
        source=A,
        target=B,
        epoch_before=Epoch(1),
        incarnation=1,
        authority_revision=Revision(5),
        source_token=Token(incarnation=1, revision=Revision(5)),
        waivers=waivers,
        emergency=Emergency(no_fence_wait=no_fence_wait),
    )
    record = machine.begin(record, now_ms=0)
    for step in ("assess", "approve"):
        record = machine.advance(record, machine.StepDone(step=step), now_ms=0)
    return with_revision(record, Revision(10))


async def pact(bench: Bench, *members: ClusterName) -> None:
    record = Pact(group=ORDERS, epoch=Epoch(1), cluster=A, members=members)
    await bench.put(Keys.pact(ORDERS), record)


async def test_where_there_is_a_pact_a_lease_that_ran_out_proves_nothing(bench: Bench) -> None:
    """Never `lease-expired`: confirmed by the source, or unknown."""
    record = fencing()
    without = await bench.rescue.fence_ended(record)
    await pact(bench, A, B)

    ended = await bench.rescue.fence_ended(record)

    assert isinstance(without, machine.FenceEnded)
    assert without.fence is FenceStatus.LEASE_EXPIRED
    assert isinstance(ended, machine.FenceEnded)
    assert ended.fence is FenceStatus.UNKNOWN
    assert ended.permit_ended_ms is None
    after = machine.advance(record, ended, now_ms=0)
    assert machine.step_in_hand(after).name == "take_in"


async def test_a_source_that_lives_is_waited_for_as_ever(bench: Bench) -> None:
    await pact(bench, A, B)
    await bench.put(Keys.holder(ORDERS), Holder(group=ORDERS, epoch=Epoch(1), cluster=A))

    assert await bench.rescue.fence_ended(fencing()) is None
    ended = await bench.rescue.fence_ended(fencing(no_fence_wait=True))
    assert isinstance(ended, machine.FenceEnded)
    assert ended.fence is FenceStatus.UNKNOWN


async def test_who_is_not_asked_for_promises_is_not_promoted(bench: Bench) -> None:
    """The pact was made after the checks, by a cluster that did not know of the new member."""
    await pact(bench, A, ClusterName("c"))

    ended = await bench.rescue.fence_ended(fencing())
    waived = await bench.rescue.fence_ended(fencing(waivers=(PROMISES,)))

    assert isinstance(ended, machine.TimedOut)
    after = machine.advance(fencing(), ended, now_ms=0)
    assert after.undoing
    assert after.problem is not None
    assert "may go on without the promise of b" in after.problem.happened
    assert isinstance(waived, machine.FenceEnded)


def test_the_check_says_whom_the_active_cluster_asks() -> None:
    known = attrs.evolve(good(), pact=None)
    asked = attrs.evolve(
        known,
        pact=Pact(
            group=known.group.name,
            epoch=Epoch(1),
            cluster=known.source.name,
            members=(known.source.name, known.target.name),
        ),
    )
    others = attrs.evolve(
        asked, pact=attrs.evolve(asked.pact, members=(known.source.name, ClusterName("else")))
    )

    def failed(situation: Situation, *waivers: str) -> list[str]:
        return [check.name for check in rescue_preview(situation, waivers=waivers).failed]

    assert PROMISES not in failed(known)
    assert PROMISES not in failed(asked)
    assert PROMISES in failed(others)
    assert PROMISES not in failed(others, PROMISES)
