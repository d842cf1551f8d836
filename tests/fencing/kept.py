"""Regions on memory stores that promise each other: what the tests of keeping have in common."""

from collections.abc import Callable

import attrs

from fencing import fence as fences
from fencing.decision import fence_txn
from fencing.fence_view import FenceView, view_of, view_reads
from meshkit.asking import AboutPromises, Answer, Question
from meshkit.codec import decode, encode
from meshkit.commands import Command, CommandStep
from meshkit.errors import Unreachable
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority, Lineage
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Incarnation, LeaseId, Revision, Sequence, Token
from meshkit.peer import PeerIdentity
from meshkit.promises import Pact, Promise
from meshkit.regional import Fence, FenceMode
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Committed, Exists, KeyValue, Put, Txn
from replicator.promises import AskedPromises
from replicator.promising import answer_about_promises
from tests.fencing.region import A, B, G, Replicator, World, token_of

C = ClusterName("ap-south")
LAPSING = GroupName("users")
LEADER = RegionalKeys.incarnation
"""Stands for a passive region's leadership: a key that is there."""


@attrs.define(kw_only=True)
class KeptWorld(World):
    """A world whose region A has passive members, reached over something that may be cut."""

    passive: dict[ClusterName, MemoryStore] = attrs.field(factory=dict)
    unreachable: set[ClusterName] = attrs.field(factory=set)
    asked: list[Question] = attrs.field(factory=list)
    before_answer: Callable[[], None] | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.passive = {name: MemoryStore(clock=self.clock) for name in (B, C)}
        self.promises = AskedPromises(
            asker=self,
            regional=self.regional.connect(),
            endpoints=lambda name: (name,),
            on_overtaken=self._on_overtaken,
        )

    async def _on_overtaken(self, group: GroupName, epoch: Epoch) -> None:
        """As a replicator's upkeep does it."""
        outcome = await self.regional.commit(Txn(operations=view_reads(group)))
        assert isinstance(outcome, Committed)
        view = view_of(group, outcome.reads)
        leader = self.replicators[-1].term.guard()
        txn = fences.supersede(view, below=epoch, leader=leader, reason="overtaken")
        if txn is not None:
            await self.regional.commit(txn)

    async def ask(self, cluster: ClusterName, endpoint: str, question: Question) -> Answer:
        """Satisfies `AskRegion`."""
        assert isinstance(question, AboutPromises)
        self.asked.append(question)
        if endpoint in self.unreachable:
            raise Unreachable(f"{endpoint} does not answer")
        if self.before_answer is not None:
            self.before_answer()
        peer = PeerIdentity(role="cluster", name=A)
        return await answer_about_promises(self.passive[cluster], question, peer, me=cluster)

    async def keeping(self, *members: ClusterName) -> Replicator:
        """Return a leading replicator of A, active for a group that keeps and one that lapses."""
        for store in self.passive.values():
            await self.follow(store, epoch=1)
        replicator = await self.serve()
        lease = replicator.chain.current_lease()
        assert lease is not None
        await self.open_here(G, lease)
        await self.open_here(LAPSING, lease)
        pact = Pact(group=G, epoch=Epoch(1), cluster=A, members=(A, *(members or (B, C))))
        await self.regional.commit(Txn(operations=(Put(RegionalKeys.pact(G), encode(pact)),)))
        await self.clock.advance_ms(1_000)
        return replicator

    async def open_here(self, group: GroupName, lease: LeaseId) -> None:
        """Make A active for a group in epoch 1, with a permit."""
        token = token_of(1)
        fence = Fence(group=group, epoch=Epoch(1), mode=FenceMode.OPEN, token=token)
        authority = Authority(group=group, epoch=Epoch(1), token=token, active=A)
        stored = await self.coordination.get(CoordinationKeys.authority(group))
        if stored is None:
            put = Put(CoordinationKeys.authority(group), encode(authority))
            await self.coordination.commit(Txn(operations=(put,)))
            stored = await self.coordination.get(CoordinationKeys.authority(group))
        assert stored is not None
        await self.replicators[-1].chain.permit_lease(authority, stored.mod_revision)
        await self.regional.commit(
            Txn(
                operations=(
                    Put(RegionalKeys.fence(group), encode(fence)),
                    fences.permit_put(fence, lease),
                )
            )
        )

    async def follow(self, store: MemoryStore, *, epoch: int) -> None:
        """Make a region a passive member that follows an epoch."""
        fence = Fence(group=G, epoch=Epoch(epoch), mode=FenceMode.SUPERSEDED, token=token_of(epoch))
        await store.commit(
            Txn(
                operations=(
                    Put(LEADER, b"leads"),
                    Put(RegionalKeys.fence(G), encode(fence)),
                )
            )
        )

    async def view(self, cluster: ClusterName) -> FenceView:
        outcome = await self.passive[cluster].commit(Txn(operations=view_reads(G)))
        assert isinstance(outcome, Committed)
        return view_of(G, outcome.reads)

    async def freeze(self, cluster: ClusterName) -> None:
        """Freeze the copy of a passive region, as an emergency does."""
        await self._set_mode(cluster, FenceMode.HELD)

    async def thaw(self, cluster: ClusterName) -> None:
        await self._set_mode(cluster, FenceMode.SUPERSEDED)

    async def _set_mode(self, cluster: ClusterName, mode: FenceMode) -> None:
        view = await self.view(cluster)
        assert view.fence is not None
        fence = attrs.evolve(view.fence, mode=mode)
        outcome = await self.passive[cluster].commit(fence_txn(view, fence, leader=Exists(LEADER)))
        assert isinstance(outcome, Committed)

    async def opening(self, cluster: ClusterName) -> fences.Decision:
        """Return what a passive region does about the command to open epoch 2."""
        view = await self.view(cluster)
        lineage = Lineage(
            parent=A,
            parent_incarnation=Incarnation("i"),
            parent_epoch=Epoch(1),
            sequence=Sequence(1),
            prefixes=("/orders/",),
        )
        command = Command(
            group=G,
            cluster=cluster,
            step=CommandStep.OPEN,
            incarnation=1,
            epoch=Epoch(2),
            failover=FailoverId("f-1"),
            target=cluster,
            token=token_of(2),
            lineage=lineage,
        )
        granted = await self.passive[cluster].grant(ttl_s=60)
        return fences.decide(
            view,
            command,
            Token(incarnation=1, revision=Revision(10_000)),
            leader=Exists(LEADER),
            lease=granted.lease_id,
        )

    async def open(self, cluster: ClusterName) -> bool:
        """Try to open epoch 2 at a passive region; return whether that was done."""
        match await self.opening(cluster):
            case fences.Act(txn):
                return isinstance(await self.passive[cluster].commit(txn), Committed)
            case _:
                return False

    def promise_of(self, cluster: ClusterName) -> Promise | None:
        item = self.now(self.passive[cluster], RegionalKeys.promise(G))
        return decode(Promise, item.value) if item else None

    @property
    def lapsing_permit(self) -> KeyValue | None:
        return self.now(self.regional, RegionalKeys.permit(LAPSING))
