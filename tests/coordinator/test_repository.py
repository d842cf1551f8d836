"""Storing transitions: guarded, settled by reading back, never half."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import pytest

from coordinator.failover import machine
from coordinator.failover.record import Failover, FailoverKind, Phase, with_revision
from coordinator.failover.repository import (
    AuthorityMovedElsewhere,
    FailoverRepository,
    FailoverRunning,
    Loaded,
)
from coordinator.governance.audit import Act
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.errors import RevisionConflict
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority, Routing, Seal
from meshkit.names import FailoverId
from meshkit.ordinals import Epoch, Incarnation, Sequence, Token
from meshkit.store.memory import Fault
from meshkit.store.txn import Delete, Put, Txn, prefix_range
from tests.coordinator.fake_region import ORDERS, A, B, FakeMesh


@attrs.define
class Script:
    """Fates of the next writes, in order."""

    fates: list[Fault] = attrs.field(factory=list)
    meanwhile: Callable[[], Awaitable[None]] | None = None
    """What others do after the last of these writes, before we read anything."""

    async def before(self, operation: str) -> Fault:
        if operation == "commit" and self.fates:
            return self.fates.pop(0)
        if self.meanwhile is not None and not self.fates:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return Fault.NONE


@attrs.define
class Bench:
    mesh: FakeMesh
    failovers: FailoverRepository
    script: Script

    async def begun(self, name: str = "f-1") -> Loaded:
        authority = await self.mesh.store.get(Keys.authority(ORDERS))
        assert authority is not None
        record = Failover(
            id=FailoverId(name),
            group=ORDERS,
            kind=FailoverKind.PROMOTE,
            plan="planned/1",
            source=A,
            target=B,
            epoch_before=Epoch(1),
            incarnation=1,
            authority_revision=authority.mod_revision,
            source_token=decode(Authority, authority.value).token,
        )
        return await self.failovers.begin(
            machine.begin(record, now_ms=1), acts=[Act(actor="operator/alice", action="began")]
        )

    async def at(self, step: str) -> Loaded:
        """Return a failover whose step in hand is `step`."""
        loaded = await self.begun()
        while machine.step_in_hand(loaded.record).name != step:
            loaded = await self.next(loaded)
        return loaded

    async def next(self, loaded: Loaded) -> Loaded:
        after = machine.advance(loaded.record, event(loaded), now_ms=1)
        return await self.failovers.save(loaded, after, what="next")


def event(loaded: Loaded) -> machine.Event:
    record = loaded.record
    match machine.decide(record):
        case machine.Perform(step=step):
            return machine.StepDone(step=step)
        case machine.MoveAuthority():
            return machine.AuthorityMoved(token=Token(incarnation=1, revision=loaded.revision))
        case machine.AwaitAnswer(command=command, revision=revision):
            return machine.Answered(
                answer=Answer(
                    group=ORDERS,
                    cluster=command.cluster,
                    step=command.step,
                    failover=record.id,
                    token=Token(incarnation=1, revision=revision),
                    outcome=AnswerOutcome.DONE,
                    cut=Sequence(7),
                    watermark=Sequence(7),
                    incarnation=Incarnation("x"),
                )
            )
    raise AssertionError(record)


@pytest.fixture
async def bench() -> Bench:
    mesh = FakeMesh()
    await mesh.declare()
    script = Script()
    store = mesh.store.connect(faults=script)
    return Bench(mesh, FailoverRepository(store=store, clock=mesh.clock), script)


async def test_the_commands_revision_is_the_records_and_is_its_token(bench: Bench) -> None:
    """One transaction: so a successor derives the same command, with the same token."""
    loaded = await bench.at("drain")

    key = await bench.mesh.store.get(Keys.command(A, ORDERS))
    again = await bench.failovers.load(ORDERS, loaded.record.id)

    assert key is not None
    assert decode(Command, key.value).step is CommandStep.DRAIN
    assert key.mod_revision == loaded.revision
    assert loaded.record.awaiting is not None
    assert loaded.record.awaiting.revision == loaded.revision
    assert again == loaded


async def test_a_save_that_changes_nothing_due_keeps_the_commands_token(bench: Bench) -> None:
    """Held: the late answer to the outstanding command must still be recognised."""
    loaded = await bench.at("reverse")
    for _ in range(2):
        assert loaded.record.awaiting is not None
        silence = machine.TimedOut(revision=loaded.record.awaiting.revision, detail="silence")
        sent = loaded
        after = machine.advance(loaded.record, silence, now_ms=1)
        loaded = await bench.failovers.save(loaded, after, what="silence")

    command = await bench.mesh.store.get(Keys.command(A, ORDERS))

    assert loaded.record.phase is Phase.HELD
    assert loaded.record.awaiting == sent.record.awaiting
    assert command is not None
    assert command.mod_revision == sent.revision < loaded.revision


@pytest.mark.parametrize("fate", [Fault.REPLY_LOST, Fault.REQUEST_LOST])
async def test_an_unknown_outcome_is_read_back(bench: Bench, fate: Fault) -> None:
    """Applied or not: exactly one transition is stored, and we know its revision."""
    loaded = await bench.at("drain")
    bench.script.fates = [fate]

    after = await bench.next(loaded)

    stored = await bench.mesh.store.get(Keys.failover(ORDERS, loaded.record.id))
    assert stored is not None
    assert stored.mod_revision == after.revision
    assert with_revision(decode(Failover, stored.value), stored.mod_revision) == after.record
    events = await bench.mesh.store.range(
        prefix_range(Keys.failover_events(ORDERS, loaded.record.id))
    )
    assert len(events.items) == after.record.transitions


async def test_an_unknown_outcome_is_settled_even_if_others_have_gone_on(bench: Bench) -> None:
    """The record is not ours any more, but its event tells that it was stored."""
    loaded = await bench.at("drain")
    others = FailoverRepository(store=bench.mesh.store, clock=bench.mesh.clock)

    async def go_on() -> None:
        ours = await others.load(ORDERS, loaded.record.id)
        assert ours is not None
        await others.save(ours, machine.advance(ours.record, event(ours), now_ms=1), what="next")

    bench.script.fates = [Fault.REPLY_LOST]
    bench.script.meanwhile = go_on

    after = await bench.next(loaded)

    assert after.record.transitions == loaded.record.transitions + 1
    assert machine.step_in_hand(after.record).name == "converge"
    now = await others.load(ORDERS, loaded.record.id)
    assert now is not None
    assert now.record.transitions == after.record.transitions + 1


async def test_a_pivot_whose_reply_was_lost_happens_once(bench: Bench) -> None:
    """Authority, routing, record and audit in one transaction; asked again, it is found done."""
    loaded = await bench.at("pivot")
    bench.script.fates = [Fault.REPLY_LOST]

    after = await bench.next(loaded)

    authority = await bench.mesh.store.get(Keys.authority(ORDERS))
    routing = await bench.mesh.store.get(Keys.routing(ORDERS))
    command = await bench.mesh.store.get(Keys.command(B, ORDERS))
    assert authority is not None
    assert routing is not None
    assert command is not None
    assert {k.mod_revision for k in (authority, routing, command)} == {after.revision}
    record = decode(Authority, authority.value)
    assert (record.epoch, record.active) == (2, B)
    assert record.token == Token(incarnation=1, revision=loaded.revision)
    assert decode(Routing, routing.value).token == record.token
    assert decode(Command, command.value).token == record.token


async def test_a_record_that_moved_is_not_overwritten(bench: Bench) -> None:
    """Two who read the same record: the second has to read it again."""
    loaded = await bench.at("drain")
    await bench.next(loaded)
    abort = machine.AbortRequested(actor="alice")

    with pytest.raises(RevisionConflict):
        await bench.failovers.save(
            loaded, machine.advance(loaded.record, abort, now_ms=1), what="abort"
        )


async def test_a_seal_or_another_authority_stops_the_pivot(bench: Bench) -> None:
    """An emergency goes first."""
    loaded = await bench.at("pivot")
    seal = Seal(group=ORDERS, epoch=Epoch(1), failover=FailoverId("e-1"))
    await bench.mesh.store.commit(Txn(operations=(Put(Keys.seal(ORDERS), encode(seal)),)))
    with pytest.raises(AuthorityMovedElsewhere):
        await bench.next(loaded)
    authority = await bench.mesh.store.get(Keys.authority(ORDERS))
    assert authority is not None
    await bench.mesh.store.commit(
        Txn(operations=(Delete(Keys.seal(ORDERS)), Put(authority.key, authority.value)))
    )
    with pytest.raises(AuthorityMovedElsewhere):
        await bench.next(loaded)


async def test_only_one_failover_of_a_group_runs(bench: Bench) -> None:
    """The second is told which one does."""
    first = await bench.begun("f-1")

    with pytest.raises(FailoverRunning) as refused:
        await bench.begun("f-2")

    assert refused.value.failover_id == first.record.id
    assert await bench.failovers.find_all_active([ORDERS]) == {ORDERS: "f-1"}


async def test_the_audits_tip_may_move_under_a_transition(bench: Bench) -> None:
    """It is read again; the transition itself did not conflict with anything."""
    loaded = await bench.at("pivot")
    other = FailoverRepository(store=bench.mesh.store, clock=bench.mesh.clock)
    await other.append_audit(ORDERS, Act(actor="operator/bob", action="looked"))

    after = await bench.next(loaded)

    assert after.record.authority_moved
