"""A region on memory stores: what the tests of the chain and of the gate have in common."""

import asyncio
from collections.abc import Awaitable, Callable

import attrs

from fencing.chain import Chain
from fencing.election import Election
from fencing.keeping import Promises
from fencing.term import Term, commit_in_term
from fencing.timing import PROFILES, Timing
from meshkit.clock import ManualClock
from meshkit.codec import decode, encode
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority, Seal
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, LeaseId, Revision, Token
from meshkit.regional import Permit
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.txn import Delete, KeyValue, Put, Txn

A = ClusterName("us-east")
B = ClusterName("eu-west")
G = GroupName("orders")
FAST: Timing = PROFILES["fast"]
STEP_MS = 50


@attrs.define(kw_only=True)
class Faulty:
    """Faults by operation, in order, then none; a callable in the list is awaited instead."""

    plan: dict[str, list[Fault | Callable[[], Awaitable[Fault]]]] = attrs.field(factory=dict)

    async def before(self, operation: str) -> Fault:
        planned = self.plan.get(operation)
        if not planned:
            return Fault.NONE
        fate = planned.pop(0)
        return fate if isinstance(fate, Fault) else await fate()


def token_of(epoch: int) -> Token:
    return Token(incarnation=1, revision=Revision(epoch * 100))


def permit_of(epoch: int) -> bytes:
    return encode(Permit(group=G, epoch=Epoch(epoch), token=token_of(epoch)))


@attrs.define(kw_only=True)
class Replicator:
    """One replicator of the region: its links, its term and its chain."""

    coordination: MemoryStore
    regional: MemoryStore
    to_coordination: Faulty
    to_region: Faulty
    term: Term
    chain: Chain
    obeyed: int = 0
    may_obey: asyncio.Event = attrs.field(factory=asyncio.Event)
    sealed: list[GroupName] = attrs.field(factory=list)
    running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.running = asyncio.ensure_future(self.chain.run())

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
            self.running = None

    async def put_permit(self, lease: LeaseId, epoch: int = 1) -> Revision:
        put = Put(RegionalKeys.permit(G), permit_of(epoch), lease)
        return (await commit_in_term(self.regional, self.term, Txn(operations=(put,)))).revision


@attrs.define(kw_only=True)
class World:
    """The coordination etcd, one region, and the replicators that were started in it."""

    clock: ManualClock = attrs.field(factory=ManualClock)
    timing: Timing = FAST
    coordination: MemoryStore = attrs.field(init=False)
    regional: MemoryStore = attrs.field(init=False)
    replicators: list[Replicator] = attrs.field(factory=list)
    promises: Promises | None = None

    def __attrs_post_init__(self) -> None:
        self.coordination = MemoryStore(clock=self.clock)
        self.regional = MemoryStore(clock=self.clock)

    async def elect(self, name: str = "r") -> Replicator:
        """Wait to lead the region and return a replicator whose chain does not run yet."""
        to_coordination, to_region = Faulty(), Faulty()
        coordination = self.coordination.connect(faults=to_coordination)
        regional = self.regional.connect(faults=to_region)
        term = await Election(
            store=self.regional.connect(),
            key=RegionalKeys.replicator_leader,
            value=name.encode(),
            ttl_s=self.timing.leader_ttl_s,
            clock=self.clock,
        ).campaign()
        chain = Chain(
            cluster=A,
            replicator=name,
            coordination=coordination,
            regional=regional,
            term=term,
            timing=self.timing,
            clock=self.clock,
            obey=lambda: self._obey(replicator),
            on_sealed=lambda group: self._on_sealed(replicator, group),
            promises=self.promises,
        )
        replicator = Replicator(
            coordination=coordination,
            regional=regional,
            to_coordination=to_coordination,
            to_region=to_region,
            term=term,
            chain=chain,
        )
        replicator.may_obey.set()
        self.replicators.append(replicator)
        return replicator

    async def lead(self, name: str = "r") -> Replicator:
        """Return a replicator that leads, goes round, and beats."""
        replicator = await self.elect(name)
        replicator.start()
        before = self.beat
        await self.until(lambda: replicator.chain.state.is_healthy and self.beat != before)
        return replicator

    async def serve(self, name: str = "r") -> Replicator:
        """Return a leading replicator of a region that is active for the group."""
        replicator = await self.lead(name)
        await self.put_authority(A, 1)
        await replicator.put_permit(await self.permit_lease(replicator))
        return replicator

    async def permit_lease(self, replicator: Replicator) -> LeaseId:
        item = await self.coordination.get(CoordinationKeys.authority(G))
        assert item is not None
        authority = decode(Authority, item.value)
        return await replicator.chain.permit_lease(authority, item.mod_revision)

    async def put_authority(self, active: ClusterName, epoch: int) -> None:
        authority = Authority(group=G, epoch=Epoch(epoch), token=token_of(epoch), active=active)
        put = Put(CoordinationKeys.authority(G), encode(authority))
        await self.coordination.commit(Txn(operations=(put,)))

    async def seal(self, epoch: int = 1) -> None:
        seal = Seal(group=G, epoch=Epoch(epoch), failover=FailoverId("f-1"))
        put = Put(CoordinationKeys.seal(G), encode(seal))
        await self.coordination.commit(Txn(operations=(put,)))

    async def unseal(self) -> None:
        await self.coordination.commit(Txn(operations=(Delete(CoordinationKeys.seal(G)),)))

    def now(self, store: MemoryStore, key: bytes) -> KeyValue | None:
        """Return a key as it is on the server at this moment, past every fault."""
        store.server.expire_due()
        return store.server.history.lookup(key)

    @property
    def permit(self) -> KeyValue | None:
        return self.now(self.regional, RegionalKeys.permit(G))

    @property
    def holder(self) -> KeyValue | None:
        return self.now(self.coordination, CoordinationKeys.holder(G))

    @property
    def beat(self) -> KeyValue | None:
        return self.now(self.regional, RegionalKeys.beat)

    async def until(self, claim: Callable[[], bool], *, within_ms: int = 30_000) -> int:
        """Advance in small steps until the claim holds; return the time."""
        deadline_ms = self.clock.now_ms() + within_ms
        while not claim():
            assert self.clock.now_ms() < deadline_ms, "it never came true"
            await self.clock.advance_ms(STEP_MS)
        return self.clock.now_ms()

    async def always(self, claim: Callable[[], bool], *, for_ms: int) -> None:
        """Advance in small steps, asserting the claim at each."""
        deadline_ms = self.clock.now_ms() + for_ms
        while self.clock.now_ms() < deadline_ms:
            assert claim()
            await self.clock.advance_ms(STEP_MS)

    async def close(self) -> None:
        for replicator in self.replicators:
            await replicator.stop()
            await replicator.term.abandon()

    async def _obey(self, replicator: Replicator) -> None:
        await replicator.may_obey.wait()
        replicator.obeyed += 1

    async def _on_sealed(self, replicator: Replicator, group: GroupName) -> None:
        replicator.sealed.append(group)
