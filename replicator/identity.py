"""Makes sure, at a term's beginning and while it lasts, that both etcds are the ones they were.

What was seen of the region's etcd is stored in the coordination etcd, and the other way round
(`replicator/outside.py`): an etcd cannot tell of itself that it was restored. Once suspended, a
region stays so until an operator adopts the etcd that went back.
"""

from __future__ import annotations

import attrs
import structlog

from fencing.term import Term
from meshkit.clock import Clock
from meshkit.codec import decode, encode
from meshkit.incarnations import Adoption, SuspectStore, Suspension
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import ABSENT, Incarnation, Revision
from meshkit.regional import RegionIncarnation, Witness
from meshkit.store.port import Store, StoreStatus
from meshkit.store.txn import (
    Committed,
    Delete,
    Get,
    Guard,
    KeyValue,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
    prefix_range,
)
from replicator.access import AccessFence, NoAccessFence
from replicator.outside import Outside
from replicator.recognition import Look, Observation, observed, went_back
from replicator.suspending import Suspender, commit_all, replaced

_log = structlog.get_logger()

WITNESS_INTERVAL_MS = 5_000
"""Between two raises of the witness: writes lost with less than that are seen by the raft index."""


@attrs.define(kw_only=True, eq=False)
class Identity:
    """The etcds of one region, as this replicator knows them.

    Invariant: what was seen is stored only after a look that showed nothing wrong with it.
    """

    cluster: ClusterName
    replicator: str
    regional: Store
    coordination: Store
    clock: Clock
    term: Term
    access: AccessFence = attrs.field(factory=NoAccessFence)
    _seen: Observation | None = attrs.field(default=None, init=False)
    _suspender: Suspender = attrs.field(init=False)
    _outside: Outside = attrs.field(init=False)
    _checked_at_ms: int | None = attrs.field(default=None, init=False)
    _witnessed_at_ms: int | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._suspender = Suspender(
            cluster=self.cluster,
            replicator=self.replicator,
            regional=self.regional,
            coordination=self.coordination,
            clock=self.clock,
            term=self.term,
            access=self.access,
        )
        self._outside = Outside(
            cluster=self.cluster,
            regional=self.regional,
            coordination=self.coordination,
            clock=self.clock,
            suspender=self._suspender,
        )

    # --- at a term's beginning -----------------------------------------------------------------

    async def begin(self) -> None:
        """Return if this region may be led; carry out an adoption that was asked for.

        Raises:
            StoreReplaced: an etcd went back, or is another one; it says what to do.
            MeshError: an etcd could not be reached; try again.
        """
        await self._outside.begin()
        suspended, adoption, seen = await _read(
            self.coordination,
            CoordinationKeys.suspension(self.cluster),
            CoordinationKeys.adoption(self.cluster),
            CoordinationKeys.observation(self.cluster),
        )
        if suspended is not None:
            await self._adopt_if_asked(suspended, adoption)
        elif (marked := await self.regional.get(RegionalKeys.replaced)) is not None:
            before = decode(Suspension, marked.value)
            await self._suspender.suspend(
                before.store, before.reason, incarnation=before.incarnation
            )
        elif seen is not None:
            self._seen = decode(Observation, seen.value)
        await self.check()

    async def _adopt_if_asked(self, suspended: KeyValue, item: KeyValue | None) -> None:
        suspension = decode(Suspension, suspended.value)
        adoption = decode(Adoption, item.value) if item else None
        if adoption is None or adoption.suspension != suspended.mod_revision:
            if suspension.store is SuspectStore.REGIONAL:
                await self._suspender.mark_replaced(suspension, self.term.guard())
            raise replaced(suspension)
        await self._begin_incarnation(adoption)
        await self._end_suspension(suspended)
        _log.warning(
            "region.adopted",
            cluster=self.cluster,
            incarnation=adoption.incarnation,
            requested_by=adoption.requested_by,
        )

    async def _begin_incarnation(self, adoption: Adoption) -> None:
        """Make the region's etcd the new incarnation; no permit of the old one outlives that."""
        key = RegionalKeys.incarnation
        item = await self.regional.get(key)
        if item is not None and decode(RegionIncarnation, item.value).incarnation == (
            adoption.incarnation
        ):
            return
        fresh = RegionIncarnation(cluster=self.cluster, incarnation=adoption.incarnation)
        permits = await self.regional.range(prefix_range(RegionalKeys.permits), keys_only=True)
        operations: list[Operation] = [Delete(permit.key) for permit in permits.items]
        operations += [Put(key, encode(fresh)), Delete(RegionalKeys.replaced)]
        guard = ModRevisionIs(key, item.mod_revision if item else ABSENT)
        await _commit(self.regional, (self.term.guard(), guard), operations)

    async def _end_suspension(self, suspended: KeyValue) -> None:
        key = CoordinationKeys.suspension(self.cluster)
        guard = ModRevisionIs(key, suspended.mod_revision)
        forget = Delete(CoordinationKeys.observation(self.cluster))
        await _commit(self.coordination, (guard,), [Delete(key), forget])

    # --- at any time ---------------------------------------------------------------------------

    async def check(self) -> StoreStatus:
        """Look at the region's etcd and return its status.

        Raises:
            StoreReplaced: it went back; the region is suspended.
            MeshError: it does not answer; nothing is known about it.
        """
        look = await self._look()
        if went_back(self._seen, look):
            # A member that has just started may not know its own raft index yet; a read that went
            # through it tells it.
            look = await self._look()
        why = went_back(self._seen, look)
        if why:
            await self._suspender.suspend(
                SuspectStore.REGIONAL,
                f"the etcd of {self.cluster}: {why}",
                incarnation=self._seen.incarnation if self._seen else Incarnation(""),
            )
        self._seen = observed(self._seen, look, cluster=self.cluster)
        self._checked_at_ms = self.clock.now_ms()
        return look.status

    async def check_unless_younger(self, age_ms: int) -> None:
        """Look at the region's etcd, unless that was done a moment ago.

        Raises:
            StoreReplaced, MeshError: see `check`.
        """
        at_ms = self._checked_at_ms
        if at_ms is None or self.clock.now_ms() - at_ms >= age_ms:
            await self.check()

    def observation(self) -> Observation:
        """Return what was seen last, to be stored in the coordination etcd."""
        assert self._seen is not None, "a term begins with a look"
        return self._seen

    async def _look(self) -> Look:
        reads = (Get(RegionalKeys.witness), Get(RegionalKeys.incarnation))
        revision, (witness, incarnation) = await _read_at_once(self.regional, reads)
        status = await self.regional.status()
        return Look(
            status=attrs.evolve(status, revision=max(status.revision, revision)),
            witness=decode(Witness, witness.value).count if witness else 0,
            incarnation=(
                decode(RegionIncarnation, incarnation.value).incarnation
                if incarnation
                else Incarnation("")
            ),
        )

    async def check_outside(self) -> None:
        """Look at the coordination etcd.

        Raises:
            StoreReplaced: it went back; the region is suspended.
            MeshError: it does not answer; nothing is known about it.
        """
        await self._outside.check()

    async def raise_witness(self) -> None:
        """Store in the region, now and then, a count and what was seen of the coordination etcd.

        Raises:
            MeshError: nobody knows whether it was stored; the next look tells.
        """
        now_ms = self.clock.now_ms()
        if self._witnessed_at_ms is not None and (
            now_ms - self._witnessed_at_ms < WITNESS_INTERVAL_MS
        ):
            return
        self._witnessed_at_ms = now_ms
        item = await self.regional.get(RegionalKeys.witness)
        count = decode(Witness, item.value).count if item else 0
        guard = ModRevisionIs(RegionalKeys.witness, item.mod_revision if item else ABSENT)
        puts: list[Operation] = [
            Put(RegionalKeys.witness, encode(Witness(count=count + 1))),
            Put(RegionalKeys.coordination_seen, encode(self._outside.seen)),
        ]
        await _commit(self.regional, (self.term.guard(), guard), puts)


async def _commit(store: Store, guards: tuple[Guard, ...], operations: list[Operation]) -> None:
    await commit_all(store, Txn(guards=guards, operations=tuple(operations)))


async def _read(store: Store, *keys: bytes) -> tuple[KeyValue | None, ...]:
    return (await _read_at_once(store, tuple(Get(key) for key in keys)))[1]


async def _read_at_once(
    store: Store, reads: tuple[Get, ...]
) -> tuple[Revision, tuple[KeyValue | None, ...]]:
    """Return the store's revision, linearizable, and each key as it was then."""
    outcome = await store.commit(Txn(operations=reads))
    assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
    return outcome.revision, tuple(items[0] if items else None for items in outcome.reads)
