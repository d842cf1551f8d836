"""What the leading replicator of a region runs while its term lasts.

Everything here is made anew for each term, so nothing a deposed leader remembered can act. The
leases of the chain are stored and live on: a successor adopts them, and writes do not stop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterable, Mapping
from typing import TypeVar

import attrs
import structlog

from fencing.chain import Chain
from fencing.patience import within
from fencing.term import Term
from fencing.timing import Timing
from meshkit.asker import AskRegion, NobodyToAsk
from meshkit.clock import Clock
from meshkit.codec import Stored, decode
from meshkit.errors import CorruptRecord
from meshkit.incarnations import Adoption
from meshkit.keys import CoordinationKeys
from meshkit.mirror import PrefixMirror
from meshkit.model import ClusterDescriptor, Fidelity, Group
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Incarnation
from meshkit.store.port import Store
from meshkit.store.txn import KeyValue
from replicator.access import AccessFence, NoAccessFence
from replicator.agent import Agent
from replicator.agent_ports import Region
from replicator.compaction import CompactionRule
from replicator.compactor import Compactor
from replicator.comparer import Comparer
from replicator.desk import Desk
from replicator.elsewhere import Elsewhere
from replicator.examiner import Examiner
from replicator.foreign_watch import ForeignWatch
from replicator.identity import Identity
from replicator.inbound import Inbound
from replicator.limits import Limits
from replicator.link.port import Dialer
from replicator.local_history import LocalHistory
from replicator.outbound import Outbound
from replicator.own_incarnation import region_incarnation
from replicator.pausing import Pauses, Standstill
from replicator.promises import AskedPromises
from replicator.quarantine_count import QuarantineCount
from replicator.replayer import Replayer
from replicator.reporter import Reporter
from replicator.shared_watch import WatchAll
from replicator.sharing import Sharing
from replicator.spool.spooler import SpoolSettings
from replicator.together import together
from replicator.upkeep import Upkeep
from replicator.verifier import Verifier

_log = structlog.get_logger()

S = TypeVar("S", bound=Stored)


@attrs.frozen(kw_only=True)
class Home:
    """What does not change from term to term: who this process is and what it speaks to."""

    cluster: ClusterName
    replicator: str
    regional: Store
    coordination: Store
    dialer: Dialer
    timing: Timing
    clock: Clock
    limits: Limits
    access: AccessFence = attrs.field(factory=NoAccessFence)
    asker: AskRegion = attrs.field(factory=NobodyToAsk)
    promise_asker: AskRegion | None = None
    """Asks for promises, every second while they are needed; None: as everything else is asked."""
    certificate_not_after_ms: int | None = None
    spool: SpoolSettings | None = None
    compaction: CompactionRule | None = None
    """By which the region's etcd is compacted; None: not by us."""
    rng: random.Random = attrs.field(factory=random.SystemRandom)
    """Spreads redials, and names the history of an etcd that is led for the first time."""


class Leadership:
    """One term's agent, streams, chain and reports."""

    def __init__(
        self,
        home: Home,
        term: Term,
        incarnation: Incarnation,
        history: LocalHistory,
        identity: Identity,
    ) -> None:
        self._identity = identity
        self._history = history
        self._term = term
        self._home = home
        self._chain_ended = asyncio.Event()
        clock, cluster = home.clock, home.cluster
        region = _region(home, term, incarnation)
        self._sharing = Sharing.of(regional=home.regional, coordination=home.coordination)
        self._pauses = Pauses(home.coordination, clock)
        self.outbound = _outbound(home, term, incarnation, history, self._pauses)
        self.examiner = _examiner(home, term, incarnation)
        self.desk = Desk(
            store=home.regional,
            leader=term.guard(),
            clock=clock,
            is_leading=term.is_held,
            on_sealed=lambda *of: self.upkeep.stopping.obey_told_seal(*of),  # noqa: PLW0108 - made later
        )
        watch = self.outbound.shared_watch.watch
        self.inbound = _inbound(home, term, self._pauses, watch)
        self.chain = Chain(
            cluster=cluster,
            replicator=home.replicator,
            coordination=home.coordination,
            regional=home.regional,
            term=term,
            timing=home.timing,
            clock=clock,
            obey=self._obey_authority,
            on_sealed=lambda *of: self.upkeep.stopping.obey_seal(*of),  # noqa: PLW0108 - made later
            promises=self._promises(),
            holders=self._sharing.coordination,
        )
        hand = self._sharing.region(region)
        self._foreign = ForeignWatch(region, self._member_groups, watch=watch)
        self.agent = Agent(
            hand,
            chain=self.chain,
            inbound=self.inbound,
            outbound=self.outbound,
            elsewhere=Elsewhere(asker=home.asker, endpoints=self._endpoints),
            local=self._foreign,
        )
        self._standstill = self._still(region)
        self._replayer = Replayer(region, self.inbound, authorities=self.agent.authorities)
        self.upkeep = Upkeep(
            hand, self.agent, chain=self.chain, here=self.inbound.mirror, alone=region
        )
        self.agent.groups.on_change(lambda _: self._foreign.regroup())
        self._quarantined = QuarantineCount(region, self.upkeep.member_groups)
        self.reporter = self._reporter(region)
        self._clusters = PrefixMirror(home.coordination, CoordinationKeys.clusters, clock=clock)
        self._adoptions = PrefixMirror(home.coordination, CoordinationKeys.adoptions, clock=clock)
        self.verifier = Verifier(region, self._comparer(), on_join=self.inbound.refresh)

    def _reporter(self, region: Region) -> Reporter:
        return Reporter(
            region,
            self.upkeep,
            streams=self.outbound,
            leases=self.chain,
            inbound_problems=self.inbound.problems,
            foreign=self._foreign,
            obstacles=self.agent.leases.obstacles.found,
            identity=self._identity,
            quarantined=self._quarantined.of,
            history=self._history,
            certificate_not_after_ms=self._home.certificate_not_after_ms,
        )

    def _member_groups(self) -> Iterable[Group]:
        return self.upkeep.member_groups()

    def _promises(self) -> AskedPromises:
        home = self._home
        return AskedPromises(
            asker=home.promise_asker or home.asker,
            regional=home.regional,
            endpoints=self._endpoints,
            on_overtaken=lambda *of: self.upkeep.stopping.obey_epoch(*of),  # noqa: PLW0108 - made later
        )

    def _compacting(self) -> tuple[Coroutine[None, None, None], ...]:
        """Return what compacts the region's etcd, if that is asked for."""
        home = self._home
        if home.compaction is None:
            return ()
        compactor = Compactor(
            home.compaction,
            store=home.regional,
            clock=home.clock,
            history=self._history,
            incarnation=self.reporter.region.incarnation,
            is_leading=self._term.is_held,
            needs=self.outbound.needs,
        )
        return (compactor.run(),)

    def _still(self, region: Region) -> Standstill:
        return Standstill(
            region,
            self._pauses,
            mirror=self.inbound.mirror,
            authorities=self.agent.authorities,
            on_join=self.inbound.refresh,
        )

    def _comparer(self) -> Comparer:
        home = self._home
        return Comparer(
            cluster=home.cluster,
            regional=home.regional,
            coordination=home.coordination,
            dialer=home.dialer,
            endpoints=self._endpoints,
            limits=home.limits,
        )

    async def run(self) -> None:
        """Lead until the term ends, or until cancelled.

        Raises:
            TermEnded: another replicator leads this region.
        """
        await together(
            *self._sharing.running(),
            self.agent.run(),
            self.agent.leases.run(),
            self.upkeep.run(),
            self._run_chain(),
            self.outbound.run(),
            self.inbound.run(),
            self.reporter.run(),
            self._foreign.run(),
            self._quarantined.run(),
            self._clusters.run(),
            self._adoptions.run(),
            self.verifier.run(),
            self._replayer.run(),
            self._pauses.run(),
            self._standstill.run(),
            self._follow_mesh(),
            *self._compacting(),
        )

    async def hand_over(self) -> None:
        """Finish a round of the chain and begin no other: a successor has both leases in full.

        Everything else goes on until `run` is cancelled.

        Raises:
            OutcomeUnknown: the round did not end in time; the leases may have less to live.
        """
        self.chain.hand_over()
        patience_ms = self._home.timing.call_timeout_ms
        await within(self._home.clock, patience_ms, self._chain_ended.wait())

    async def _run_chain(self) -> None:
        try:
            await self.chain.run()
        finally:
            self._chain_ended.set()

    async def _obey_authority(self) -> None:
        # No beat on an etcd that was restored while it was away. It was not, in less than that.
        await self._identity.check_unless_younger(self._home.timing.round_interval_ms)
        await self.upkeep.stopping.obey_authority()

    async def _follow_mesh(self) -> None:
        """Stream from and to every cluster that shares a group with this one."""
        changed = asyncio.Event()
        for mirror in (self._clusters, self._adoptions, self.agent.groups):
            mirror.on_change(lambda _: changed.set())
            await mirror.ready.wait()
        await self._pauses.ready.wait()
        while True:
            changed.clear()
            peers = self._peers()
            self.inbound.set_sources(peers)
            self.inbound.set_exact(self._exact_groups())
            self.outbound.set_targets(peers)
            adoptions = readable(Adoption, self._adoptions.entries.values())
            self.inbound.set_replaced({a.cluster: frozenset(a.replaced) for a in adoptions})
            await changed.wait()

    def _exact_groups(self) -> list[GroupName]:
        groups = readable(Group, self.agent.groups.entries.values())
        return [g.name for g in groups if g.policy.fidelity is Fidelity.EVERY_REVISION]

    def _endpoints(self, cluster: ClusterName) -> tuple[str, ...]:
        return self._peers().get(cluster, ())

    def _peers(self) -> Mapping[ClusterName, tuple[str, ...]]:
        me = self._home.cluster
        groups = readable(Group, self.agent.groups.entries.values())
        sharing = {member for group in groups if me in group.members for member in group.members}
        peers = {}
        for descriptor in readable(ClusterDescriptor, self._clusters.entries.values()):
            if descriptor.name in sharing - {me} and descriptor.replication_endpoints:
                peers[descriptor.name] = descriptor.replication_endpoints
        return peers


def _region(home: Home, term: Term, incarnation: Incarnation) -> Region:
    return Region(
        cluster=home.cluster,
        incarnation=incarnation,
        replicator=home.replicator,
        leader=term.guard(),
        regional=home.regional,
        coordination=home.coordination,
        clock=home.clock,
        access=home.access,
    )


def _examiner(home: Home, term: Term, incarnation: Incarnation) -> Examiner:
    return Examiner(
        store=home.regional,
        cluster=home.cluster,
        incarnation=incarnation,
        is_leading=term.is_held,
        limits=home.limits,
    )


def _outbound(
    home: Home, term: Term, incarnation: Incarnation, history: LocalHistory, pauses: Pauses
) -> Outbound:
    return Outbound(
        store=home.regional,
        clock=home.clock,
        cluster=home.cluster,
        incarnation=incarnation,
        is_leading=term.is_held,
        history=history,
        pauses=pauses,
        limits=home.limits,
    )


def _inbound(home: Home, term: Term, pauses: Pauses, watch: WatchAll) -> Inbound:
    return Inbound(
        store=home.regional,
        clock=home.clock,
        cluster=home.cluster,
        dialer=home.dialer,
        term_guard=term.guard(),
        pauses=pauses,
        watch=watch,
        limits=home.limits,
        rng=home.rng,
    )


def readable(cls: type[S], items: Iterable[KeyValue]) -> list[S]:
    """Return the records that can be read; one that cannot harms no other."""
    records = []
    for item in items:
        try:
            records.append(decode(cls, item.value))
        except CorruptRecord as error:
            _log.warning("record.unreadable", key=item.key.decode(), why=str(error))
    return records


async def begin_leadership(home: Home, term: Term, history: LocalHistory) -> Leadership:
    """Return this term's leadership, once the region's etcd is the one that it was.

    Raises:
        StoreReplaced: its history went back, or it is another etcd (4.1 rule 5).
        MeshError: an etcd could not be reached; try again.
    """
    identity = Identity(
        cluster=home.cluster,
        replicator=home.replicator,
        regional=home.regional,
        coordination=home.coordination,
        clock=home.clock,
        term=term,
        access=home.access,
    )
    await identity.begin()
    incarnation = await region_incarnation(home.regional, home.cluster, rng=home.rng)
    _log.info("region.led", cluster=home.cluster, incarnation=incarnation, term=term.created_at)
    return Leadership(home, term, incarnation, history, identity)
