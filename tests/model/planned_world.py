"""The small world in which `planned/1` is walked: two clusters, writers, replication, messages.

The coordinator is the real machine, and every save is the real transaction of the repository,
carried out on the few coordination keys that matter. Nothing of a coordinator survives but the
record, so a crash and a successor are in every schedule already: whoever moves next may be another.

What an adversary may do: lose, delay and repeat commands and answers, let any wait time out, abort,
stop a coordinator with a save in its hands and wake it late, let a region die between its act and
its answer, stop it between reading its fence and committing, let permits lapse, refuse a command.
`Left` bounds what would not end otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import attrs

from coordinator.failover.record import Phase
from meshkit.commands import CommandStep
from meshkit.names import ClusterName, FailoverId
from tests.model.explorer import Broken, Move
from tests.model.records import COMPARED, A, B, Kept, Records, Reply, other
from tests.model.regions import (
    CHANGED,
    READ_ONLY,
    UNCHANGED,
    RealRegions,
    Region,
    Regions,
    check_order,
    with_tokens,
)

UNBOUNDED = 99
_TERM_TOKEN = 1
"""The one token of a term, for the planted bug."""


@attrs.frozen
class Rules:
    """What the world does right; planted bugs turn some of it off."""

    regions: Regions = attrs.field(factory=RealRegions)
    token_per_save: bool = True
    saves_compare_revisions: bool = True
    old_answers_are_dropped: bool = True
    checks_order: bool = True
    """Off in order to see the harm that falling tokens do, and not only that they fall."""
    begins_checked: bool = False
    """Whether failovers begin with their checks made, and so with a drain."""


class Left(NamedTuple):
    """How often something may still happen."""

    writes: int = 1
    failovers: int = 1
    """More of them after the first: again if it was undone, back if it succeeded."""
    timeouts: int = UNBOUNDED
    resumes: int = 1
    stalls: int = 0
    """Coordinators stopped with a save in their hands."""
    late_commits: int = 0
    """Regions stopped with a transaction in their hands."""
    deaths: int = 0
    """Regions that die between their act and its answer."""
    lapses: int = 0
    refusals: int = 0


class Ask(NamedTuple):
    """A command on its way, or on its way again."""

    token: int
    command: int


class Late(NamedTuple):
    """A save in the hands of a coordinator that was stopped before sending it."""

    compared: int
    before: Kept
    after: Kept


class Pending(NamedTuple):
    """A region's transaction, decided on `view` and not sent yet; without `ask`, a permit's."""

    cluster: ClusterName
    view: Region
    ask: Ask | None


class Coordination(NamedTuple):
    """The coordination keys of the group beside the record and its commands."""

    epoch: int
    active: ClusterName
    routing_epoch: int
    routing_active: ClusterName
    running: FailoverId | None


class World(NamedTuple):
    """Everything. Revisions and tokens are ranks: only their order decides anything."""

    kept: Kept
    revision: int
    """The record's, which is also the newest there is."""
    coordination: Coordination
    a: Region
    b: Region
    has_a: int
    """How many of the acknowledged writes, in their order, are contained in a."""
    has_b: int
    asks: frozenset[Ask]
    replies: frozenset[Reply]
    late: Late | None
    pending: Pending | None
    left: Left

    def region(self, cluster: ClusterName) -> Region:
        return self.a if cluster == A else self.b

    def has(self, cluster: ClusterName) -> int:
        return self.has_a if cluster == A else self.has_b

    def with_region(self, cluster: ClusterName, region: Region) -> World:
        return self._replace(a=region) if cluster == A else self._replace(b=region)

    def using(self, **spent: int) -> World:
        return self._replace(left=self.left._replace(**spent))


class Planned:
    """The moves of the world and what must hold in it, under some rules."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.records = Records(begins_checked=self.rules.begins_checked)
        self._begun: dict[tuple[str, int], Kept] = {}

    def first(self, left: Left) -> World:
        """The first failover has just begun: a serves, b has not applied the first write yet."""
        nothing = self.records.begin(0, A, epoch=1)
        before = World(
            kept=nothing,
            revision=1,
            coordination=Coordination(1, A, 1, A, None),
            a=Region("open", 1, seen=1, permit=1),
            b=Region("superseded", 1, seen=1),
            has_a=1,
            has_b=0,
            asks=frozenset(),
            replies=frozenset(),
            late=None,
            pending=None,
            left=left,
        )
        begun = self._save(before, 0, nothing, self.records.begin(1, A, epoch=1))
        assert begun is not None, "nothing runs"
        return begun

    # --- what may happen --------------------------------------------------------------------

    def moves(self, world: World) -> Iterator[Move[World]]:
        for every in (self._coordinator, self._late_save, self._next_failover, self._writers,
                      self._replication, self._deliveries, self._permits, self._late_commit):  # fmt: skip
            for move in every(world):
                after = move.world
                if self.rules.checks_order:
                    check_order(world.a, after.a)
                    check_order(world.b, after.b)
                yield move._replace(world=self.canonical(after))

    # --- the coordinator --------------------------------------------------------------------

    def _coordinator(self, world: World) -> Iterator[Move[World]]:
        left = world.left
        changes = [*self.records.own(world.kept)]
        for reply in world.replies:
            changes += self.records.replied(world.kept, reply)
        for name, after, kind in changes:
            spent = world
            if kind == "timeout":
                if not left.timeouts:
                    continue
                if left.timeouts < UNBOUNDED:
                    spent = world.using(timeouts=left.timeouts - 1)
            elif kind == "resume":
                if not left.resumes:
                    continue
                spent = world.using(resumes=left.resumes - 1)
            saved = self._save(spent, world.revision, world.kept, after)
            assert saved is not None, "nothing moved since it was read"
            yield Move(f"coordinator: {name} -> {after.name}", saved, is_fair=not kind)
            if left.stalls:
                late = Late(world.revision, world.kept, after)
                stopped = spent._replace(late=late).using(stalls=left.stalls - 1)
                yield Move(f"coordinator is stopped before storing: {name}", stopped)

    def _save(self, world: World, compared: int, before: Kept, after: Kept) -> World | None:
        """Carry the repository's transaction out; None if a guard does not hold."""
        save = self.records.transaction(before, after)
        now = world.coordination
        actual = {
            "record": world.revision if after.record.id == world.kept.record.id else 0,
            "running": 1 if now.running else 0,
            "authority": now.epoch,
            "routing": now.routing_epoch,
            "seal": 0,
        }
        for key, revision in save.guards:
            wanted = compared if revision == COMPARED else revision
            if actual[key] != wanted and self.rules.saves_compare_revisions:
                return None
        revision = world.revision + 1
        if save.authority:
            now = now._replace(epoch=save.authority[0], active=save.authority[1])
        if save.routing:
            now = now._replace(routing_epoch=save.routing[0], routing_active=save.routing[1])
        now = now._replace(running=None if save.ends else after.record.id)
        asks = world.asks
        if save.command is not None:
            token = revision if self.rules.token_per_save else _TERM_TOKEN
            asks |= {Ask(token, save.command)}
            after = self.records.awaiting(after, token)
        return world._replace(kept=after, revision=revision, coordination=now, asks=asks)

    def _late_save(self, world: World) -> Iterator[Move[World]]:
        """A deposed coordinator wakes and sends what it had in its hands (S20)."""
        if world.late is None:
            return
        compared, before, after = world.late
        woken = world._replace(late=None)
        saved = self._save(woken, compared, before, after)
        name = "deposed coordinator wakes and stores" if saved else "deposed coordinator in vain"
        yield Move(f"{name}: {after.name}", saved or woken)

    def _next_failover(self, world: World) -> Iterator[Move[World]]:
        record = world.kept.record
        if not world.left.failovers or not record.phase.is_final:
            return
        now = world.coordination
        key = (now.active, now.epoch)
        if key not in self._begun:
            self._begun[key] = self.records.begin(2, now.active, epoch=now.epoch)
        spent = world.using(failovers=world.left.failovers - 1)
        begun = self._save(spent, 0, world.kept, self._begun[key])
        if begun is None:
            raise Broken("ended, but no new failover can begin")
        yield Move(f"operator: {self._begun[key].name}", begun)

    # --- writers and replication ------------------------------------------------------------

    def _writers(self, world: World) -> Iterator[Move[World]]:
        for cluster in (A, B):
            if world.region(cluster).permit and world.left.writes:
                spent = world.using(writes=world.left.writes - 1)
                more = {f"has_{cluster}": max(world.has_a, world.has_b) + 1}
                yield Move(f"{cluster} acknowledges a write", spent._replace(**more))

    def _replication(self, world: World) -> Iterator[Move[World]]:
        """The log of the other cluster arrives: a write, or the mark that its epoch opened."""
        for cluster in (A, B):
            mine, theirs = world.region(cluster), world.region(other(cluster))
            if mine.mode != "superseded":
                continue
            in_epoch = mine.epoch == theirs.epoch or not self.rules.regions.follows_epochs
            if in_epoch and world.has(cluster) < world.has(other(cluster)):
                more = {f"has_{cluster}": world.has(cluster) + 1}
                yield Move(f"{cluster} applies a write", world._replace(**more), is_fair=True)
            if mine.epoch < theirs.epoch and theirs.mode != "superseded":
                follows = mine._replace(epoch=theirs.epoch, cut=0, fence_revision=CHANGED)
                moved = world.with_region(cluster, follows)
                yield Move(f"{cluster} follows epoch {theirs.epoch}", moved, is_fair=True)

    # --- commands ---------------------------------------------------------------------------

    def _deliveries(self, world: World) -> Iterator[Move[World]]:
        for ask in world.asks:
            command = self.records.commands[ask.command]
            who, step = command.cluster, command.step
            is_fair = ask.token == world.kept.awaited
            region = world.region(who)
            if step in READ_ONLY:
                reply = self._waited(world, ask)
                if reply is not None:
                    heard = world._replace(replies=world.replies | {reply})
                    yield Move(f"{who} answers {step.value}", heard, is_fair)
            else:
                yield from self._obeys(world, ask, is_fair=is_fair)
            if world.left.refusals and ask.token > region.seen:
                spent = world.using(refusals=world.left.refusals - 1)
                refused = spent.replies | {Reply(ask.token, ask.command, is_done=False)}
                yield Move(f"{who} refuses {step.value}", spent._replace(replies=refused))

    def _waited(self, world: World, ask: Ask) -> Reply | None:
        """Answer a command that only waits, or go on waiting."""
        command = self.records.commands[ask.command]
        if command.step is CommandStep.CATCH_UP:
            return Reply(ask.token, ask.command, is_done=True)
        wanted = command.cut or world.has(other(command.cluster))
        if world.has(command.cluster) < wanted:
            return None
        region = world.region(command.cluster)
        is_done = not self.rules.regions.follows_epochs or region.epoch == command.epoch
        return Reply(ask.token, ask.command, is_done=is_done)

    def _obeys(self, world: World, ask: Ask, *, is_fair: bool) -> Iterator[Move[World]]:
        command = self.records.commands[ask.command]
        who, step = command.cluster, command.step.value
        region, head = world.region(who), world.has(who)
        fit = command.lineage is None or head >= command.lineage.sequence
        kind, after = self.rules.regions.obey(
            region, command, ask.command, token=ask.token, head=head, fit=fit
        )
        obeyed = world.with_region(who, after)
        match kind:
            case "refused":
                refused = Reply(ask.token, ask.command, is_done=False)
                yield Move(f"{who} refuses {step}", _with_reply(world, refused), is_fair)
            case "repeated":
                name = f"{who} answers {step} again"
                yield Move(name, _with_reply(world, self._fact(ask, after)), is_fair)
            case "acted":
                name = f"{who} obeys {step}"
                yield Move(name, _with_reply(obeyed, self._fact(ask, after)), is_fair)
                if world.left.deaths:
                    died = obeyed.using(deaths=world.left.deaths - 1)
                    yield Move(f"{name} and dies before it answers", died)
                if world.left.late_commits and world.pending is None:
                    pending = Pending(who, _as_read(region), ask)
                    yield self._stops(world, pending, f"{who} stops before it commits {step}")

    def _fact(self, ask: Ask, region: Region) -> Reply | None:
        """The answer from what the fence says; None while a reverse does not follow yet."""
        command = self.records.commands[ask.command]
        is_behind = self.rules.regions.follows_epochs and region.epoch < command.epoch
        if command.step is CommandStep.REVERSE and is_behind:
            return None
        cut = region.cut if command.step is CommandStep.DRAIN else 0
        return Reply(ask.token, ask.command, is_done=True, cut=cut)

    def _permits(self, world: World) -> Iterator[Move[World]]:
        for cluster in (A, B):
            region = world.region(cluster)
            if region.permit:
                if world.left.lapses:
                    lapsed = world.with_region(cluster, region._replace(permit=0))
                    spent = lapsed.using(lapses=world.left.lapses - 1)
                    yield Move(f"the permit in {cluster} lapses", spent)
                continue
            again = self.rules.regions.permit_again(region, cluster)
            if again is None:
                continue
            put = world.with_region(cluster, again)
            yield Move(f"{cluster} puts its permit again", put, is_fair=True)
            if world.left.late_commits and world.pending is None:
                pending = Pending(cluster, _as_read(region), None)
                yield self._stops(world, pending, f"{cluster} stops before it puts its permit")

    def _stops(self, world: World, pending: Pending, name: str) -> Move[World]:
        fresh = world.with_region(pending.cluster, pending.view)._replace(pending=pending)
        return Move(name, fresh.using(late_commits=world.left.late_commits - 1))

    def _late_commit(self, world: World) -> Iterator[Move[World]]:
        """A transaction decided on an old view arrives (S3)."""
        if world.pending is None:
            return
        cluster, view, ask = world.pending
        region, regions = world.region(cluster), self.rules.regions
        woken = world._replace(pending=None)
        if ask is None:
            after = regions.permit_again(region, cluster, view=view)
            reply, what = None, "permit"
        else:
            command = self.records.commands[ask.command]
            after = regions.commit_late(
                region, view, command, ask.command, token=ask.token, head=world.has(cluster)
            )
            reply, what = after and self._fact(ask, after), command.step.value
        if after is None:
            yield Move(f"late {what} of {cluster} is refused by its etcd", woken)
        else:
            late = _with_reply(woken.with_region(cluster, after), reply)
            yield Move(f"late {what} of {cluster} is committed", late)

    # --- canonical form ---------------------------------------------------------------------

    def canonical(self, world: World) -> World:
        """Drop messages that can change nothing any more, and number revisions anew."""
        kept, revision, coordination, a, b, has_a, has_b, asks, replies, late, pending, left = world
        news = (kept.awaited, late.after.awaited) if late else (kept.awaited,)
        if asks:
            asks = frozenset(ask for ask in asks if self._matters(a, b, ask, news))
        if replies and self.rules.old_answers_are_dropped:
            replies = frozenset(reply for reply in replies if reply.token in news)
        a = a if pending and pending.cluster == A else _as_read(a)
        b = b if pending and pending.cluster == B else _as_read(b)
        found = {0, 1, revision, kept.awaited, a.seen, b.seen}
        found.update([ask.token for ask in asks])
        found.update([reply.token for reply in replies])
        if late:
            found |= {late.compared, late.after.awaited, late.before.awaited}
        if pending:
            found |= {pending.view.seen, pending.ask.token if pending.ask else 0}
        if len(found) <= revision:
            rank = {number: index for index, number in enumerate(sorted(found))}
            kept = self.records.awaiting(kept, rank[kept.awaited])
            revision = rank[revision]
            a, b = with_tokens(a, rank[a.seen]), with_tokens(b, rank[b.seen])
            asks = frozenset([Ask(rank[token], command) for token, command in asks])
            replies = frozenset([each._replace(token=rank[each.token]) for each in replies])
            late = late and self._late_renumbered(late, rank)
            pending = pending and _pending_renumbered(pending, rank)
        return World(
            kept, revision, coordination, a, b, has_a, has_b, asks, replies, late, pending, left
        )

    def _matters(self, a: Region, b: Region, ask: Ask, news: tuple[int, ...]) -> bool:
        command, regions = self.records.commands[ask.command], self.rules.regions
        if command.step in READ_ONLY:
            return ask.token in news or not self.rules.old_answers_are_dropped
        if not regions.compares_tokens:
            return True
        seen = a.seen if command.cluster == A else b.seen
        return ask.token > seen or (
            ask.token == seen and (ask.token in news or regions.obeys_equal)
        )

    def _late_renumbered(self, late: Late, rank: dict[int, int]) -> Late:
        return Late(
            rank[late.compared],
            self.records.awaiting(late.before, rank[late.before.awaited]),
            self.records.awaiting(late.after, rank[late.after.awaited]),
        )

    # --- what must hold ---------------------------------------------------------------------

    def check(self, world: World) -> None:
        """The promises that are about single states."""
        a, b = world.a, world.b
        if (a.permit and b.permit) or a.mode == b.mode == "open":
            raise Broken("two writers")
        most = max(world.has_a, world.has_b)
        if (a.mode == "open" and world.has_a < most) or (b.mode == "open" and world.has_b < most):
            raise Broken("an acknowledged write was left behind")
        record, now = world.kept.record, world.coordination
        moved = record.authority_moved
        expected = (record.epoch_before + moved, record.target if moved else record.source)
        if (now.epoch, now.active) != expected:
            raise Broken("authority does not say what the record says")
        if (now.routing_epoch, now.routing_active) != expected:
            raise Broken("routing moved without authority, or the other way round")
        if (now.running is None) != record.phase.is_final:
            raise Broken("the running failover is not the one that runs")
        if record.phase.is_final:
            self._check_serves(world, expected[1], record.phase)

    def _check_serves(self, world: World, cluster: ClusterName, phase: Phase) -> None:
        region = world.region(cluster)
        if not region.permit and self.rules.regions.permit_again(region, cluster) is None:
            raise Broken(f"{phase.value}, but nobody may write")
        if self.rules.regions.follows_epochs and region.epoch != world.coordination.epoch:
            raise Broken(f"{phase.value}, but the permit is for another epoch")


def is_end(world: World) -> bool:
    return world.kept.record.phase.is_final


def _with_reply(world: World, reply: Reply | None) -> World:
    return world if reply is None else world._replace(replies=world.replies | {reply})


def _as_read(region: Region) -> Region:
    """Forget what changed since: nobody holds an older view."""
    if region.fence_revision == region.permit_revision == UNCHANGED:
        return region
    return region._replace(fence_revision=UNCHANGED, permit_revision=UNCHANGED)


def _pending_renumbered(pending: Pending, rank: dict[int, int]) -> Pending:
    ask = pending.ask and Ask(rank[pending.ask.token], pending.ask.command)
    view = pending.view._replace(seen=rank[pending.view.seen])
    return Pending(pending.cluster, view, ask)
