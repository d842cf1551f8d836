"""The coordination etcd as a region knows it: whether it is the one it was, and its adoption.

What was seen of it lies in the region, because it cannot tell of itself that it was restored. Once
it went back the region is suspended, and stays so until an operator adopts the coordination etcd
(`mesh coordination adopt`, ADR 24): then the region goes on by itself, unless its own fences say
more than what was adopted.
"""

from __future__ import annotations

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.codec import decode, encode
from meshkit.incarnations import (
    FIRST_INCARNATION,
    CoordinationAdoption,
    SuspectStore,
    Suspension,
    number_of,
)
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority, CoordinationIncarnation
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT
from meshkit.regional import Fence, FenceMode
from meshkit.store.port import Store
from meshkit.store.txn import (
    Committed,
    Delete,
    Get,
    KeyValue,
    ModRevisionIs,
    Put,
    Txn,
    prefix_range,
)
from replicator.recognition import Look, Observation, observed, went_back
from replicator.suspending import Suspender, commit_all, replaced

_log = structlog.get_logger()


@attrs.define(kw_only=True, eq=False)
class Outside:
    """One region's knowledge of the coordination etcd, while a term lasts.

    Invariant: what was seen is stored only after a look that showed nothing wrong with it.
    """

    cluster: ClusterName
    regional: Store
    coordination: Store
    clock: Clock
    suspender: Suspender
    _seen: Observation | None = attrs.field(default=None, init=False)

    @property
    def seen(self) -> Observation:
        """What was seen last, to be stored in the region."""
        assert self._seen is not None, "a term begins with a look"
        return self._seen

    async def begin(self) -> None:
        """Return if the coordination etcd may be obeyed; carry out an adoption that answers us.

        Raises:
            StoreReplaced: it went back, or is another one; it says what to do.
            MeshError: an etcd could not be reached; try again.
        """
        here, seen = await _read(
            self.regional, RegionalKeys.suspended, RegionalKeys.coordination_seen
        )
        if here is not None:
            seen = await self._go_on(here)
        self._seen = _known(seen)
        await self.check()
        await self._forget_copy()

    async def check(self) -> None:
        """Look at the coordination etcd.

        Raises:
            StoreReplaced: it went back; the region is suspended.
            MeshError: it does not answer; nothing is known about it.
        """
        look, others = await self._look()
        if went_back(self._seen, look):
            look, others = await self._look()
        why = went_back(self._seen, look) or _told(others, look, me=self.cluster)
        if why:
            known = self._seen.incarnation if self._seen else FIRST_INCARNATION
            await self.suspender.suspend(
                SuspectStore.COORDINATION, f"the coordination etcd: {why}", incarnation=known
            )
        self._seen = observed(self._seen, look, cluster=self.cluster)

    async def _look(self) -> tuple[Look, tuple[Suspension, ...]]:
        gets = (
            Get(CoordinationKeys.incarnation),
            Get(*prefix_range(CoordinationKeys.suspensions)),
        )
        outcome = await self.coordination.commit(Txn(operations=gets))
        assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
        incarnation, suspensions = outcome.reads
        status = await self.coordination.status()
        look = Look(
            status=attrs.evolve(status, revision=max(status.revision, outcome.revision)),
            incarnation=_incarnation_of(incarnation[0] if incarnation else None).identity,
        )
        return look, tuple(decode(Suspension, item.value) for item in suspensions)

    # --- going on after an adoption ------------------------------------------------------------

    async def _go_on(self, here: KeyValue) -> KeyValue | None:
        """End the suspension if an adoption answers it; return what is stored as seen then.

        Raises:
            StoreReplaced: none does, or what was adopted is less than what this region's fences
                say.
        """
        suspension = decode(Suspension, here.value)
        await self.suspender.stop()
        adoption = await self._adoption(suspension)
        conflict = await self._conflict() if adoption else ""
        if adoption is None or conflict:
            if conflict:
                suspension = attrs.evolve(suspension, reason=conflict)
            await self._tell(suspension)
            raise replaced(suspension)
        if adoption.wait_ms:
            _log.warning("region.waits", cluster=self.cluster, wait_ms=adoption.wait_ms)
            await self.clock.sleep_ms(adoption.wait_ms)
        await self.suspender.raise_floor(adoption.floor)
        return await self._end_suspension(here, adoption)

    async def _adoption(self, suspension: Suspension) -> CoordinationAdoption | None:
        """Return the adoption that is newer than all this region knew, if it is complete."""
        item, incarnation = await _read(
            self.coordination, CoordinationKeys.adopted, CoordinationKeys.incarnation
        )
        if item is None:
            return None
        adoption = decode(CoordinationAdoption, item.value)
        now = _incarnation_of(incarnation)
        is_in_force = (now.number, now.adoption) == (adoption.number, adoption.adoption)
        is_newer = adoption.number > number_of(suspension.incarnation)
        return adoption if adoption.is_complete and is_in_force and is_newer else None

    async def _conflict(self) -> str:
        """Return in what this region's fences say more than what was adopted, or nothing."""
        fences = await self.regional.range(prefix_range(RegionalKeys.fences))
        stored = await self.coordination.range(prefix_range(CoordinationKeys.authorities))
        authorities = {a.group: a for a in (decode(Authority, i.value) for i in stored.items)}
        for item in fences.items:
            fence = decode(Fence, item.value)
            why = _beyond(fence, authorities.get(fence.group), me=self.cluster)
            if why:
                return (
                    f"the coordination etcd was adopted without this region, and knows less: {why}."
                    " It goes on by itself, and rejoins, once the group's epoch there is above its"
                    " own: move the group to another member"
                )
        return ""

    async def _end_suspension(self, here: KeyValue, adoption: CoordinationAdoption) -> KeyValue:
        look, _ = await self._look()
        if number_of(look.incarnation or FIRST_INCARNATION) != adoption.number:
            raise replaced(decode(Suspension, here.value))
        seen = observed(None, look, cluster=self.cluster)
        key = RegionalKeys.coordination_seen
        await commit_all(
            self.regional,
            Txn(
                guards=(self.suspender.term.guard(), ModRevisionIs(here.key, here.mod_revision)),
                operations=(
                    Delete(here.key),
                    Delete(*prefix_range(RegionalKeys.permits)),
                    Put(key, encode(seen)),
                ),
            ),
        )
        _log.warning(
            "region.goes_on",
            cluster=self.cluster,
            coordination=look.incarnation,
            requested_by=adoption.requested_by,
        )
        stored = await self.regional.get(key)
        assert stored is not None, "it was just put"
        return stored

    # --- the copy for people, in the coordination etcd -----------------------------------------

    async def _tell(self, suspension: Suspension) -> None:
        """Have the coordination etcd say that this region is suspended: it is another one now."""
        key, value = CoordinationKeys.suspension(self.cluster), encode(suspension)
        item = await self.coordination.get(key)
        if item is not None:
            is_of_region = decode(Suspension, item.value).store is SuspectStore.REGIONAL
            if is_of_region or item.value == value:
                return
        guard = ModRevisionIs(key, item.mod_revision if item else ABSENT)
        await self.coordination.commit(Txn(guards=(guard,), operations=(Put(key, value),)))

    async def _forget_copy(self) -> None:
        """Delete a copy that tells of a suspension which has ended."""
        key = CoordinationKeys.suspension(self.cluster)
        item = await self.coordination.get(key)
        if item is None or decode(Suspension, item.value).store is SuspectStore.REGIONAL:
            return
        guard = ModRevisionIs(key, item.mod_revision)
        await self.coordination.commit(Txn(guards=(guard,), operations=(Delete(key),)))


async def _read(store: Store, *keys: bytes) -> tuple[KeyValue | None, ...]:
    outcome = await store.commit(Txn(operations=tuple(Get(key) for key in keys)))
    assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
    return tuple(items[0] if items else None for items in outcome.reads)


def _known(item: KeyValue | None) -> Observation | None:
    """Return what was seen; before there were adoptions, no incarnation was stored with it."""
    if item is None:
        return None
    seen = decode(Observation, item.value)
    return attrs.evolve(seen, incarnation=seen.incarnation or FIRST_INCARNATION)


def _incarnation_of(item: KeyValue | None) -> CoordinationIncarnation:
    return decode(CoordinationIncarnation, item.value) if item else CoordinationIncarnation()


def _told(others: tuple[Suspension, ...], look: Look, *, me: ClusterName) -> str:
    """Return which other region saw this very incarnation go back, or nothing.

    This one may have been away since before the snapshot, or be new, so that no mark fell for it.
    What a region says that knows a lower incarnation counts for nothing: it was away during an
    adoption.
    """
    for one in others:
        now = look.incarnation or FIRST_INCARNATION
        knew_it = one.incarnation == now or number_of(one.incarnation) > number_of(now)
        if one.store is SuspectStore.COORDINATION and knew_it and one.cluster != me:
            return f"{one.cluster} has seen it go back ({one.reason})"
    return ""


def _beyond(fence: Fence, authority: Authority | None, *, me: ClusterName) -> str:
    group: GroupName = fence.group
    if authority is None:
        return f"group {group} has no authority there"
    if fence.epoch < authority.epoch:
        return ""
    was_active = fence.mode in (FenceMode.OPEN, FenceMode.DRAINED)
    is_same = fence.epoch == authority.epoch and was_active == (authority.active == me)
    if is_same and (not was_active or fence.token == authority.token):
        return ""
    return (
        f"{group} is in epoch {fence.epoch} ({fence.mode.value}) here, and in epoch"
        f" {authority.epoch} ({authority.active}) there"
    )
