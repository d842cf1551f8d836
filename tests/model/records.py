"""The coordinator of the small world: real records, real transitions, real transactions.

Everything here depends on its arguments alone, so it is worked out once and kept. Revisions are
ranks that change as the world is walked; a transaction depends on them only by the one it compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import attrs

from coordinator.failover import machine
from coordinator.failover.passing import Known, begun_checked
from coordinator.failover.record import Failover, FailoverKind, Phase, with_revision
from coordinator.failover.transition import Loaded, Surroundings, transition
from coordinator.governance.audit import Tip
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority, Routing
from meshkit.names import ClusterName, FailoverId
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.store.txn import Delete, KeyValue, ModRevisionIs, Put
from tests.model.explorer import Broken
from tests.model.regions import GROUP, token_of_epoch

A, B = ClusterName("a"), ClusterName("b")
COMPARED = Revision(99)
"""Stands for the record's revision in transactions that are built once and kept."""
INCARNATION = Incarnation("x")
PASSED_BY_STORING = {"approve", "settle"}
"""Steps of the coordinator's own that are passed in the transition that reaches them."""


class Reply(NamedTuple):
    """An answer on its way."""

    token: int
    command: int
    is_done: bool
    cut: int = 0


class Kept:
    """A record that is kept once, so that equal records are one object and hash quickly."""

    __slots__ = ("awaited", "name", "own", "record", "renumbered", "replied", "saves")

    def __init__(self, record: Failover) -> None:
        self.record = record
        self.awaited: int = record.awaiting.revision if record.awaiting else 0
        self.renumbered: dict[int, Kept] = {}
        self.own: list[Change] | None = None
        self.replied: dict[Reply, list[Change]] = {}
        self.saves: dict[Kept, Save] = {}
        is_over = record.phase.is_final or record.phase is Phase.HELD
        step = "" if is_over else f" {machine.step_in_hand(record).name}"
        self.name = f"{record.id} {record.phase.value}{step}"


class Change(NamedTuple):
    """What a coordinator may want to store, and why."""

    name: str
    after: Kept
    kind: str = ""
    """Nothing for what happens by itself; `timeout`, `fault`, `abort` or `resume`."""


class Save(NamedTuple):
    """The repository's transaction, as far as it concerns this world."""

    guards: tuple[tuple[str, int], ...]
    command: int | None
    authority: tuple[int, ClusterName] | None
    routing: tuple[int, ClusterName] | None
    ends: bool


def other(cluster: ClusterName) -> ClusterName:
    return B if cluster == A else A


class Records:
    """Every record and command that was met, and what may become of them."""

    def __init__(self, *, begins_checked: bool = False) -> None:
        self._begins_checked = begins_checked
        self.commands: list[Command] = []
        self._kept: dict[Failover, Kept] = {}
        self._command_ids: dict[bytes, int] = {}

    def begin(self, number: int, source: ClusterName, *, epoch: int) -> Kept:
        """Return the record of a new failover."""
        record = Failover(
            id=FailoverId(f"f{number}"),
            group=GROUP,
            kind=FailoverKind.PROMOTE,
            plan="planned/1",
            source=source,
            target=other(source),
            epoch_before=Epoch(epoch),
            incarnation=1,
            authority_revision=Revision(epoch),
            source_token=token_of_epoch(epoch),
        )
        if not self._begins_checked:
            return self.keep(machine.begin(record, now_ms=0))
        known = Known(equal="equal", close="close")
        return self.keep(begun_checked(record, known, now_ms=0)[0])

    def keep(self, record: Failover) -> Kept:
        """Drop what is told to people and decides nothing: states that differ in it are one."""
        plain = attrs.evolve(record, history=(), problem=None, ended_ms=None)
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

    def own(self, kept: Kept) -> list[Change]:
        """What a coordinator may notice by itself or be asked, and what it wants to store then."""
        if kept.own is None:
            kept.own = [
                Change(name, after, kind)
                for name, kind, event in _events(kept.record)
                for after in self._advanced(kept, event)
            ]
        return kept.own

    def replied(self, kept: Kept, reply: Reply) -> list[Change]:
        if reply not in kept.replied:
            command = self.commands[reply.command]
            answer = _answer(command, reply)
            outcome = "done" if reply.is_done else "refused"
            kept.replied[reply] = [
                Change(f"hears {command.step.value} {outcome}", after)
                for after in self._advanced(kept, machine.Answered(answer=answer))
            ]
        return kept.replied[reply]

    def _advanced(self, kept: Kept, event: machine.Event) -> list[Kept]:
        """Pass the steps done by storing them, as the driver does; or stop short of the pivot."""
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

    def transaction(self, before: Kept, after: Kept) -> Save:
        """The real transaction. It depends on revisions only by the one it compares."""
        before = self.awaiting(before, COMPARED) if before.awaited else before
        if after.awaited:
            after = self.awaiting(after, COMPARED)
        if after not in before.saves:
            before.saves[after] = self._transaction_of(before.record, after.record)
        return before.saves[after]

    def _transaction_of(self, before: Failover, after: Failover) -> Save:
        is_new = before.id != after.id
        loaded = Loaded(record=before, revision=ABSENT if is_new else COMPARED)
        around = _surroundings(after)
        txn = transition(loaded, after, around, what="", audit=None, now_ms=0)
        names = {
            Keys.failover(GROUP, after.id): "record",
            Keys.failover_active(GROUP): "running",
            Keys.authority(GROUP): "authority",
            Keys.routing(GROUP): "routing",
            Keys.seal(GROUP): "seal",
        }
        guards: list[tuple[str, int]] = []
        for guard in txn.guards:
            assert isinstance(guard, ModRevisionIs)
            guards.append((names[guard.key], guard.revision))
        puts = {each.key: each.value for each in txn.operations if isinstance(each, Put)}
        deleted = {each.key for each in txn.operations if isinstance(each, Delete)}
        assert decode(Failover, puts[Keys.failover(GROUP, after.id)]) == after
        save = Save(tuple(guards), None, None, None, ends=Keys.failover_active(GROUP) in deleted)
        for cluster in (A, B):
            if Keys.command(cluster, GROUP) in puts:
                assert save.command is None, "one command is due at a time"
                save = save._replace(command=self._command_id(puts[Keys.command(cluster, GROUP)]))
        if Keys.authority(GROUP) in puts:
            authority = decode(Authority, puts[Keys.authority(GROUP)])
            routing = decode(Routing, puts[Keys.routing(GROUP)])
            save = save._replace(
                authority=(authority.epoch, authority.active),
                routing=(routing.epoch, routing.active),
            )
        return save

    def _command_id(self, raw: bytes) -> int:
        if raw not in self._command_ids:
            self._command_ids[raw] = len(self.commands)
            self.commands.append(decode(Command, raw))
        return self._command_ids[raw]


def _events(record: Failover) -> Iterator[tuple[str, str, machine.Event]]:
    match machine.decide(record):
        case machine.Perform(step=step):
            yield f"{step} done", "", machine.StepDone(step=step)
            if step in {"check", "verify"}:
                yield f"{step} failed", "fault", machine.StepFailed(step=step, detail="lag")
        case machine.MoveAuthority():
            token = token_of_epoch(record.epoch_after)
            yield "moves authority", "", machine.AuthorityMoved(token=token)
            failed = machine.StepFailed(step="pivot", detail="sealed")
            yield "cannot move authority", "fault", failed
        case machine.AwaitAnswer(revision=revision):
            timed_out = machine.TimedOut(revision=revision, detail="silence")
            yield "time is up", "timeout", timed_out
    yield "told to abort", "abort", machine.AbortRequested(actor="alice")
    yield "told to resume", "resume", machine.ResumeRequested(actor="alice")


def _answer(command: Command, reply: Reply) -> Answer:
    is_converge = command.step is CommandStep.CONVERGE
    outcome = AnswerOutcome.DONE if reply.is_done else AnswerOutcome.REFUSED
    return Answer(
        group=GROUP,
        cluster=command.cluster,
        step=command.step,
        failover=command.failover,
        token=Token(incarnation=1, revision=Revision(reply.token)),
        outcome=outcome,
        cut=Sequence(reply.cut) if reply.cut else None,
        incarnation=INCARNATION,
        watermark=command.cut if is_converge else None,
        prefixes=("/orders/",) if command.step is CommandStep.DRAIN else (),
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
