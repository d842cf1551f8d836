"""A mesh of memory stores, streams and links in one process, moved by one manual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

import attrs

from fencing import fence as fences
from fencing.fence_view import FenceView, view_of, view_reads
from meshkit.clock import ManualClock, settle
from meshkit.codec import decode, encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import CoordinationKeys, RegionalKeys, parts_below
from meshkit.mirror import PrefixMirror
from meshkit.model import Group, Lineage
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence, Token
from meshkit.regional import Attachment, Checkpoint, Fence, FenceMode, PartsCheckpoint
from meshkit.store.memory import Faults, MemoryStore
from meshkit.store.port import RevisionChanges
from meshkit.store.txn import Committed, Delete, KeyValue, Put, Txn, absent, prefix_range
from replicator.agent_ports import Region as AgentRegion
from replicator.attachments import place_of
from replicator.group_leases import GroupLeases
from replicator.inbound import Inbound
from replicator.limits import Limits
from replicator.link.lossy import MemoryNetwork
from replicator.outbound import Outbound
from replicator.reversal import Reversal
from replicator.segments import SegmentMap

A, B, C = ClusterName("a"), ClusterName("b"), ClusterName("c")
G, H, K = GroupName("orders"), GroupName("users"), GroupName("stock")
PREFIXES: Mapping[GroupName, tuple[str, ...]] = {
    G: ("/orders/",),
    H: ("/users/", "/accounts/"),
    K: ("/stock/",),
}
ALWAYS = absent(b"/never/there")

SMALL = Limits(
    frame_bytes_max=400,
    frame_writes_max=6,
    window_bytes_max=4000,
    side_window_bytes_max=1500,
    batch_writes_max=12,
    batch_bytes_max=1200,
    page_keys_max=3,
    page_bytes_max=200,
    redial_ms_max=200,
    checkpoint_idle_ms=500,
)
"""Limits so small that every one of them is met in a short test."""


@attrs.define(eq=False)
class Region:
    """One cluster: its store and, while it runs, its streams."""

    name: ClusterName
    store: MemoryStore
    outbound: Outbound
    inbound: Inbound | None = None
    tasks: list[asyncio.Task[None]] = attrs.field(factory=list)

    async def state(self, prefix: bytes) -> dict[bytes, bytes]:
        found = await self.store.range(prefix_range(prefix))
        return {item.key: item.value for item in found.items}

    def checkpoint(self, source: ClusterName) -> Checkpoint | None:
        item = self.store.server.history.lookup(RegionalKeys.checkpoint(source))
        return decode(Checkpoint, item.value) if item else None

    def fence(self, group: GroupName) -> Fence | None:
        item = self.store.server.history.lookup(RegionalKeys.fence(group))
        return decode(Fence, item.value) if item else None

    def is_out_of_step(self, group: GroupName) -> bool:
        live = self.store.server.history.live(prefix_range(RegionalKeys.checkpoints))
        return any(i.key.endswith(f"/{group}".encode()) and i.key.count(b"/") == 5 for i in live)


class Mesh:
    """Regions that all stream from each other, with commands as the coordinator would give them."""

    def __init__(
        self,
        *names: ClusterName,
        limits: Limits = SMALL,
        seed: int = 0,
        faults: Callable[[ClusterName], Faults | None] = lambda _: None,
    ) -> None:
        self.faults = faults
        self.clock = ManualClock()
        self.coordination = MemoryStore(clock=self.clock)
        self.network = MemoryNetwork()
        self.limits = limits
        self.seed = seed
        self.tokens = 10
        self.active: dict[GroupName, ClusterName] = {}
        self.epochs: dict[GroupName, int] = {}
        self.lineages: dict[GroupName, Lineage | None] = {}
        self.regions = {name: self._region(name) for name in names}

    def _region(self, name: ClusterName) -> Region:
        store = MemoryStore(clock=self.clock)
        return Region(name, store, self.outbound_over(name, store))

    def outbound_over(self, name: ClusterName, store: MemoryStore) -> Outbound:
        """Return the source's side of a new replicator."""
        return Outbound(
            store=store.connect(),
            clock=self.clock,
            cluster=name,
            incarnation=Incarnation(f"{name}-1"),
            limits=self.limits,
        )

    def __getitem__(self, name: ClusterName) -> Region:
        return self.regions[name]

    # --- running -------------------------------------------------------------------------------

    async def start(self, *names: ClusterName) -> None:
        for name in names or tuple(self.regions):
            region = self.regions[name]
            inbound = Inbound(
                store=region.store.connect(faults=self.faults(name)),
                clock=self.clock,
                cluster=name,
                dialer=self.network.dialer(name),
                limits=self.limits,
                rng=random.Random(self.seed),
            )
            inbound.set_sources({other: (f"{other}:1",) for other in self.regions})
            region.inbound = inbound
            loop = asyncio.get_running_loop()
            region.tasks = [
                loop.create_task(region.outbound.run()),
                loop.create_task(inbound.run()),
            ]
            self.network.listen(f"{name}:1", region.outbound.serve)
        await settle()

    async def stop(self, *names: ClusterName) -> None:
        for name in names or tuple(self.regions):
            region = self.regions[name]
            self.network.hang_up(f"{name}:1")
            for task in region.tasks:
                task.cancel()
            results = await asyncio.gather(*region.tasks, return_exceptions=True)
            region.tasks = []
            region.inbound = None
            for connection in self.network.connections:
                if name in (connection.source, connection.target):
                    connection.break_off()
            for result in results:
                assert isinstance(result, asyncio.CancelledError), result
        await settle()

    async def close(self) -> None:
        await self.stop()
        await self.network.close()

    async def until(self, claim: Callable[[], bool], *, within_ms: int = 60_000) -> None:
        deadline_ms = self.clock.now_ms() + within_ms
        while not claim():
            assert self.clock.now_ms() < deadline_ms, self.explain()
            await self.clock.advance_ms(10)

    def explain(self) -> str:
        lines = []
        for name, region in self.regions.items():
            fences_here = [
                f"{g} {f.mode.value} {f.epoch}" for g in PREFIXES if (f := region.fence(g))
            ]
            problems = region.inbound.problems() if region.inbound else "stopped"
            live = region.store.server.history.live(prefix_range(RegionalKeys.checkpoints))
            checkpoints = [item.value.decode() for item in live]
            lines.append(f"{name}: {fences_here} {problems} {checkpoints}")
        return "\n".join(lines)

    # --- what the agents do --------------------------------------------------------------------

    def token(self) -> Token:
        self.tokens += 1
        return Token(incarnation=1, revision=Revision(self.tokens))

    async def view(self, at: ClusterName, group: GroupName) -> FenceView:
        outcome = await self[at].store.commit(Txn(operations=view_reads(group)))
        assert isinstance(outcome, Committed)
        return view_of(group, outcome.reads)

    def made(self, step: CommandStep, at: ClusterName, group: GroupName, epoch: int) -> Command:
        """Return a command as the coordinator would make it."""
        return Command(
            group=group,
            cluster=at,
            step=step,
            incarnation=1,
            epoch=Epoch(epoch),
            failover=FailoverId("f"),
            source=self.active.get(group),
            lineage=self.lineages.get(group),
        )

    async def command(
        self, step: CommandStep, at: ClusterName, group: GroupName, *, epoch: int
    ) -> Revision:
        token, command = self.token(), self.made(step, at, group, epoch)
        lease = await self[at].store.grant(ttl_s=10**7)
        decision = fences.decide(
            await self.view(at, group),
            command,
            token,
            leader=ALWAYS,
            lease=lease.lease_id,
            prefixes=PREFIXES[group],
        )
        assert isinstance(decision, fences.Act), decision
        outcome = await self[at].store.commit(decision.txn)
        assert isinstance(outcome, Committed), outcome
        return outcome.revision

    async def found(self, group: GroupName, at: ClusterName) -> None:
        """Open the group's first epoch, and make the others members of it."""
        self.active[group], self.epochs[group], self.lineages[group] = at, 1, None
        await self.command(CommandStep.OPEN, at, group, epoch=1)
        for name in self.regions:
            if name != at:
                await self.join(name, group)

    async def join(self, at: ClusterName, group: GroupName) -> None:
        txn = fences.join(
            await self.view(at, group),
            source=self.active[group],
            epoch=Epoch(self.epochs[group]),
            leader=ALWAYS,
            reason="new member",
        )
        assert isinstance(await self[at].store.commit(txn), Committed)
        inbound = self[at].inbound
        if inbound is not None:
            inbound.refresh()

    async def drain(self, group: GroupName) -> Sequence:
        at = self.active[group]
        cut = await self.command(CommandStep.DRAIN, at, group, epoch=self.epochs[group])
        return Sequence(cut)

    async def undrain(self, group: GroupName) -> None:
        at = self.active[group]
        await self.command(CommandStep.UNDRAIN, at, group, epoch=self.epochs[group])

    async def pivot(self, group: GroupName, to: ClusterName, cut: Sequence) -> None:
        """Open the next epoch at `to`, which has to have applied the cut."""
        parent = self.active[group]
        self.lineages[group] = Lineage(
            parent=parent,
            parent_incarnation=Incarnation(f"{parent}-1"),
            parent_epoch=Epoch(self.epochs[group]),
            sequence=cut,
            prefixes=PREFIXES[group],
        )
        self.active[group] = to
        self.epochs[group] += 1
        await self.command(CommandStep.OPEN, to, group, epoch=self.epochs[group])

    def has_applied(self, at: ClusterName, group: GroupName, source: ClusterName, cut: int) -> bool:
        own = self[at].checkpoint(source)
        fence = self[at].fence(group)
        is_following = fence is not None and fence.epoch == self.epochs[group]
        is_there = own is not None and own.sequence >= cut
        return is_there and is_following and not self[at].is_out_of_step(group)

    async def move(self, group: GroupName, to: ClusterName) -> None:
        """Carry out a planned failover."""
        source = self.active[group]
        cut = await self.drain(group)
        await self.until(lambda: self.has_applied(to, group, source, cut))
        leases = self.leases(to)
        await leases.grant(self.made(CommandStep.CONVERGE, to, group, self.epochs[group]))
        await self.pivot(group, to, cut)
        fence = self[to].fence(group)
        assert fence is not None
        await leases.hang(fence)
        await self.reverse(group, source)

    def leases(self, at: ClusterName) -> GroupLeases:
        """Return what carries leases along at a cluster; without a policy of any group."""
        region = AgentRegion(
            cluster=at,
            incarnation=Incarnation(f"{at}-1"),
            replicator=f"{at}-0",
            leader=ALWAYS,
            regional=self[at].store.connect(),
            coordination=self.coordination,
            clock=self.clock,
        )
        groups = PrefixMirror(self.coordination, CoordinationKeys.groups, clock=self.clock)
        for name, prefixes in PREFIXES.items():
            group = Group(name=name, prefixes=prefixes, members=tuple(self.regions))
            key = CoordinationKeys.group(name)
            groups.entries[key] = self_made(key, encode(group))
        return GroupLeases(region, groups)

    async def reverse(self, group: GroupName, at: ClusterName) -> None:
        """Make the old active cluster follow the new one, as its agent does."""
        to, epoch = self.active[group], self.epochs[group]
        await self.command(CommandStep.REVERSE, at, group, epoch=epoch)
        await self.until(lambda: self.has_applied(at, group, to, 0))
        reversal = Reversal(
            regional=self[at].store.connect(),
            leader=ALWAYS,
            group=group,
            now_ms=self.clock.now_ms(),
            prefixes=tuple(prefix.encode() for prefix in PREFIXES[group]),
        )
        command = self.made(CommandStep.REVERSE, at, group, epoch)
        await self.leases(at).leave(command, await reversal.detach_leases(to))

    # --- writing and comparing -----------------------------------------------------------------

    async def write(self, at: ClusterName, writes: Mapping[str, str | None]) -> Revision:
        operations = tuple(
            Delete(key.encode()) if value is None else Put(key.encode(), value.encode())
            for key, value in writes.items()
        )
        outcome = await self[at].store.commit(Txn(operations=operations))
        assert isinstance(outcome, Committed)
        return outcome.revision

    def scope(
        self, name: ClusterName, group: GroupName, revision: int | None = None
    ) -> dict[bytes, bytes]:
        history = self[name].store.server.history
        found = {}
        for prefix in PREFIXES[group]:
            at = Revision(revision) if revision is not None else None
            for item in history.live(prefix_range(prefix.encode()), revision=at):
                found[item.key] = item.value
        return found

    def is_converged(self, *groups: GroupName) -> bool:
        for group in groups or tuple(self.active):
            expected = self.scope(self.active[group], group)
            for name, region in self.regions.items():
                fence = region.fence(group)
                if (
                    fence is None
                    or fence.epoch != self.epochs[group]
                    or region.is_out_of_step(group)
                ):
                    return False
                if self.scope(name, group) != expected:
                    return False
        return True

    async def converge(self, *groups: GroupName, within_ms: int = 60_000) -> None:
        await self.until(lambda: self.is_converged(*groups), within_ms=within_ms)

    def joins_made(self, at: ClusterName, source: ClusterName, group: GroupName) -> int:
        """How often the group has fallen out of step with the source's stream."""
        key = RegionalKeys.group_checkpoint(source, group)
        made, there = 0, False
        for changes in self[at].store.server.history._log:
            for change in changes.changes:
                if change.key == key:
                    made += not change.is_delete and not there
                    there = not change.is_delete
        return made

    def attached(self, at: ClusterName, group: GroupName) -> dict[bytes, tuple[int, int]]:
        """What is stored at a passive cluster: key to lease and its TTL."""
        live = self[at].store.server.history.live(prefix_range(RegionalKeys.attachments_of(group)))
        stored = [decode(Attachment, item.value) for item in live]
        places = [place_of(group, one.key) for one in stored]
        assert [item.key for item in live] == sorted(places)
        return {one.key: (one.lease, one.ttl_s) for one in stored}

    def leased(self, at: ClusterName, group: GroupName) -> dict[bytes, tuple[int, int]]:
        """Which keys hang on a lease of this etcd: key to lease and its TTL."""
        server, found = self[at].store.server, {}
        for prefix in PREFIXES[group]:
            for item in server.history.live(prefix_range(prefix.encode())):
                if item.lease:
                    found[item.key] = (item.lease, server.lease_ttl(item.lease).granted_s)
        return found

    def knows_leases(self) -> bool:
        """Return whether keys hang on leases only where they are active, and all copies know it."""
        for group, active in self.active.items():
            known = {name: self.attached(name, group) for name in self.regions if name != active}
            truth = self.leased(active, group)
            if self.attached(active, group) or any(k != truth for k in known.values()):
                return False
            if any(self.leased(name, group) for name in known):
                return False
        return True

    def check_history(self) -> int:
        """Every stored checkpoint must tell the truth about every group in step; returns how many."""
        return sum(_check_region(self, region) for region in self.regions.values())


def self_made(key: bytes, value: bytes) -> KeyValue:
    one = Revision(1)
    return KeyValue(key=key, value=value, mod_revision=one, create_revision=one, version=1)


def _check_region(mesh: Mesh, target: Region) -> int:
    checked = 0
    fences_here: dict[GroupName, Fence] = {}
    joins: set[tuple[str, str]] = set()
    torn: dict[str, frozenset[GroupName]] = {}
    log: list[RevisionChanges] = target.store.server.history._log
    for changes in log:
        moved: list[Checkpoint] = []
        for change in changes.changes:
            below = parts_below(RegionalKeys.checkpoints, change.key)
            if below is not None and len(below) == 2:
                (joins.discard if change.is_delete else joins.add)((below[0], below[1]))
            elif below is not None and len(below) == 3:
                torn.pop(below[0], None)
                if not change.is_delete:
                    torn[below[0]] = frozenset(decode(PartsCheckpoint, change.item.value).cursors)
            elif below is not None and not change.is_delete:
                moved.append(decode(Checkpoint, change.item.value))
            elif parts_below(RegionalKeys.fences, change.key) is not None:
                fence = decode(Fence, change.item.value)
                fences_here[fence.group] = fence
        for checkpoint in moved:
            for group, fence in fences_here.items():
                is_out = any(j[1] == group for j in joins) or any(group in t for t in torn.values())
                if fence.mode is not FenceMode.SUPERSEDED or is_out:
                    continue
                checked += _check_group(mesh, target, group, fence, checkpoint, changes.revision)
    return checked


def _check_group(
    mesh: Mesh,
    target: Region,
    group: GroupName,
    fence: Fence,
    checkpoint: Checkpoint,
    revision: int,
) -> int:
    history = mesh[checkpoint.source].store.server.history
    segments_range = prefix_range(RegionalKeys.segments)
    if min(checkpoint.sequence, revision) < max(
        history.compact_revision, target.store.server.history.compact_revision
    ):
        return 0
    stored = history.live(segments_range, revision=Revision(checkpoint.sequence))
    segment = SegmentMap.from_items(stored).newest(group)
    if segment is None or segment.epoch != fence.epoch:
        return 0
    truth_at = segment.cut or checkpoint.sequence
    if truth_at < history.compact_revision:
        return 0
    truth = mesh.scope(checkpoint.source, group, truth_at)
    here = mesh.scope(target.name, group, revision)
    assert here == truth, (
        f"{target.name}@{revision} is not {checkpoint.source}@{checkpoint.sequence} in {group}:"
        f" {sorted(set(here.items()) ^ set(truth.items()))}"
    )
    return 1
