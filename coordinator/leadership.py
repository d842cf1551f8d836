"""What the elected leader does while its term lasts: drive failovers, keep records in order.

Everything runs in one task group per term. The end of the term cancels it all; whatever a
cancelled part had in flight is refused by the term's guard, and a successor goes on from the
records.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn, Protocol

import attrs
import structlog

from coordinator.assess import Assessor, MeshReads
from coordinator.automatic.keeper import AutomaticKeeper
from coordinator.copies import Copies
from coordinator.failover.driver import Driver
from coordinator.failover.past import PastFailovers
from coordinator.failover.precedence import Precedence
from coordinator.failover.record import ActiveFailover, Failover
from coordinator.failover.repository import FailoverRepository
from coordinator.governance.preflight import preview
from coordinator.lookout import Lookout
from coordinator.registry import Registry
from coordinator.rejoin.keeper import Keeper
from coordinator.rescue import Rescue
from coordinator.sameness import until_replaced
from coordinator.term import Term
from fencing.patience import give_way
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.commands import Answer
from meshkit.errors import Compacted, CorruptRecord, MeshError, TermEnded
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import last_part, parts_below
from meshkit.mirror import PrefixMirror
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Revision
from meshkit.store.port import Change, RevisionChanges, Store
from meshkit.store.shared import SharedCommits
from meshkit.store.txn import prefix_range

_log = structlog.get_logger()

RETRY_MS = 500


class Candidate(Protocol):
    """An election as the coordinator uses it. Implemented by `fencing.election.Election`."""

    async def campaign(self) -> Term:
        """Wait for leadership and return the term."""


@attrs.define(kw_only=True, eq=False)
class Leadership:
    """Leads whenever elected, until cancelled."""

    store: Store
    election: Candidate
    clock: Clock
    is_leading: bool = attrs.field(default=False, init=False)

    async def run(self) -> NoReturn:
        """Campaign, lead, and campaign again, until cancelled; resigns on the way out."""
        while True:
            term = await self.election.campaign()
            try:
                self.is_leading = True
                # In a task of its own: a task group whose task fails leaves the task that waits for
                # it marked as being cancelled (Python 3.11), and `give_way` would end this one.
                await asyncio.ensure_future(lead(self.store, term, clock=self.clock))
            except* TermEnded as ended:
                _log.info("leadership.ended", term=term.created_at, why=str(ended.exceptions[0]))
            except* MeshError as failures:
                _log.error("leadership.failed", why=str(failures.exceptions[0]))
            finally:
                self.is_leading = False
                await term.resign()
            give_way()
            await self.clock.sleep_ms(RETRY_MS)


async def lead(store: Store, term: Term, *, clock: Clock) -> None:
    """Drive every failover and keep the records in order, until the term ends.

    Raises:
        ExceptionGroup: of `TermEnded`, or of what made going on impossible.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_until_lost(term))
        tasks.create_task(until_replaced(store, term, clock=clock))
        registry = Registry(store=store, clock=clock, term=term)
        tasks.create_task(_keep_in_order(tasks, store, registry, clock))
        commits = SharedCommits(store=store)
        tasks.create_task(commits.run())
        failovers = FailoverRepository(store=store, clock=clock, term=term, commits=commits)
        copies = Copies(store=store, clock=clock, term=term)
        tasks.create_task(copies.run())
        tasks.create_task(Keeper(store=store, clock=clock, term=term).run())
        crew = Crew(store=store, failovers=failovers, copies=copies, clock=clock, tasks=tasks)
        tasks.create_task(crew.run())
        automatic = AutomaticKeeper(
            store=store, clock=clock, failovers=failovers, lookout=crew.lookout
        )
        tasks.create_task(automatic.run())


async def _until_lost(term: Term) -> NoReturn:
    raise TermEnded(await term.lost())


async def _keep_in_order(
    tasks: asyncio.TaskGroup, store: Store, registry: Registry, clock: Clock
) -> None:
    """Reconcile at the beginning and after each change of a cluster or a group."""
    changed = asyncio.Event()
    for prefix in (Keys.clusters, Keys.groups):
        mirror = PrefixMirror(store, prefix, clock=clock)
        mirror.on_change(lambda _keys: changed.set())
        tasks.create_task(mirror.run())
    changed.set()
    while True:
        await changed.wait()
        changed.clear()
        try:
            await registry.ensure_incarnation()
            await registry.reconcile()
        except TermEnded:
            raise
        except MeshError as error:
            _log.warning("mesh.not_reconciled", why=str(error))
            await clock.sleep_ms(RETRY_MS)
            changed.set()


@attrs.define(kw_only=True, eq=False)
class Crew:
    """One driver per running failover, fed by one watch of failovers and one of answers."""

    store: Store
    failovers: FailoverRepository
    copies: Copies
    clock: Clock
    tasks: asyncio.TaskGroup
    _reads: MeshReads = attrs.field(init=False)
    _by_group: dict[GroupName, dict[FailoverId, Driver]] = attrs.field(factory=dict, init=False)
    _answers: PrefixMirror = attrs.field(init=False)
    lookout: Lookout = attrs.field(init=False)
    """What is seen of sources; shared with what begins failovers by itself."""
    _rescue: Rescue = attrs.field(init=False)
    _precedence: Precedence = attrs.field(init=False)

    @_reads.default
    def _reads_of_the_store(self) -> MeshReads:
        return MeshReads.of(self.store, self.clock)

    @_answers.default
    def _mirror_of_answers(self) -> PrefixMirror:
        return PrefixMirror(self.store, Keys.answers, clock=self.clock)

    @lookout.default
    def _new_lookout(self) -> Lookout:
        return Lookout(store=self.store, clock=self.clock)

    @_rescue.default
    def _new_rescue(self) -> Rescue:
        return Rescue(
            store=self.store,
            failovers=self.failovers,
            lookout=self.lookout,
            clock=self.clock,
        )

    @_precedence.default
    def _new_precedence(self) -> Precedence:
        return Precedence(clock=self.clock)

    async def run(self) -> None:
        """Find running failovers and drive them, until cancelled."""
        self.tasks.create_task(self.lookout.run())
        self.tasks.create_task(self.lookout.holders.run())
        self.lookout.holders.on_change(self._on_answers)
        self._answers.on_change(self._on_answers)
        self.tasks.create_task(self._answers.run())
        await self._answers.ready.wait()
        while True:
            try:
                await self._follow(await self._find_running())
            except Compacted:
                continue
            except TermEnded:
                raise
            except MeshError as error:
                _log.warning("failovers.watch_broken", why=str(error))
                await self.clock.sleep_ms(RETRY_MS)

    async def _find_running(self) -> Revision:
        result = await self.store.range(prefix_range(Keys.groups), keys_only=True)
        groups = [GroupName(last_part(item.key)) for item in result.items]
        for group, failover in (await self.failovers.find_all_active(groups)).items():
            self._drive(group, failover)
        for drivers in self._by_group.values():
            for driver in drivers.values():
                driver.on_gap()
        return result.revision

    async def _follow(self, revision: Revision) -> None:
        start = Revision(revision + 1)
        async with self.store.watch(prefix_range(Keys.failovers), start=start) as items:
            async for item in items:
                if isinstance(item, RevisionChanges):
                    for change in sorted(item.changes, key=lambda change: change.key):
                        self._on_failover(change)

    def _on_failover(self, change: Change) -> None:
        if change.is_delete:
            return
        match parts_below(Keys.failovers, change.key):
            case (group, "active"):
                active = decode(ActiveFailover, change.item.value)
                self._drive(GroupName(group), active.id, is_new=True)
            case (group, "records", failover):
                driver = self._by_group.get(GroupName(group), {}).get(FailoverId(failover))
                if driver is not None:
                    driver.on_record(change.item)

    def _on_answers(self, keys: frozenset[bytes]) -> None:
        for group in {GroupName(last_part(key)) for key in keys}:
            for driver in self._by_group.get(group, {}).values():
                driver.on_answer()

    def _answer_of(self, cluster: ClusterName, group: GroupName) -> Answer | None:
        item = self._answers.entries.get(Keys.answer(cluster, group))
        if item is None:
            return None
        try:
            return decode(Answer, item.value)
        except CorruptRecord as error:
            _log.warning("answer.unreadable", cluster=cluster, group=group, why=str(error))
            return None

    def _drive(self, group: GroupName, failover: FailoverId, *, is_new: bool = False) -> None:
        if failover in self._by_group.get(group, {}):
            return
        driver = Driver(
            group=group,
            failover=failover,
            failovers=self.failovers,
            clock=self.clock,
            answer_of=self._answer_of,
            check_again=self._check_again,
            compare=self.copies.before_failover,
            rescue=self._rescue,
            precedence=self._precedence,
            is_new=is_new,
        )
        self._by_group.setdefault(group, {})[failover] = driver
        self.tasks.create_task(self._run(driver))

    async def _run(self, driver: Driver) -> None:
        try:
            phase = await driver.run()
            _log.info(
                "failover.ended",
                failover_id=driver.failover,
                group=driver.group,
                phase=phase.value if phase else "gone",
            )
            await self._forget_oldest(driver.group)
        finally:
            left = self._by_group[driver.group]
            left.pop(driver.failover, None)
            if not left:
                del self._by_group[driver.group]

    async def _forget_oldest(self, group: GroupName) -> None:
        try:
            past = PastFailovers(
                store=self.store, term=self.failovers.term, commits=self.failovers.commits
            )
            await past.forget_oldest(group)
        except TermEnded:
            raise
        except MeshError as error:
            # The end of the group's next failover tries again.
            _log.warning("failovers.not_forgotten", group=group, why=str(error))

    async def _check_again(self, record: Failover) -> str:
        """Return what stands in the way of a failover at its own first step, or nothing."""
        assessor = Assessor(
            store=self.store, failovers=self.failovers, clock=self.clock, reads=self._reads
        )
        situation = await assessor.situation(record.group, record.target, besides=record.id)
        if situation.authority.epoch != record.epoch_before:
            return f"group {record.group} is in epoch {situation.authority.epoch} by now"
        failed = preview(situation, waivers=record.waivers).failed
        return "; ".join(f"{check.name}: {check.detail}" for check in failed)
