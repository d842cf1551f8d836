"""The coordinator of the world in which emergencies are walked: real records, real transactions.

Everything here depends on its arguments alone, so it is worked out once and kept. What is told to
people and decides nothing is dropped, so that states which differ in it are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import attrs

from coordinator.failover import machine
from coordinator.failover.loss import (
    Evidence,
    FenceStatus,
    LossBound,
    LossStatement,
    assess,
)
from coordinator.failover.plan import EMERGENCY_1, PLANNED_1
from coordinator.failover.record import Emergency, Failover, FailoverKind, Phase, with_revision
from coordinator.failover.transition import Loaded, Superseding, Surroundings, transition
from coordinator.governance.audit import Tip
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority, Lineage, Routing
from meshkit.names import ClusterName, FailoverId
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.status import LogHead
from meshkit.store.txn import Delete, KeyValue, ModRevisionIs, Put
from tests.model.explorer import Broken
from tests.model.records import A, B, other
from tests.model.regions import GROUP, token_of_epoch

COMPARED = Revision(99)
SEALED = Revision(1)
"""Stands for the revision of the seal: there is one at a time, and only its being there counts."""
PASSED_BY_STORING = {"approve", "verify", "settle", "consent"}
NOTHING_KNOWN = LossBound(records=0, seconds=1)
ANYTHING = LossBound(unknown=True)
PERMIT_ENDED_MS = 1_000


def incarnation_of(cluster: ClusterName) -> Incarnation:
    return Incarnation(f"{cluster}-1")


class Reply(NamedTuple):
    """An answer on its way."""

    token: int
    command: int
    is_done: bool = True
    cut: int = 0
    opened: int = 0
    on: Lineage | None = None


class Change(NamedTuple):
    """What a coordinator may want to store, and why."""

    name: str
    after: Kept
    kind: str = ""


class Save(NamedTuple):
    """The repository's transaction, as far as it concerns this world."""

    guards: tuple[tuple[str, int], ...]
    commands: tuple[int, ...]
    authority: Authority | None
    routing: tuple[int, ClusterName] | None
    seal: str
    """`put`, `delete` or nothing."""
    ends: bool


class Kept:
    """A record that is kept once, so that equal records are one object and hash quickly."""

    __slots__ = (
        "advanced",
        "awaited",
        "name",
        "own",
        "record",
        "renumbered",
        "replied",
        "saves",
    )

    def __init__(self, record: Failover) -> None:
        self.record = record
        self.awaited: int = record.awaiting.revision if record.awaiting else 0
        self.renumbered: dict[int, Kept] = {}
        self.own: list[tuple[str, str, machine.Event]] | None = None
        self.advanced: dict[machine.Event, list[Kept]] = {}
        self.replied: dict[Reply, list[Change]] = {}
        self.saves: dict[tuple[Kept, Kept | None], Save] = {}
        is_over = record.phase.is_final or record.phase is Phase.HELD
        step = "" if is_over else f" {machine.step_in_hand(record).name}"
        self.name = f"{record.id} {record.phase.value}{step}"


class Records:
    """Every record and command that was met, and what may become of them."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self._kept: dict[Failover, Kept] = {}
        self._command_ids: dict[bytes, int] = {}

    # --- records ------------------------------------------------------------------------------

    def planned(self, number: int, authority: Authority) -> Kept:
        return self.keep(machine.begin(self._record(number, authority), now_ms=0))

    def emergency(
        self, number: int, authority: Authority, *, no_wait: bool, running: Failover | None
    ) -> Kept:
        """The record as the API makes it (`coordinator/api/rescuing.py`)."""
        record = self._record(number, authority)
        is_sealed = (
            running is not None
            and running.emergency is not None
            and not running.authority_moved
            and running.emergency.seal_revision
        )
        if running is not None and _is_cut(running, record):
            record = attrs.evolve(
                record,
                cut=running.cut,
                cut_incarnation=running.cut_incarnation,
                cut_prefixes=running.cut_prefixes,
            )
        emergency = Emergency(
            no_fence_wait=no_wait,
            source_lineage=authority.lineage,
            supersedes=running.id if running else None,
            seal_revision=SEALED if is_sealed else ABSENT,
        )
        record = attrs.evolve(
            record, plan=EMERGENCY_1.name, kind=FailoverKind.EMERGENCY, emergency=emergency
        )
        return self.keep(machine.begin(record, now_ms=0))

    def _record(self, number: int, authority: Authority) -> Failover:
        return Failover(
            id=FailoverId(f"f{number}"),
            group=GROUP,
            kind=FailoverKind.PROMOTE,
            plan=PLANNED_1.name,
            source=authority.active,
            target=other(authority.active),
            epoch_before=authority.epoch,
            incarnation=1,
            authority_revision=Revision(authority.epoch),
            source_token=token_of_epoch(authority.epoch),
        )

    def keep(self, record: Failover) -> Kept:
        emergency = record.emergency
        if emergency is not None and emergency.seal_revision:
            emergency = attrs.evolve(emergency, seal_revision=SEALED)
        plain = attrs.evolve(
            record, history=(), problem=None, ended_ms=None, transitions=1, emergency=emergency
        )
        if plain not in self._kept:
            self._kept[plain] = Kept(plain)
        return self._kept[plain]

    def awaiting(self, kept: Kept, revision: int) -> Kept:
        """The same record, with the token of what it awaits under another number."""
        if kept.awaited == revision or kept.record.awaiting is None:
            return kept
        if revision not in kept.renumbered:
            record = kept.record
            if revision and not kept.awaited:
                record = with_revision(record, Revision(revision))
            else:
                waits = attrs.evolve(record.awaiting, revision=Revision(revision))
                record = attrs.evolve(record, awaiting=waits)
            kept.renumbered[revision] = self.keep(record)
        return kept.renumbered[revision]

    # --- transitions --------------------------------------------------------------------------

    def advanced(self, kept: Kept, event: machine.Event) -> list[Kept]:
        """Pass the steps done by storing them, as the driver does; or stop short of the pivot."""
        if event not in kept.advanced:
            kept.advanced[event] = self._advanced(kept, event)
        return kept.advanced[event]

    def _advanced(self, kept: Kept, event: machine.Event) -> list[Kept]:
        record = machine.advance(kept.record, event, now_ms=0)
        if record is kept.record:
            return []
        found: list[Failover] = []
        while True:
            match machine.decide(record):
                case machine.MoveAuthority():
                    found.append(record)
                    event = machine.AuthorityMoved(token=token_of_epoch(record.epoch_after))
                case machine.Perform(step=step) if step in PASSED_BY_STORING:
                    event = machine.StepDone(step=step)
                case _:
                    break
            record = machine.advance(record, event, now_ms=0)
        if record.phase is Phase.HELD and (record.problem is None or not record.problem.next):
            raise Broken("held, and does not say what to do")
        kepts = [self.keep(each) for each in (*found, record)]
        return [each for each in kepts if each is not kept]

    def replied(self, kept: Kept, reply: Reply) -> list[Change]:
        if reply not in kept.replied:
            command = self.commands[reply.command]
            outcome = "done" if reply.is_done else "refused"
            kept.replied[reply] = [
                Change(f"hears {command.step.value} {outcome}", after)
                for after in self._advanced(kept, machine.Answered(answer=_answer(command, reply)))
            ]
        return kept.replied[reply]

    def own(self, kept: Kept) -> list[tuple[str, str, machine.Event]]:
        """What a coordinator may notice by itself or be asked; the world adds fence and loss."""
        if kept.own is None:
            kept.own = list(self._own(kept))
        return kept.own

    def _own(self, kept: Kept) -> Iterator[tuple[str, str, machine.Event]]:
        record = kept.record
        match machine.decide(record):
            case machine.Perform(step=step) if step != "state_loss":
                yield f"{step} done", "", machine.StepDone(step=step)
            case machine.MoveAuthority():
                token = token_of_epoch(record.epoch_after)
                yield "moves authority", "", machine.AuthorityMoved(token=token)
                failed = machine.StepFailed(step="pivot", detail="sealed")
                yield "cannot move authority", "pivot", failed
            case machine.AwaitAnswer(revision=revision):
                timed_out = machine.TimedOut(revision=revision, detail="silence")
                yield "time is up", "timeout", timed_out
        if record.emergency is not None:
            accept = record.emergency.accept
            if accept is None:
                yield "told: nothing known may be lost", "bound", _consent(NOTHING_KNOWN)
            if accept != ANYTHING:
                yield "told: whatever it is", "consent", _consent(ANYTHING)
        yield "told to abort", "abort", machine.AbortRequested(actor="alice")
        yield "told to resume", "resume", machine.ResumeRequested(actor="alice")

    # --- transactions -------------------------------------------------------------------------

    def transaction(self, before: Kept, after: Kept, superseded: Kept | None = None) -> Save:
        """The real transaction. It depends on revisions only by the one it compares."""
        before = self.awaiting(before, COMPARED) if before.awaited else before
        if after.awaited:
            after = self.awaiting(after, COMPARED)
        key = (after, superseded)
        if key not in before.saves:
            before.saves[key] = self._transaction_of(before, after, superseded)
        return before.saves[key]

    def _transaction_of(self, before: Kept, after: Kept, superseded: Kept | None) -> Save:
        record, is_new = after.record, before.record.id != after.record.id
        loaded = Loaded(record=before.record, revision=ABSENT if is_new else COMPARED)
        superseding = None
        if superseded is not None:
            old = Loaded(record=before.record, revision=COMPARED)
            superseding = Superseding(before=old, ended=superseded.record)
        txn = transition(
            loaded,
            record,
            _surroundings(record),
            what="",
            audit=None,
            now_ms=0,
            superseding=superseding,
        )
        names = {
            Keys.failover(GROUP, record.id): "record",
            Keys.failover(GROUP, before.record.id): "record",
            Keys.failover_active(GROUP): "running",
            Keys.authority(GROUP): "authority",
            Keys.routing(GROUP): "routing",
            Keys.seal(GROUP): "seal",
            Keys.holder(GROUP): "holder",
        }
        guards = []
        for guard in txn.guards:
            assert isinstance(guard, ModRevisionIs)
            name = names[guard.key]
            is_fresh = is_new and guard.key == Keys.failover(GROUP, record.id)
            guards.append(("new" if is_fresh else name, guard.revision))
        puts = {each.key: each.value for each in txn.operations if isinstance(each, Put)}
        deleted = {each.key for each in txn.operations if isinstance(each, Delete)}
        commands = tuple(
            self._command_id(puts[Keys.command(cluster, GROUP)])
            for cluster in (A, B)
            if Keys.command(cluster, GROUP) in puts
        )
        authority = routing = None
        if Keys.authority(GROUP) in puts:
            authority = decode(Authority, puts[Keys.authority(GROUP)])
            moved = decode(Routing, puts[Keys.routing(GROUP)])
            routing = (moved.epoch, moved.active)
        seal = "put" if Keys.seal(GROUP) in puts else ""
        seal = "delete" if Keys.seal(GROUP) in deleted else seal
        ends = Keys.failover_active(GROUP) in deleted
        return Save(tuple(guards), commands, authority, routing, seal, ends)

    def _command_id(self, raw: bytes) -> int:
        if raw not in self._command_ids:
            self._command_ids[raw] = len(self.commands)
            self.commands.append(decode(Command, raw))
        return self._command_ids[raw]


def statement(record: Failover, *, reported: int, head_of: ClusterName) -> LossStatement:
    """What the coordinator states, from what was reported of the source's log."""
    emergency = record.emergency
    assert emergency is not None
    head = LogHead(
        cluster=head_of,
        incarnation=incarnation_of(head_of),
        sequence=Sequence(reported),
        at_ms=0,
    )
    fence = emergency.fence or FenceStatus.UNKNOWN
    evidence = Evidence(
        cluster=record.target,
        stands_on=emergency.stands_on,
        head=head,
        cut=record.cut,
        permit_ended_ms=PERMIT_ENDED_MS,
        source_lineage=emergency.source_lineage,
        never_opened=emergency.never_opened,
    )
    loss = assess(evidence, fence=fence, epoch=record.epoch_before)
    return LossStatement(source=record.source, fence=fence, target=loss)


def _consent(bound: LossBound) -> machine.ConsentGiven:
    return machine.ConsentGiven(bound=bound, actor="alice")


def _is_cut(running: Failover, record: Failover) -> bool:
    is_same_epoch = (running.source, running.epoch_before) == (record.source, record.epoch_before)
    return is_same_epoch and not running.undoing and running.cut is not None


def _answer(command: Command, reply: Reply) -> Answer:
    watermark = command.cut if command.step is CommandStep.CONVERGE else None
    return Answer(
        group=GROUP,
        cluster=command.cluster,
        step=command.step,
        failover=command.failover,
        token=Token(incarnation=1, revision=Revision(reply.token)),
        outcome=AnswerOutcome.DONE if reply.is_done else AnswerOutcome.REFUSED,
        cut=Sequence(reply.cut) if reply.cut else None,
        opened=Sequence(reply.opened) if reply.opened else None,
        incarnation=incarnation_of(command.cluster),
        watermark=reply.on.sequence if reply.on else watermark,
        prefixes=("/orders/",) if command.step in (CommandStep.DRAIN, CommandStep.SEAL) else (),
        stands_on=reply.on,
    )


def _surroundings(after: Failover) -> Surroundings:
    """Authority and routing as they were when the failover began."""
    epoch, token = after.epoch_before, token_of_epoch(after.epoch_before)
    authority = Authority(group=GROUP, epoch=epoch, token=token, active=after.source)
    routing = Routing(group=GROUP, epoch=epoch, token=token, active=after.source)
    return Surroundings(
        tip=Tip(),
        authority=_item(Keys.authority(GROUP), encode(authority), after.authority_revision),
        routing=_item(Keys.routing(GROUP), encode(routing), Revision(epoch)),
    )


def _item(key: bytes, value: bytes, revision: Revision) -> KeyValue:
    return KeyValue(
        key=key, value=value, mod_revision=revision, create_revision=revision, version=1
    )


def first_authority() -> Authority:
    return Authority(group=GROUP, epoch=Epoch(1), token=token_of_epoch(1), active=A)
