"""The world of `rejoin/1`: one cluster that came back superseded, and all that may happen to it.

The machine is the real one (`coordinator/rejoin/machine.py`), and so are the region's decisions
(`fencing/rejoin.py`, `fencing.fence.supersede`): their transactions are carried out on a handful of
keys. What a stream does with a group that is ahead is `replicator/draft.py`'s rule, in one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import attrs

from coordinator.rejoin import machine
from coordinator.rejoin.record import APPROVE, Rejoin, RejoinPhase, with_revision
from fencing import fence as fences
from fencing import rejoin
from fencing.fence_view import FenceView
from fencing.rejoin import OwnCheckpoint
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep, Standing
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import (
    ABSENT,
    Epoch,
    Incarnation,
    LeaseId,
    Revision,
    Sequence,
    Token,
)
from meshkit.regional import Fence, FenceMode, GroupCheckpoint, JoinPhase
from meshkit.store.txn import Delete, Put, Txn, absent
from tests.model.explorer import Broken, Move

GROUP, A, B, C = GroupName("g"), ClusterName("a"), ClusterName("b"), ClusterName("c")
LEADER = absent(b"/nobody")
LINEAGE = Lineage(
    parent=A, parent_incarnation=Incarnation("ia"), parent_epoch=Epoch(1), sequence=Sequence(5)
)


def token_of(revision: int) -> Token:
    return Token(incarnation=1, revision=Revision(revision))


SAID = (CommandStep.FENCE, CommandStep.FIND, CommandStep.QUARANTINE)
FIRST_FENCE = Fence(group=GROUP, epoch=Epoch(1), mode=FenceMode.OPEN, token=token_of(1))


class Left(NamedTuple):
    """What may still go wrong."""

    writes: int = 1
    """While the old permit lives."""
    deaths: int = 1
    """A replicator dies with a command in hand, and its successor begins it again."""
    late: int = 1
    """A deposed replicator has a transaction under way that arrives late."""
    moves: int = 1
    """Authority goes on to the next cluster."""
    overtakes: int = 1
    """A failover asks the cluster something."""
    silences: int = 1
    compactions: int = 1


class Region(NamedTuple):
    """The cluster that came back. `tail`: changes its successor does not stand on."""

    fence: Fence = FIRST_FENCE
    revision: int = 1
    """Of the fence."""
    permit: bool = True
    join: GroupCheckpoint | None = None
    tail: int = 0
    """Changes that are there and nowhere else."""
    aside: int = 0
    """So many of them are in quarantine."""
    given_up: bool = False
    """Something of it cannot be known any more."""


class World(NamedTuple):
    """One state. Records are kept as bytes, without what cannot matter: times, history, texts."""

    record: bytes
    saved: int
    """The revision at which the record was stored."""
    slot: tuple[int, bytes]
    """Newest command to the cluster."""
    answer: bytes
    region: Region
    epoch: int
    """Of the authority."""
    clock: int
    """The next revision."""
    left: Left
    agreed: bool = False
    """Whether a person ever said that what cannot be known is given up."""
    late: tuple[int, Txn] | None = None
    """A transaction decided upon, with the revision of the fence it compares."""


@attrs.frozen(kw_only=True)
class Rules:
    """What holds in this world; planted bugs change it."""

    ahead_stays: bool = True
    """A copy that is ahead stays so when a newer epoch begins."""
    answers_are_matched: bool = True
    looks_again: bool = True
    """A region that is told that nothing diverged looks before it follows."""
    fences_compare: bool = True
    saves_compare: bool = True


def active_in(epoch: int) -> ClusterName:
    return B if epoch == 2 else C


def view_of(region: Region) -> FenceView:
    is_cut = region.fence.mode is not FenceMode.OPEN
    return FenceView(
        group=GROUP,
        fence=region.fence,
        fence_revision=Revision(region.revision),
        index_count=0,
        permit_revision=Revision(1) if region.permit else ABSENT,
        permit_lease=LeaseId(0),
        cut=Sequence(9) if is_cut else None,
        opened=Sequence(1),
    )


def plain(record: Rejoin) -> bytes:
    """Return a record without what cannot matter."""
    return encode(
        attrs.evolve(
            record,
            history=(),
            problem=None,
            began_ms=0,
            ended_ms=None,
            since_ms=0,
            transitions=0,
            reason="",
        )
    )


def record_of(world: World) -> Rejoin:
    return with_revision(decode(Rejoin, world.record), Revision(world.saved))


@attrs.frozen
class RejoinWorld:
    """The moves, and what must hold in every state."""

    rules: Rules = attrs.field(factory=Rules)

    def first(self, left: Left) -> World:
        empty = World(b"", 0, (0, b""), b"", Region(), 2, 2, left)
        return self._begun(empty)

    def _begun(self, world: World) -> World:
        record = Rejoin(
            id="r-1",
            group=GROUP,
            cluster=A,
            active=active_in(world.epoch),
            epoch=Epoch(world.epoch),
            incarnation=1,
        )
        return self._saved(world, machine.begin(record, now_ms=0))

    def _saved(self, world: World, record: Rejoin) -> World:
        command = machine.command_to_put(record)
        slot = world.slot if command is None else (world.clock, encode(command))
        stored = attrs.evolve(record, awaiting=record.awaiting)
        return world._replace(
            record=plain(with_revision(stored, Revision(world.clock))),
            saved=world.clock,
            slot=slot,
            clock=world.clock + 1,
        )

    # --- moves ---------------------------------------------------------------------------------

    def moves(self, world: World) -> Iterator[Move[World]]:
        yield from self._coordinator(world)
        yield from self._region(world)
        yield from self._streams(world)
        yield from self._faults(world)

    def _coordinator(self, world: World) -> Iterator[Move[World]]:
        record = record_of(world)
        if record.phase.is_final:
            if record.epoch != world.epoch or record.phase is RejoinPhase.ABANDONED:
                yield Move("the rejoin begins anew", self._begun(world), True)
            return
        if record.epoch != world.epoch:
            yield self._advanced(world, record, machine.Moved(why="moved"), "is abandoned")
            return
        if record.phase is RejoinPhase.HELD and record.cursor == APPROVE:
            event: machine.Event = machine.Approved(actor="operator/ann")
            spoken = world._replace(agreed=True)
            yield self._advanced(spoken, record, event, "a person approves", fair=False)
            return
        if record.phase is RejoinPhase.HELD:
            resumed = machine.Resumed(actor="operator/ann")
            yield self._advanced(world, record, resumed, "a person resumes")
        yield from self._news(world, record)

    def _news(self, world: World, record: Rejoin) -> Iterator[Move[World]]:
        if world.answer:
            answer = decode(Answer, world.answer)
            token = machine.token_of(record)
            if not self.rules.answers_are_matched and token is not None:
                answer = attrs.evolve(answer, token=token, step=record.step.command)
            if answer.token == token:
                news = machine.Answered(answer=answer, lineage=LINEAGE)
                yield self._advanced(world, record, news, "hears")
        if record.awaiting is not None and world.slot[0] != record.awaiting:
            event = machine.Overtaken(awaiting=record.awaiting)
            yield self._advanced(world, record, event, "asks again")
        elif record.awaiting is not None and world.left.silences:
            left = world.left._replace(silences=world.left.silences - 1)
            silent = machine.TimedOut(awaiting=record.awaiting)
            quiet = world._replace(left=left)
            yield self._advanced(quiet, record, silent, "hears nothing", fair=False)

    def _advanced(
        self, world: World, record: Rejoin, event: machine.Event, name: str, *, fair: bool = True
    ) -> Move[World]:
        after = machine.advance(record, event, now_ms=0)
        step = record.step.name
        if after is record or plain(after) == plain(record):
            return Move(f"{name} ({step}): nothing", world, False)
        return Move(f"the coordinator {name} ({step})", self._saved(world, after), fair)

    # --- the region ----------------------------------------------------------------------------

    def _region(self, world: World) -> Iterator[Move[World]]:
        revision, raw = world.slot
        command = decode(Command, raw)
        token = token_of(revision)
        if world.answer and decode(Answer, world.answer).token >= token:
            return
        done = self._obeyed(world, command, token)
        yield Move(f"the region obeys {command.step.value}", done, True)
        if world.left.deaths:
            left = world.left._replace(deaths=world.left.deaths - 1)
            died = done._replace(answer=world.answer, left=left)
            yield Move(f"it dies after {command.step.value}, unanswered", died)

    def _obeyed(self, world: World, command: Command, token: Token) -> World:
        region = world.region
        counts = _counts(region)
        match command.step:
            case CommandStep.FENCE:
                txn = fences.supersede(
                    view_of(region), below=command.epoch, leader=LEADER, reason="superseded"
                )
                fenced = region if txn is None else self._applied(region, txn, world.clock)
                return self._answered(world, command, token, fenced, counts)
            case CommandStep.STAND_BY if not _in_step(region, command.epoch):
                return world
            case CommandStep.QUARANTINE if _how(region) is not Standing.FOLLOWS:
                kept = region._replace(aside=region.tail)
                decide = rejoin.decide_apart
                return self._decided(world, command, token, kept, decide, counts)
            case CommandStep.RECONCILE:
                is_new = self.rules.looks_again and not command.is_diverged and region.tail
                is_new = is_new and _how(region) is not Standing.FOLLOWS
                if is_new and token > region.fence.command_token:
                    refused = AnswerOutcome.REFUSED
                    return self._answered(world, command, token, region, counts, refused)
                decide = rejoin.decide_reconcile
                return self._decided(world, command, token, region, decide, counts)
            case _:
                return self._answered(world, command, token, region, counts)

    def _decided(
        self, world: World, command: Command, token: Token, region: Region, decide, counts
    ) -> World:
        decision = decide(view_of(region), _joins(region), command, token, leader=LEADER)
        match decision:
            case fences.Act(txn):
                changed = self._applied(region, txn, world.clock)
                return self._answered(world, command, token, changed, counts)
            case fences.Repeat():
                return self._answered(world, command, token, region, counts)
            case fences.Refuse(_):
                refused = AnswerOutcome.REFUSED
                return self._answered(world, command, token, region, counts, refused)
        return world

    def _answered(
        self,
        world: World,
        command: Command,
        token: Token,
        region: Region,
        counts: tuple[int, str],
        outcome: AnswerOutcome = AnswerOutcome.DONE,
    ) -> World:
        answer = Answer(
            group=GROUP,
            cluster=A,
            step=command.step,
            failover=command.failover,
            token=token,
            outcome=outcome,
            diverged={"total": counts[0]},
            completeness=counts[1],
            standing=_how(region) if command.step in SAID else Standing.UNSAID,
        )
        return world._replace(region=region, answer=encode(answer), clock=world.clock + 1)

    def _applied(self, region: Region, txn: Txn, revision: int) -> Region:
        for operation in txn.operations:
            if isinstance(operation, Put) and operation.key == RegionalKeys.fence(GROUP):
                fence = decode(Fence, operation.value)
                region = region._replace(fence=fence, revision=revision)
            elif isinstance(operation, Put) and operation.key.startswith(RegionalKeys.checkpoints):
                region = region._replace(join=decode(GroupCheckpoint, operation.value))
            elif isinstance(operation, Delete) and operation.key == RegionalKeys.permit(GROUP):
                region = region._replace(permit=False)
        return region

    # --- streams -------------------------------------------------------------------------------

    def _streams(self, world: World) -> Iterator[Move[World]]:
        region = world.region
        fence, join = region.fence, region.join
        if fence.mode is FenceMode.DRAINED and not region.tail:
            # The epoch stands on exactly where its own ended: the stream just goes on.
            follows = attrs.evolve(fence, mode=FenceMode.SUPERSEDED, epoch=Epoch(fence.epoch + 1))
            yield self._fenced(world, follows, None, "the stream goes on from its cut")
        if fence.mode is not FenceMode.SUPERSEDED:
            return
        if join is None and fence.epoch < world.epoch:
            # The mark of the next epoch: this cluster is taken to be exactly at its parent's end.
            _check_kept(region, "a diverged copy just goes on")
            next_epoch = attrs.evolve(fence, epoch=Epoch(fence.epoch + 1))
            yield self._fenced(world, next_epoch, None, "the stream goes on in the next epoch")
        elif join is not None and join.epoch < world.epoch:
            phase = join.phase if self.rules.ahead_stays else JoinPhase.JOINING
            again = attrs.evolve(join, epoch=Epoch(world.epoch), phase=phase)
            newer = attrs.evolve(fence, epoch=Epoch(world.epoch))
            yield self._fenced(world, newer, again, "a newer epoch begins")
        elif join is not None and join.phase is JoinPhase.JOINING and join.epoch == fence.epoch:
            _check_kept(region, "a tail was written over")
            if region.tail and region.given_up and not world.agreed:
                raise Broken("what nobody knows was written over unasked")
            clean = region._replace(join=None, tail=0, aside=0)
            yield Move("the copy is complete", world._replace(region=clean), True)

    def _fenced(
        self, world: World, fence: Fence, join: GroupCheckpoint | None, name: str
    ) -> Move[World]:
        region = world.region._replace(fence=fence, revision=world.clock, join=join)
        return Move(name, world._replace(region=region, clock=world.clock + 1), True)

    # --- faults --------------------------------------------------------------------------------

    def _faults(self, world: World) -> Iterator[Move[World]]:
        left, region = world.left, world.region
        if left.writes and region.permit and region.fence.mode is FenceMode.OPEN:
            written = region._replace(tail=region.tail + 1)
            fewer = left._replace(writes=left.writes - 1)
            yield Move("a writer writes", world._replace(region=written, left=fewer))
        if left.compactions and region.tail > region.aside and not region.given_up:
            gone = region._replace(given_up=True)
            fewer = left._replace(compactions=left.compactions - 1)
            yield Move("the log is compacted", world._replace(region=gone, left=fewer))
        if left.moves:
            fewer = left._replace(moves=left.moves - 1)
            moved = world._replace(epoch=world.epoch + 1, left=fewer, clock=world.clock + 1)
            yield Move("authority moves on", moved)
        if left.overtakes:
            other = Command(
                group=GROUP,
                cluster=A,
                step=CommandStep.CONVERGE,
                incarnation=1,
                epoch=Epoch(world.epoch),
                failover=FailoverId("f-1"),
            )
            fewer = left._replace(overtakes=left.overtakes - 1)
            slot = (world.clock, encode(other))
            yield Move(
                "a failover asks",
                world._replace(slot=slot, clock=world.clock + 1, left=fewer),
            )
        yield from self._late(world)

    def _late(self, world: World) -> Iterator[Move[World]]:
        """A deposed replicator decided upon a transaction, and it arrives at any later time."""
        left, region = world.left, world.region
        command = decode(Command, world.slot[1])
        if left.late and world.late is None and command.step is CommandStep.RECONCILE:
            decision = rejoin.decide_reconcile(
                view_of(region), _joins(region), command, token_of(world.slot[0]), leader=LEADER
            )
            if isinstance(decision, fences.Act):
                fewer = left._replace(late=left.late - 1)
                caught = (region.revision, decision.txn)
                yield Move("one is deposed", world._replace(late=caught, left=fewer))
        if world.late is not None:
            compared, txn = world.late
            gone = world._replace(late=None)
            if self.rules.fences_compare and compared != region.revision:
                yield Move("its transaction is refused", gone)
                return
            changed = self._applied(region, txn, world.clock)
            yield Move(
                "its transaction arrives", gone._replace(region=changed, clock=world.clock + 1)
            )

    # --- what must hold ------------------------------------------------------------------------

    def check(self, world: World) -> None:
        record, region = record_of(world), world.region
        if record.phase is RejoinPhase.SUCCEEDED and not _in_step(region, record.epoch):
            raise Broken("succeeded, and it does not stand by")
        if region.permit and region.fence.mode is not FenceMode.OPEN:
            raise Broken("a permit without an open fence")
        is_past = record.cursor > APPROVE and record.step.command is not None
        if is_past and record.completeness not in ("", "complete") and not record.approved_by:
            raise Broken("nobody agreed")


def is_end(world: World) -> bool:
    """Return whether nothing is due any more but a person's word."""
    record = record_of(world)
    is_current = record.epoch == world.epoch
    waits = record.phase is RejoinPhase.HELD and record.cursor == APPROVE
    return is_current and (record.phase is RejoinPhase.SUCCEEDED or waits)


def _counts(region: Region) -> tuple[int, str]:
    return region.tail, "state-only" if region.given_up else "complete"


def _how(region: Region) -> Standing:
    return rejoin.standing(view_of(region), _joins(region))


def _in_step(region: Region, epoch: int) -> bool:
    is_passive = region.fence.mode is FenceMode.SUPERSEDED
    return is_passive and region.join is None and region.fence.epoch >= epoch


def _check_kept(region: Region, kind: str) -> None:
    if region.tail > region.aside:
        raise Broken(kind)


def _joins(region: Region) -> list[OwnCheckpoint]:
    own = region.join
    if own is None:
        return []
    return [
        OwnCheckpoint(source=own.source, phase=own.phase, revision=Revision(1), lineage=own.lineage)
    ]
