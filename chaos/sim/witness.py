"""Looks at every revision of every etcd as it happens: what must never be so, at no moment.

Each rule is about stored state alone, so it holds whatever the processes believe.
"""

from __future__ import annotations

from typing import TypeVar

import attrs

from chaos.sim.etcd import SimEtcd
from chaos.sim.world import GROUP, PREFIX, World
from coordinator.failover.record import Failover
from coordinator.rejoin.record import Rejoin
from meshkit.codec import Stored, decode
from meshkit.keys import CoordinationKeys, RegionalKeys, parts_below
from meshkit.model import Authority, Holder, Routing
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision
from meshkit.promises import Promise
from meshkit.quarantine import QuarantineEntry
from meshkit.regional import Checkpoint, Fence, FenceMode, GroupCheckpoint, Permit
from meshkit.store.port import Change, RevisionChanges

S = TypeVar("S", bound=Stored)

_GROUP_KEYS = PREFIX.encode()
_QUARANTINE = RegionalKeys.quarantine_of(GROUP)

WRITTEN_AGAIN = b"/last"
"""How the keys end that are written again and again; all others are written once."""


def watch_over(world: World) -> dict[ClusterName, Shadow]:
    """Put a witness beside every etcd; return what they know of the regions."""
    world.coordination.listeners.append(CoordinationWitness(world=world))
    shadows = {name: Shadow() for name in world.etcds}
    for name, etcd in world.etcds.items():
        etcd.listeners.append(RegionWitness(world=world, cluster=name, etcd=etcd, shadows=shadows))
    return shadows


@attrs.define(kw_only=True, eq=False)
class CoordinationWitness:
    """Promises 1 and 6 in the coordination etcd."""

    world: World
    _authority: Authority | None = attrs.field(default=None, init=False)
    _routing: Routing | None = attrs.field(default=None, init=False)
    _holder: Holder | None = attrs.field(default=None, init=False)

    def on_changes(self, changes: RevisionChanges) -> None:
        """Judge one revision."""
        trace = self.world.trace
        self._judge_holder(changes)
        for change in changes.changes:
            trace.count_in(change.key + b"=" + change.item.value)
            if change.is_delete:
                self._judge_delete(change)
            elif change.key == CoordinationKeys.authority(GROUP):
                self._judge_authority(decode(Authority, change.item.value))
            elif change.key == CoordinationKeys.routing(GROUP):
                self._routing = decode(Routing, change.item.value)
            elif change.key.startswith(CoordinationKeys.failover_records(GROUP)):
                self._note_failover(decode(Failover, change.item.value))
            elif change.key.startswith(CoordinationKeys.rejoins):
                self._note_rejoin(decode(Rejoin, change.item.value))
        self._judge_together()

    def _judge_holder(self, changes: RevisionChanges) -> None:
        """An answer takes no proof of life with it but that of the cluster which answers."""
        below = (parts_below(CoordinationKeys.answers, c.key) for c in changes.changes)
        answered = {parts[0] for parts in below if parts is not None}
        for change in changes.changes:
            if change.key != CoordinationKeys.holder(GROUP):
                continue
            before, self._holder = self._holder, None
            if not change.is_delete:
                self._holder = decode(Holder, change.item.value)
            elif before is not None and answered and before.cluster not in answered:
                self._fail(f"an answer of {answered} ended the proof of life of {before.cluster}")

    def _judge_authority(self, now: Authority) -> None:
        before, self._authority = self._authority, now
        self.world.trace.note(
            "coordination", f"authority: epoch {now.epoch} {now.active} token {now.token}"
        )
        if before is None or before == now:
            return
        self.world.moves += 1
        if now.epoch != before.epoch + 1 or now.token <= before.token:
            self._fail(f"authority went from {before} to {now}")

    def _judge_together(self) -> None:
        authority, routing = self._authority, self._routing
        if authority is None or routing is None:
            return
        one = (authority.epoch, authority.token, authority.active)
        other = (routing.epoch, routing.token, routing.active)
        if one != other:
            self._fail(f"routing is half moved: authority {one}, routing {other}")

    def _judge_delete(self, change: Change) -> None:
        if change.key in {CoordinationKeys.authority(GROUP), CoordinationKeys.routing(GROUP)}:
            self._fail(f"{change.key.decode()} was deleted")

    def _note_failover(self, record: Failover) -> None:
        if record.emergency is not None and record.authority_moved:
            self.world.rescues.setdefault(record.id, record)
        problem = record.problem.happened if record.problem else ""
        awaited = record.awaiting.step if record.awaiting else ""
        self.world.trace.note(
            "coordination",
            f"failover {record.id} {record.source}->{record.target}: {record.phase.value} "
            f"#{record.transitions} {awaited} {problem}".rstrip(),
        )
        for listener in self.world.on_transition:
            listener()

    def _note_rejoin(self, record: Rejoin) -> None:
        problem = record.problem.happened if record.problem else ""
        text = f"rejoin {record.id} of {record.cluster}: {record.phase.value} {record.step.name}"
        self.world.trace.note("coordination", f"{text} {problem}".rstrip())
        self.world.rejoins[record.id] = text

    def _fail(self, what: str) -> None:
        self.world.failures.append(what)


@attrs.define(kw_only=True, eq=False)
class Shadow:
    """What a region's etcd holds of the group, kept beside it."""

    content: dict[bytes, bytes] = attrs.field(factory=dict)
    log: list[tuple[Revision, list[tuple[bytes, bytes | None]]]] = attrs.field(factory=list)
    opened: dict[Epoch, Revision] = attrs.field(factory=dict)
    cut: dict[Epoch, Revision] = attrs.field(factory=dict)
    fence: Fence | None = None
    checkpoints: dict[ClusterName, Checkpoint] = attrs.field(factory=dict)
    joins: set[ClusterName] = attrs.field(factory=set)
    own: dict[bytes, bytes] = attrs.field(factory=dict)
    """What was written here and not applied, but for the keys that are written again and again."""
    committed_ns: dict[Revision, int] = attrs.field(factory=dict)
    """When that was, in true time."""
    aside: dict[bytes, set[bytes]] = attrs.field(factory=dict)
    """What is in quarantine here, by key."""
    past: dict[ClusterName, Past] = attrs.field(factory=dict)
    """Of each source: its content as of the sequence that was applied here last."""


@attrs.define(kw_only=True, eq=False)
class Past:
    """A source's content as of some revision, moved forward along its log."""

    content: dict[bytes, bytes] = attrs.field(factory=dict)
    read: int = 0

    def move(self, source: Shadow, until: Revision) -> None:
        """Go to a revision that is not before the last one asked for."""
        log = source.log
        while self.read < len(log) and log[self.read][0] <= until:
            for key, value in log[self.read][1]:
                if value is None:
                    self.content.pop(key, None)
                else:
                    self.content[key] = value
            self.read += 1


@attrs.define(kw_only=True, eq=False)
class RegionWitness:
    """Promises 1 and 4 in one region's etcd."""

    world: World
    cluster: ClusterName
    etcd: SimEtcd
    shadows: dict[ClusterName, Shadow]
    _permit: Permit | None = attrs.field(default=None, init=False)
    """That the revision in hand puts: it is judged by the fence as of that revision's end."""
    _promise: Promise | None = attrs.field(default=None, init=False)
    """What this region has promised and not kept to its end."""

    def on_changes(self, changes: RevisionChanges) -> None:
        """Judge one revision."""
        mine = self.shadows[self.cluster]
        written: list[tuple[bytes, bytes | None]] = []
        applied: Checkpoint | None = None
        is_applied = False
        for change in changes.changes:
            key, value = change.key, change.item.value
            self.world.trace.count_in(key + b"=" + value)
            if key.startswith(_GROUP_KEYS):
                written.append((key, None if change.is_delete else value))
            elif key.startswith(RegionalKeys.checkpoints):
                is_applied = True
                applied = self._take_checkpoint(mine, change) or applied
            else:
                self._take_own_key(mine, change, changes.revision)
        if written:
            self._judge_writes(mine, written, applied=is_applied)
            self._take_writes(mine, written, changes.revision, applied=is_applied)
        if self._permit is not None:
            self._judge_permit(mine, self._permit)
            self._permit = None
        if applied is not None:
            self._judge_copy(mine, applied)

    def _take_own_key(self, mine: Shadow, change: Change, revision: Revision) -> None:
        """Take in what is MeshKit's own and no checkpoint."""
        key, value = change.key, change.item.value
        if key == RegionalKeys.fence(GROUP):
            self._judge_fence(mine, decode(Fence, value))
        elif key == RegionalKeys.permit(GROUP):
            self._permit = None if change.is_delete else decode(Permit, value)
            self._note(f"permit: {f'epoch {self._permit.epoch}' if self._permit else 'gone'}")
        elif key == RegionalKeys.promise(GROUP):
            self._promise = None if change.is_delete else decode(Promise, value)
            self.world.promises += self._promise is not None
        elif key.startswith(RegionalKeys.segments):
            self._take_segment(mine, change, revision)
        elif key.startswith(_QUARANTINE) and not change.is_delete:
            self._take_aside(mine, decode(QuarantineEntry, value))

    def _judge_fence(self, mine: Shadow, now: Fence) -> None:
        before, mine.fence = mine.fence, now
        self._note(f"fence: epoch {now.epoch} {now.mode.value} by {now.step or 'itself'}")
        if before is None:
            return
        if now.epoch < before.epoch or now.command_token < before.command_token:
            self._fail(f"the fence went from {before} to {now}")

    def _judge_writes(
        self, mine: Shadow, written: list[tuple[bytes, bytes | None]], *, applied: bool
    ) -> None:
        """Where the group is active only its writers write, elsewhere only whole applies do."""
        is_open = mine.fence is not None and mine.fence.mode is FenceMode.OPEN
        if written and applied and is_open:
            self._fail(f"something was applied over {written[0][0].decode()}, active here")
        if written and not applied and not is_open:
            self._fail(f"{written[0][0].decode()} was written past the cut, or torn off its apply")

    def _judge_permit(self, mine: Shadow, permit: Permit) -> None:
        fence = mine.fence
        if fence is None or fence.mode is not FenceMode.OPEN or fence.epoch != permit.epoch:
            self._fail(f"{permit} was put under {fence}")

    def _take_segment(self, mine: Shadow, change: Change, revision: Revision) -> None:
        group, epoch, what = change.key.decode().split("/")[-3:]
        if group != GROUP:
            return
        number = Epoch(int(epoch))
        if what == "opened" and not change.is_delete:
            mine.opened[number] = revision
            if self._promise is not None:
                self._fail(f"epoch {number} was opened here in spite of {self._promise}")
        elif what == "cut":
            if change.is_delete:
                mine.cut.pop(number, None)
            else:
                mine.cut[number] = revision

    def _take_checkpoint(self, mine: Shadow, change: Change) -> Checkpoint | None:
        parts = change.key[len(RegionalKeys.checkpoints) :].decode().split("/")
        source = ClusterName(parts[0])
        if len(parts) == 2:
            if change.is_delete:
                mine.joins.discard(source)
                self._note(f"in step with {source}")
            else:
                if source not in mine.joins:
                    join = decode(GroupCheckpoint, change.item.value)
                    self._note(f"out of step with {source}: {join.reason}")
                mine.joins.add(source)
            return None
        if change.is_delete:
            return None
        now = decode(Checkpoint, change.item.value)
        before = mine.checkpoints.get(source)
        if before is not None and now.sequence < before.sequence:
            self._fail(f"the checkpoint of {source} went from {before.sequence} to {now.sequence}")
        mine.checkpoints[source] = now
        return now

    def _take_writes(
        self,
        mine: Shadow,
        written: list[tuple[bytes, bytes | None]],
        revision: Revision,
        *,
        applied: bool,
    ) -> None:
        mine.log.append((revision, written))
        if not applied:
            mine.committed_ns[revision] = self.world.loop.now_ns
        for key, value in written:
            if value is None:
                mine.content.pop(key, None)
                continue
            mine.content[key] = value
            if not applied and not key.endswith(WRITTEN_AGAIN):
                mine.own[key] = value

    def _take_aside(self, mine: Shadow, entry: QuarantineEntry) -> None:
        value = entry.here.inline if entry.here else None
        if value is not None and not entry.key.endswith(WRITTEN_AGAIN):
            mine.aside.setdefault(entry.key, set()).add(value)
            self.world.set_aside += 1
            self._note(f"sets aside {entry.key.decode()} of epoch {entry.epoch}")

    def _judge_copy(self, mine: Shadow, applied: Checkpoint) -> None:
        """Hold the copy against its source as of the very sequence that the checkpoint names."""
        fence = mine.fence
        if fence is None or fence.mode is not FenceMode.SUPERSEDED or mine.joins:
            return
        source = self.shadows[applied.source]
        opened, cut = source.opened.get(fence.epoch), source.cut.get(fence.epoch)
        if opened is None or applied.sequence < opened:
            return
        until = applied.sequence if cut is None else min(applied.sequence, cut)
        past = mine.past.setdefault(applied.source, Past())
        past.move(source, Revision(until))
        if past.content != mine.content:
            differing = sorted(
                key.decode()
                for key in past.content.keys() | mine.content.keys()
                if past.content.get(key) != mine.content.get(key)
            )
            self._fail(
                f"the copy of epoch {fence.epoch} differs from {applied.source}@{until}"
                f" in {len(differing)} keys: {differing[:4]}"
            )

    def _note(self, what: str) -> None:
        self.world.trace.note(f"region {self.cluster}", what)

    def _fail(self, what: str) -> None:
        self.world.failures.append(f"{self.cluster}: {what}")
