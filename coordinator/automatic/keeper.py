"""Looks for groups whose active cluster is gone, and begins what their policy allows.

A thin shell: it reads, has `sight` and `judging` decide, and stores. What it has seen it keeps in
memory, and a successor has to see it for itself; what was begun and acknowledged is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import attrs
import structlog

from coordinator.automatic import beginning
from coordinator.automatic.candidates import Around
from coordinator.automatic.decoded import DecodedMirror
from coordinator.automatic.facts import Known, Seen, facts_of
from coordinator.automatic.judging import Standing, Verdict, judge
from coordinator.automatic.record import AutomaticRecord
from coordinator.automatic.repository import AutomaticRepository
from coordinator.automatic.sight import Look, Sight, blinded, gone_ms, looked, suspected_ms
from coordinator.failover import machine
from coordinator.failover.repository import FailoverRepository
from coordinator.lookout import Lookout, permit_ended_ms
from coordinator.mesh import Mesh, read_at_once, read_mesh
from coordinator.rejoin.record import Rejoin
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import MeshError, TermEnded
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import last_part, parts_below
from meshkit.model import ClusterDescriptor, ClusterIntent, FailoverMode, Group
from meshkit.names import ClusterName, GroupName
from meshkit.store.port import Store, StoreStatus
from meshkit.store.txn import Get, KeyValue, prefix_range

_log = structlog.get_logger()

LOOK_MS = 1_000
AT_ONCE_MAX = 200
"""How many groups are judged between two looks, and acted upon side by side."""
STORE_AGAIN_MS = 10_000
"""What withholds a failover of a group is stored at most so often."""


@attrs.define(kw_only=True, eq=False)
class AutomaticKeeper:
    """Keeps looking while a term lasts."""

    store: Store
    clock: Clock
    failovers: FailoverRepository
    lookout: Lookout
    _groups: DecodedMirror[Group] = attrs.field(init=False)
    _records: DecodedMirror[AutomaticRecord] = attrs.field(init=False)
    _repository: AutomaticRepository = attrs.field(init=False)
    _sight: Sight = attrs.field(factory=Sight, init=False)
    _stored_ms: dict[GroupName, int] = attrs.field(factory=dict, init=False)
    _judged_ms: dict[GroupName, int] = attrs.field(factory=dict, init=False)
    """Of groups that are due by time or withheld: when each was judged last."""

    def __attrs_post_init__(self) -> None:
        self._repository = AutomaticRepository(
            store=self.store,
            clock=self.clock,
            term=self.failovers.term,
            commits=self.failovers.commits,
        )
        self._groups = DecodedMirror(Group, self.store, Keys.groups, clock=self.clock)
        self._records = DecodedMirror(
            AutomaticRecord, self.store, Keys.automatics, clock=self.clock
        )

    async def run(self) -> None:
        """Look again and again, until cancelled.

        Raises:
            TermEnded: another coordinator leads.
        """
        async with asyncio.TaskGroup() as tasks:
            for each in (self._groups, self._records):
                tasks.create_task(each.mirror.run())
            for each in (self._groups, self._records):
                await each.mirror.ready.wait()
            while True:
                is_done = True
                try:
                    is_done = await self.look()
                except TermEnded:
                    raise
                except MeshError as error:
                    self._sight = blinded(self._sight, f"the coordination etcd: {error}")
                    _log.warning("automation.blind", why=str(error))
                if is_done:
                    await self.clock.sleep_ms(LOOK_MS)

    async def look(self) -> bool:
        """Look once, and do what is due; False if not all that is due was judged yet.

        Not everything between two looks: many groups would take so long that nothing was seen.
        """
        automatic = {
            group.name: group.policy.automatic_after_ms
            for group in self._groups.records.values()
            if group.policy.failover is FailoverMode.AUTOMATIC
        }
        if not automatic:
            self._sight = Sight()
            return True
        look, status = await self._read(automatic)
        self._sight = looked(self._sight, look)
        withheld = {r.group for r in self._records.records.values() if r.withheld is not None}
        due = {
            group
            for group in look.missing
            if suspected_ms(self._sight, group, look) >= automatic[group]
        }
        concerned = sorted(
            automatic.keys() & (due | withheld), key=lambda g: (self._judged_ms.get(g, -1), g)
        )
        self._judged_ms = {g: t for g, t in self._judged_ms.items() if g in concerned}
        some = concerned[:AT_ONCE_MAX]
        if some:
            await self._judge(some, look, status)
            self._judged_ms |= dict.fromkeys(some, self.clock.now_ms())
        return all(group in self._judged_ms for group in concerned)

    # --- looking -------------------------------------------------------------------------------

    async def _read(self, automatic: Iterable[GroupName]) -> tuple[Look, StoreStatus]:
        began_ms = self.clock.now_ms()
        gets = (
            Get(*prefix_range(Keys.clusters)),
            Get(*prefix_range(Keys.statuses), keys_only=True),
            Get(*prefix_range(Keys.holders), keys_only=True),
            Get(*prefix_range(Keys.authorities), keys_only=True),
        )
        _, (clusters, statuses, holders, authorities) = await read_at_once(self.store, gets)
        status = await self.store.status()
        held = {last_part(item.key) for item in holders}
        known = {GroupName(last_part(item.key)): item.mod_revision for item in authorities}
        described = [decode(ClusterDescriptor, item.value) for item in clusters]
        look = Look(
            began_ms=began_ms,
            ended_ms=self.clock.now_ms(),
            raft_term=status.raft_term,
            missing={g: known[g] for g in automatic if g in known and g not in held},
            regions=frozenset(
                d.name for d in described if d.intent is not ClusterIntent.MAINTENANCE
            ),
            reporting=frozenset(_reporting(statuses)),
        )
        return look, status

    # --- judging -------------------------------------------------------------------------------

    async def _judge(self, groups: list[GroupName], look: Look, status: StoreStatus) -> None:
        mesh = await read_mesh(self.store)
        rejoins = await self._repository.rejoins()
        known = await self._repository.known(
            [group for group in groups if group in mesh.authorities]
        )
        acts: list[Callable[[], Awaitable[None]]] = []
        for group, each in known.items():
            if group not in mesh.groups or each.tip.revision > mesh.revision:
                continue
            seen = Seen(
                is_missing=group in look.missing,
                gone_ms=gone_ms(self._sight, group, look),
                suspected_ms=suspected_ms(self._sight, group, look),
                why_anew=self._sight.why_anew,
            )
            around = self._around(group, mesh, status, rejoins)
            verdict = judge(facts_of(each, around, seen))
            acts.append(partial(self._act, each, mesh, verdict, seen))
        await _all(act() for act in acts)

    def _around(
        self, group: GroupName, mesh: Mesh, status: StoreStatus, rejoins: tuple[Rejoin, ...]
    ) -> Around:
        """Return what is known beside the group, with when its permit had surely ended."""
        sight = self.lookout.sight(mesh.authorities[group].record.active, group)
        now_ms, wall_ms = self.clock.now_ms(), self.clock.wall_ms()
        return Around(
            mesh=mesh,
            coordination=status,
            rejoins=rejoins,
            head=sight.head,
            permit_ended_ms=permit_ended_ms(sight, ended_ms=now_ms, now_ms=now_ms, wall_ms=wall_ms),
            now_ms=wall_ms,
        )

    # --- acting --------------------------------------------------------------------------------

    async def _act(self, known: Known, mesh: Mesh, verdict: Verdict, seen: Seen) -> None:
        """Do what follows about one group; what moved meanwhile is looked at again."""
        try:
            if verdict.standing is Standing.DUE and verdict.target is not None:
                await self._begin(known, mesh, verdict.target, seen)
            elif verdict.standing is Standing.WITHHELD:
                await self._withhold(known, mesh, verdict)
            elif known.record.withheld is not None and not seen.is_missing:
                after, act = beginning.clearing(known, "there is a proof of life again")
                await self._repository.save(known, after, acts=[act])
        except TermEnded:
            raise
        except MeshError as error:
            _log.info("automation.overtaken", group=known.group, why=str(error))

    async def _begin(self, known: Known, mesh: Mesh, target: ClusterName, seen: Seen) -> None:
        record = beginning.record_of(mesh, known, target, gone_ms=seen.gone_ms)
        begun = machine.begin(record, now_ms=self.clock.wall_ms())
        acts = [beginning.began(begun, gone_ms=seen.gone_ms)]
        beside = beginning.beside(mesh, known, begun)
        await self.failovers.begin(begun, acts=acts, beside=beside)
        _log.warning(
            "automation.began",
            group=known.group,
            failover_id=record.id,
            source=record.source,
            target=target,
            gone_ms=seen.gone_ms,
        )

    async def _withhold(self, known: Known, mesh: Mesh, verdict: Verdict) -> None:
        now_ms = self.clock.now_ms()
        stored_ms = self._stored_ms.get(known.group)
        if stored_ms is not None and now_ms - stored_ms < STORE_AGAIN_MS:
            return
        change = beginning.withholding(known, mesh, verdict.reasons, now_ms=self.clock.wall_ms())
        if change is None:
            return
        after, act = change
        await self._repository.save(known, after, acts=[act])
        self._stored_ms[known.group] = now_ms
        why = [reason.detail for reason in verdict.reasons]
        _log.warning("automation.withheld", group=known.group, why=why)


async def _all(acts: Iterable[Awaitable[None]]) -> None:
    """Await all of them, and raise the first error only when all have ended."""
    results = await asyncio.gather(*acts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _reporting(statuses: Iterable[KeyValue]) -> Iterable[ClusterName]:
    """Yield the regions whose leading replicator reports."""
    for item in statuses:
        match parts_below(Keys.statuses, item.key):
            case (cluster, "health"):
                yield ClusterName(cluster)
            case _:
                continue
