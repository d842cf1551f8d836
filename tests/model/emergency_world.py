"""The small world in which `emergency/1` is walked, alone or in place of a planned failover.

Two clusters, each with an etcd, a chain of leases and writers; either may lose sight of the
coordination etcd and come back at any moment. The coordinator is the real machine with the
repository's real transactions; regions decide by `fencing` itself; what may be lost is stated by
the real `loss`. Time is not counted: a lease may run out whenever its region is away, and what is
assumed of the chain (its own tests prove it) is that no permit outlives its holder.

An adversary may cut a cluster off and let it return, lose, delay and repeat messages, let waits
time out, abort, stop a coordinator with a save in its hands, stop a region between its decision and
its commit, and ask for the emergency whenever it likes. `Left` bounds what would not end otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.failover import machine
from coordinator.failover.loss import FenceStatus
from coordinator.failover.record import FENCE, Phase
from meshkit.commands import Command, CommandStep
from meshkit.model import Lineage
from meshkit.names import ClusterName
from tests.model.emergency_records import (
    COMPARED,
    PERMIT_ENDED_MS,
    SEALED,
    Kept,
    Records,
    Reply,
    Save,
    first_authority,
    statement,
)
from tests.model.emergency_state import (
    UNBOUNDED,
    WAITING,
    Ask,
    Coordination,
    Late,
    Left,
    Pending,
    Rules,
    Site,
    World,
    as_read,
    at_place,
    check_bound,
    fact,
    frozen,
    more,
    with_reply,
)
from tests.model.explorer import Broken, Move
from tests.model.records import A, B, other
from tests.model.regions import (
    CHANGED,
    Region,
    check_order,
    supersede,
    with_tokens,
)


class Emergencies:
    """The moves of the world and what must hold in it, under some rules."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.records = Records()

    def first(self, left: Left, *, is_planned: bool = False) -> World:
        """a serves, with a failover to b begun; b has not applied the first write yet."""
        authority = first_authority()
        if is_planned:
            kept = self.records.planned(1, authority)
        else:
            kept = self.records.emergency(1, authority, no_wait=left.no_wait, running=None)
            left = left._replace(emergencies=left.emergencies - 1)
        return World(
            kept=kept,
            revision=2,
            coordination=Coordination(authority, 1, A, True, False, 0, A if left.permit else None),
            a=Site(Region("open", 1, seen=1, permit=int(left.permit)), (1, 1, 1)),
            b=Site(Region("superseded", 1, seen=1), (0, 1, 1)),
            logs=(1, 1, 1),
            known=0,
            reported=0,
            fenced=-1,
            excused=frozenset(),
            asks=frozenset(),
            replies=frozenset(),
            late=None,
            pending=None,
            left=left,
        )

    # --- what may happen ----------------------------------------------------------------------

    def moves(self, world: World) -> Iterator[Move[World]]:
        for every in (self._coordinator, self._late_save, self._operator, self._writers,
                      self._sites, self._leases, self._replication, self._deliveries):  # fmt: skip
            for move in every(world):
                after = move.world
                check_order(world.a.region, after.a.region)
                check_order(world.b.region, after.b.region)
                yield move._replace(world=self.canonical(after))

    # --- the coordinator ----------------------------------------------------------------------

    def _coordinator(self, world: World) -> Iterator[Move[World]]:
        for name, kind, event in self._events(world):
            spent = self._spend(world, kind)
            if spent is None:
                continue
            for after in self.records.advanced(world.kept, event):
                is_fair = kind in ("", "consent", "timeout")
                yield from self._saves(world, spent, name, after, is_fair=is_fair)
        for reply in world.replies:
            for name, after, _ in self.records.replied(world.kept, reply):
                yield from self._saves(world, world, name, after, is_fair=True)

    def _events(self, world: World) -> Iterator[tuple[str, str, machine.Event]]:
        record = world.kept.record
        is_fence = record.awaiting is not None and record.awaiting.step == FENCE
        if is_fence and record.emergency is not None:
            ended = machine.FenceEnded(
                fence=FenceStatus.LEASE_EXPIRED, permit_ended_ms=PERMIT_ENDED_MS
            )
            if world.coordination.holder is None or not self.rules.fence_waits:
                yield "the proof of life is gone", "", ended
            elif record.emergency.no_fence_wait:
                ended = machine.FenceEnded(fence=FenceStatus.UNKNOWN)
                yield "does not wait for the fence", "", ended
        if machine.decide(record) == machine.Perform(step="state_loss"):
            stated = statement(record, reported=world.reported, head_of=record.source)
            yield "states the loss", "", machine.LossStated(statement=stated)
        yield from self.records.own(world.kept)

    def _spend(self, world: World, kind: str) -> World | None:
        names = {"timeout": "timeouts", "bound": "bounds", "abort": "aborts", "resume": "resumes"}
        if kind not in names:
            return world
        left = getattr(world.left, names[kind])
        if not left:
            return None
        return world if left == UNBOUNDED else world.using(**{names[kind]: left - 1})

    def _saves(
        self, world: World, spent: World, name: str, after: Kept, *, is_fair: bool
    ) -> Iterator[Move[World]]:
        saved = self._save(spent, world.revision, world.kept, after)
        if saved is not None:
            yield Move(f"coordinator: {name} -> {after.name}", saved, is_fair=is_fair)
        if spent.left.stalls and world.late is None:
            late = Late(world.revision, world.kept, after)
            stopped = spent._replace(late=late).using(stalls=spent.left.stalls - 1)
            yield Move(f"coordinator is stopped before storing: {name}", stopped)

    def _save(
        self,
        world: World,
        compared: int,
        before: Kept,
        after: Kept,
        superseded: Kept | None = None,
    ) -> World | None:
        """Carry the repository's transaction out; None if a guard does not hold."""
        save = self.records.transaction(before, after, superseded)
        if not self._holds(world, compared, before, save):
            return None
        now, revision = world.coordination, world.revision + 1
        if save.authority is not None:
            now = now._replace(authority=save.authority)
        if save.routing:
            now = now._replace(routing_epoch=save.routing[0], routing_active=save.routing[1])
        if save.seal:
            epoch = after.record.epoch_before if save.seal == "put" else 0
            now = now._replace(is_sealed=save.seal == "put", sealed_epoch=epoch)
        asks = world.asks | {Ask(revision, command) for command in save.commands}
        if save.commands and after.record.awaiting and not after.awaited:
            after = self.records.awaiting(after, revision)
        world = world._replace(
            kept=after,
            revision=revision,
            coordination=now._replace(running=not save.ends),
            asks=asks,
        )
        return self._accounted(world, before, after)

    def _holds(self, world: World, compared: int, before: Kept, save: Save) -> bool:
        now = world.coordination
        actual = {
            "record": world.revision if before.record.id == world.kept.record.id else 0,
            "new": 0,
            "running": 1 if now.running else 0,
            "authority": now.authority.epoch,
            "routing": now.routing_epoch,
            "seal": SEALED if now.is_sealed else 0,
            "holder": 1 if now.holder else 0,
        }
        for key, revision in save.guards:
            wanted = compared if revision == COMPARED else revision
            if actual[key] != wanted and self.rules.saves_compare:
                return False
        return True

    def _accounted(self, world: World, before: Kept, after: Kept) -> World:
        """Note what the promises are about: when the fence held, what was accepted as lost."""
        old, new = before.record, after.record
        emergency = new.emergency
        if emergency is None or new.undoing or new.phase.is_final:
            return world._replace(fenced=-1)
        if emergency.loss is not None and (old.emergency is None or old.emergency.loss is None):
            world = world._replace(known=world.reported)
        is_fenced = emergency.fence not in (None, FenceStatus.UNKNOWN)
        source_epoch = new.epoch_before - 1
        if is_fenced and world.fenced < 0 and not new.authority_moved:
            world = world._replace(fenced=world.logs[source_epoch])
        if new.authority_moved and not old.authority_moved:
            assert emergency.loss is not None, "stated before the pivot"
            if not emergency.loss.target.is_none:
                parent = emergency.stands_on.parent_epoch if emergency.stands_on else 0
                lost = {source_epoch} | ({parent - 1} if parent else set())
                world = world._replace(excused=world.excused | lost)
            check_bound(world, new)
        return world

    def _late_save(self, world: World) -> Iterator[Move[World]]:
        """A deposed coordinator wakes and sends what it had in its hands (S20)."""
        if world.late is None:
            return
        compared, before, after = world.late
        woken = world._replace(late=None)
        saved = self._save(woken, compared, before, after)
        name = "deposed coordinator wakes and stores" if saved else "deposed coordinator in vain"
        yield Move(f"{name}: {after.name}", saved or woken)

    def _operator(self, world: World) -> Iterator[Move[World]]:
        """Begin an emergency, in the place of whatever runs (`coordinator/api/rescuing.py`)."""
        record, now = world.kept.record, world.coordination
        if not world.left.emergencies or now.authority.epoch >= 3:
            return
        is_same = record.emergency is not None and not record.authority_moved
        if not record.phase.is_final and is_same:
            return
        if not self._may_be_target(world, other(now.authority.active)):
            return
        running = None if record.phase.is_final else record
        number = int(record.id[1:]) + 1
        begun = self.records.emergency(
            number, now.authority, no_wait=world.left.no_wait, running=running
        )
        spent = world.using(emergencies=world.left.emergencies - 1)._replace(reported=0, fenced=-1)
        superseded = None
        if running is not None:
            (superseded,) = self.records.advanced(
                world.kept, machine.Superseded(by=begun.record.id)
            )
        saved = self._save(spent, world.revision, world.kept, begun, superseded)
        if saved is None:
            raise Broken("an emergency is locked out")
        yield Move(f"operator: {begun.name}", saved)

    def _may_be_target(self, world: World, cluster: ClusterName) -> bool:
        """What `assess` demands: a complete copy, in the source's epoch or its parent's."""
        region, authority = world.site(cluster).region, world.coordination.authority
        epochs = {int(authority.epoch)}
        if authority.lineage is not None:
            epochs.add(int(authority.lineage.parent_epoch))
        return region.epoch in epochs and region.mode != "open"

    # --- clusters, their leases and their writers ---------------------------------------------

    def _writers(self, world: World) -> Iterator[Move[World]]:
        for cluster in (A, B):
            site = world.site(cluster)
            if site.region.permit and world.left.writes and not site.is_dead:
                at = site.region.permit - 1
                wrote = world.using(writes=world.left.writes - 1)
                wrote = wrote.with_site(cluster, has=more(site.has, at))
                yield Move(
                    f"{cluster} acknowledges a write", wrote._replace(logs=more(world.logs, at))
                )

    def _sites(self, world: World) -> Iterator[Move[World]]:
        for cluster in (A, B):
            site = world.site(cluster)
            if site.is_away:
                back = world.with_site(cluster, is_away=False, is_dead=False)
                yield Move(f"{cluster} is back", back, is_fair=world.left.returns)
            elif world.left.cuts:
                away = world.using(cuts=world.left.cuts - 1).with_site(cluster, is_away=True)
                yield Move(f"{cluster} is cut off", away)
            if not site.is_away and world.left.deaths:
                spent = world.using(deaths=world.left.deaths - 1)
                yield Move(f"{cluster} dies", spent.with_site(cluster, is_away=True, is_dead=True))
            source, at = world.kept.record.source, world.kept.record.epoch_before - 1
            if cluster == source and not site.is_away and world.reported != site.has[at]:
                yield Move(f"{cluster} reports", world._replace(reported=site.has[at]))

    def _leases(self, world: World) -> Iterator[Move[World]]:
        for cluster in (A, B):
            if world.site(cluster).is_away:
                yield from self._runs_out(world, cluster)
            else:
                yield from self._keeps(world, cluster)
        yield from self._late_permit(world)

    def _runs_out(self, world: World, cluster: ClusterName) -> Iterator[Move[World]]:
        site, now = world.site(cluster), world.coordination
        if site.region.permit:
            gone = world.with_site(cluster, region=site.region._replace(permit=0))
            yield Move(f"the permit in {cluster} runs out", gone, is_fair=True)
        is_last = not site.region.permit or not self.rules.permit_ends_before_holder
        if now.holder == cluster and is_last:
            lost = world.with_site(cluster, generation=site.generation + 1)
            lost = lost._replace(coordination=now._replace(holder=None))
            yield Move(f"the holder of {cluster} runs out", lost, is_fair=True)

    def _keeps(self, world: World, cluster: ClusterName) -> Iterator[Move[World]]:
        """A replicator that sees the coordination etcd: obeys it, and keeps what it may."""
        site, now = world.site(cluster), world.coordination
        region, authority = site.region, now.authority
        below = authority.epoch
        if now.is_sealed:
            below = max(below, now.sealed_epoch + 1)
        stopped = supersede(region, below=below, head=at_place(site.has, region.epoch))
        if stopped is not None:
            obeyed = world.with_site(cluster, region=stopped)
            name = f"{cluster} obeys seal or authority by itself"
            yield Move(name, obeyed, is_fair=True)
        is_mine = authority.active == cluster and region.mode == "open"
        if not is_mine or region.epoch != authority.epoch or region.permit:
            return
        if now.is_sealed and self.rules.holder_compares_seal:
            return
        held = world._replace(coordination=now._replace(holder=cluster))
        again = self.rules.regions.permit_again(region, cluster)
        if again is not None:
            put = held.with_site(cluster, region=again)
            yield Move(f"{cluster} makes its holder and puts its permit", put, is_fair=True)
        if world.left.late_commits and world.pending is None:
            pending = Pending(cluster, as_read(region), site.generation)
            stops = held.using(late_commits=world.left.late_commits - 1)
            stops = stops.with_site(cluster, region=as_read(region))._replace(pending=pending)
            yield Move(f"{cluster} makes its holder and stops", stops)

    def _late_permit(self, world: World) -> Iterator[Move[World]]:
        if world.pending is None:
            return
        cluster, view, generation = world.pending
        woken, site = world._replace(pending=None), world.site(cluster)
        is_dead = generation != site.generation and self.rules.permit_needs_its_lease
        after = self.rules.regions.permit_again(site.region, cluster, view=view)
        if after is None or is_dead:
            yield Move(f"the late permit of {cluster} is refused by its etcd", woken)
        else:
            yield Move(
                f"the late permit of {cluster} is put", woken.with_site(cluster, region=after)
            )

    # --- replication --------------------------------------------------------------------------

    def _replication(self, world: World) -> Iterator[Move[World]]:
        """Logs arrive whether or not a cluster sees the coordination etcd."""
        for cluster in (A, B):
            mine, theirs = world.site(cluster), world.site(other(cluster))
            if mine.is_dead or theirs.is_dead:
                continue
            may_apply = (
                {"superseded"} if self.rules.applies_compare_fences else {"superseded", "held"}
            )
            at = mine.region.epoch - 1
            if mine.region.mode in may_apply and mine.has[at] < theirs.has[at]:
                applied = world.with_site(cluster, has=more(mine.has, at))
                yield Move(f"{cluster} applies a write", applied, is_fair=True)
            yield from self._follows(world, cluster)

    def _follows(self, world: World, cluster: ClusterName) -> Iterator[Move[World]]:
        mine, theirs = world.site(cluster), world.site(other(cluster))
        region = mine.region
        lineage = world.coordination.authority.lineage
        if lineage is None or theirs.region.mode == "superseded":
            return
        if region.epoch >= theirs.region.epoch or region.mode not in ("superseded", "drained"):
            return
        if region.mode == "drained":
            # Only if the new epoch stands on exactly our cut; else it must rejoin, later.
            stands = (lineage.parent, lineage.parent_epoch, lineage.sequence)
            if stands != (cluster, region.epoch, region.cut):
                return
        follows = region._replace(
            mode="superseded", epoch=theirs.region.epoch, cut=0, fence_revision=CHANGED
        )
        moved = world.with_site(cluster, region=follows, has=theirs.has)
        yield Move(f"{cluster} follows epoch {theirs.region.epoch}", moved, is_fair=True)

    # --- commands -----------------------------------------------------------------------------

    def _deliveries(self, world: World) -> Iterator[Move[World]]:
        for ask in world.asks:
            command = self.records.commands[ask.command]
            if world.site(command.cluster).is_away:
                continue
            is_fair = ask.token == world.kept.awaited
            if command.step in WAITING:
                reply = self._waited(world, ask, command)
                if reply is not None:
                    heard = world._replace(replies=world.replies | {reply})
                    yield Move(f"{command.cluster} answers {command.step.value}", heard, is_fair)
            elif command.step is CommandStep.FREEZE:
                yield from self._freezes(world, ask, command, is_fair=is_fair)
            else:
                yield from self._obeys(world, ask, command, is_fair=is_fair)

    def _waited(self, world: World, ask: Ask, command: Command) -> Reply | None:
        source = world.site(other(command.cluster))
        site, at = world.site(command.cluster), command.epoch - 1
        if command.step is CommandStep.CATCH_UP:
            return Reply(ask.token, ask.command)
        if command.step is CommandStep.CONVERGE:
            if at_place(site.has, command.epoch) < (command.cut or 0):
                return None
            return Reply(ask.token, ask.command, is_done=site.region.epoch == command.epoch)
        cut = 0
        is_cut = source.region.cut and source.region.epoch == command.epoch
        if is_cut and site.has[at] >= source.has[at]:
            cut = source.region.cut
        return Reply(ask.token, ask.command, cut=cut)

    def _freezes(
        self, world: World, ask: Ask, command: Command, *, is_fair: bool
    ) -> Iterator[Move[World]]:
        who, site = command.cluster, world.site(command.cluster)
        if ask.token < site.region.seen:
            return
        on, after = frozen(site, command, who, token=ask.token)
        if on is None:
            refused = Reply(ask.token, ask.command, is_done=False)
            yield Move(f"{who} refuses freeze", with_reply(world, refused), is_fair)
            return
        reply = Reply(ask.token, ask.command, on=on)
        held = with_reply(world.with_site(who, region=after), reply)
        yield Move(f"{who} freezes", held, is_fair)

    def _obeys(
        self, world: World, ask: Ask, command: Command, *, is_fair: bool
    ) -> Iterator[Move[World]]:
        who, step, now = command.cluster, command.step, world.coordination
        site = world.site(who)
        opens = step in (CommandStep.OPEN, CommandStep.UNDRAIN, CommandStep.RELEASE)
        if opens and ask.token > site.region.seen:
            may = (now.authority.active, now.authority.epoch) == (who, command.epoch)
            if not may or (now.is_sealed and self.rules.holder_compares_seal):
                return
        fit = command.lineage is None or self._is_fit(site, command.lineage)
        kind, after = self.rules.regions.obey(
            site.region,
            command,
            ask.command,
            token=ask.token,
            head=at_place(site.has, site.region.epoch),
            fit=fit,
        )
        if kind == "ignored":
            return
        if kind == "refused":
            refused = Reply(ask.token, ask.command, is_done=False)
            yield Move(f"{who} refuses {step.value}", with_reply(world, refused), is_fair)
            return
        obeyed = world.with_site(who, region=after)
        holder = obeyed.coordination.holder
        if kind == "acted" and after.permit:
            holder = who
        elif step in (CommandStep.DRAIN, CommandStep.SEAL):
            ends = holder == who or not self.rules.answers_end_own_holder
            holder = None if ends else holder
        obeyed = obeyed._replace(coordination=obeyed.coordination._replace(holder=holder))
        reply = fact(ask, command, after)
        again = " again" if kind == "repeated" else ""
        yield Move(f"{who} obeys {step.value}{again}", with_reply(obeyed, reply), is_fair)

    def _is_fit(self, site: Site, lineage: Lineage) -> bool:
        return at_place(site.has, lineage.parent_epoch) >= lineage.sequence

    # --- canonical form -----------------------------------------------------------------------

    def canonical(self, world: World) -> World:
        """Drop messages that can change nothing any more, and number revisions anew."""
        kept, late, pending = world.kept, world.late, world.pending
        news = (kept.awaited, late.after.awaited) if late else (kept.awaited,)
        asks = frozenset(ask for ask in world.asks if self._matters(world, ask, news))
        replies = frozenset(reply for reply in world.replies if reply.token in news)
        a, b = (
            site
            if pending and pending.cluster == cluster
            else site._replace(region=as_read(site.region), generation=0)
            for cluster, site in ((A, world.a), (B, world.b))
        )
        found = {0, 1, world.revision, kept.awaited, a.region.seen, b.region.seen}
        found.update(ask.token for ask in asks)
        found.update(reply.token for reply in replies)
        if late:
            found |= {late.compared, late.after.awaited, late.before.awaited}
        if pending:
            found.add(pending.view.seen)
        rank = {number: index for index, number in enumerate(sorted(found))}
        awaiting = self.records.awaiting
        return world._replace(
            kept=awaiting(kept, rank[kept.awaited]),
            revision=rank[world.revision],
            a=a._replace(region=with_tokens(a.region, rank[a.region.seen])),
            b=b._replace(region=with_tokens(b.region, rank[b.region.seen])),
            asks=frozenset(Ask(rank[token], command) for token, command in asks),
            replies=frozenset(reply._replace(token=rank[reply.token]) for reply in replies),
            late=late
            and Late(
                rank[late.compared],
                awaiting(late.before, rank[late.before.awaited]),
                awaiting(late.after, rank[late.after.awaited]),
            ),
            pending=pending
            and pending._replace(view=with_tokens(pending.view, rank[pending.view.seen])),
        )

    def _matters(self, world: World, ask: Ask, news: tuple[int, ...]) -> bool:
        command = self.records.commands[ask.command]
        if command.step in WAITING:
            return ask.token in news
        seen = world.site(command.cluster).region.seen
        return ask.token > seen or (ask.token == seen and ask.token in news)

    # --- what must hold -----------------------------------------------------------------------

    def check(self, world: World) -> None:
        """The promises that are about single states."""
        record, now = world.kept.record, world.coordination
        a, b = world.a.region, world.b.region
        emergency = record.emergency
        is_unknown = emergency is not None and emergency.fence is FenceStatus.UNKNOWN
        if a.permit and b.permit and not is_unknown and 0 not in world.excused:
            raise Broken("two writers")
        if a.permit and b.permit and a.permit == b.permit:
            raise Broken("two writers in one epoch")
        active = world.site(now.authority.active).region
        if active.permit == now.authority.epoch and now.holder != now.authority.active:
            raise Broken("whoever serves has no proof of life")
        self._check_loss(world)
        moved = record.authority_moved
        expected = (record.epoch_before + moved, record.target if moved else record.source)
        if (now.authority.epoch, now.authority.active) != expected:
            raise Broken("authority does not say what the record says")
        if (now.routing_epoch, now.routing_active) != expected:
            raise Broken("routing moved without authority, or the other way round")
        if now.running is record.phase.is_final:
            raise Broken("the running failover is not the one that runs")
        if record.phase.is_final:
            self._check_serves(world, record.phase)

    def _check_loss(self, world: World) -> None:
        record = world.kept.record
        emergency = record.emergency
        at = record.epoch_before - 1
        if world.fenced >= 0 and world.logs[at] > world.fenced:
            raise Broken("a write was acknowledged behind the fence")
        for cluster in (A, B):
            site = world.site(cluster)
            if site.region.mode != "open":
                continue
            for epoch in range(site.region.epoch):
                if epoch not in world.excused and site.has[epoch] < world.logs[epoch]:
                    raise Broken("an acknowledged write was lost, and nobody had said so")
        target = world.site(record.target)
        if emergency is not None and emergency.stands_on is not None and not record.undoing:
            on = emergency.stands_on
            is_frozen = target.region.mode == "held"
            if is_frozen and target.has[on.parent_epoch - 1] != on.sequence:
                raise Broken("the copy moved after it was frozen")

    def _check_serves(self, world: World, phase: Phase) -> None:
        now = world.coordination
        cluster = now.authority.active
        site = world.site(cluster)
        if now.is_sealed:
            raise Broken(f"{phase.value}, but the seal stands")
        told = [self.records.commands[ask.command] for ask in world.asks]
        will_open = any(
            command.cluster == cluster and command.step in (CommandStep.RELEASE, CommandStep.OPEN)
            for command in told
        )
        if site.region.mode != "open" and not will_open:
            raise Broken(f"{phase.value}, but nobody may write")
        standby = world.site(other(cluster)).region
        will_thaw = any(
            command.cluster == other(cluster) and command.step is CommandStep.THAW
            for command in told
        )
        if standby.mode == "held" and not will_thaw:
            raise Broken(f"{phase.value}, but the standby stays frozen")
