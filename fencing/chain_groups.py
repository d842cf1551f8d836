"""What the chain does for single groups: holds them, and leaves no sealed one a permit."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping

import attrs
import structlog

from fencing import chain_txns as txns
from fencing.chain_calls import ChainCalls
from fencing.patience import within
from meshkit.errors import MeshError, Refused, RevisionConflict
from meshkit.keys import CoordinationKeys
from meshkit.model import Authority
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, LeaseId, Revision
from meshkit.regional import Fence

_log = structlog.get_logger()


@attrs.define(kw_only=True, eq=False)
class ChainGroups:
    """The groups that a chain holds: a permit of each may be there, or on its way."""

    cluster: ClusterName
    calls: ChainCalls
    on_sealed: Callable[[GroupName], Coroutine[None, None, None]]
    held: dict[GroupName, Epoch] = attrs.field(factory=dict)

    async def hold(self, authority: Authority, revision: Revision, lease: LeaseId) -> None:
        """Make the group's holder on a coordination lease.

        Raises:
            Refused: the authority moved (`RevisionConflict`), or the group is sealed.
            OutcomeUnknown: the holder may exist; asking again is safe.
        """
        if authority.active != self.cluster:
            raise RevisionConflict(f"{authority.active} has authority over {authority.group}")
        # From now on a permit may be on its way, whatever the answer is.
        self.held[authority.group] = authority.epoch
        await self.calls.hold(authority, revision, cluster=self.cluster, lease=lease)

    async def hold_kept(self, kept: Mapping[GroupName, Fence], lease: LeaseId) -> None:
        """Hold what went on by promise, as far as authority is still here in the same epoch.

        The rest is not held any more, whatever was: nobody looked at seals and authority meanwhile.
        """
        authorities = await self.calls.authorities(kept)
        for group in kept:
            self.held.pop(group, None)
        for group, (authority, revision) in authorities.items():
            if authority.epoch != kept[group].epoch:
                continue
            try:
                await self.hold(authority, revision, lease)
            except Refused as error:
                self.held.pop(group, None)
                _log.warning("promise.was_in_vain", group=group, why=str(error))

    def confine(self, held: Mapping[GroupName, Epoch]) -> None:
        """Forget what is not held any more by a look that came after the confirmation."""
        self.held = {g: epoch for g, epoch in self.held.items() if held.get(g) == epoch}

    async def release(self, group: GroupName, *, lease: LeaseId | None) -> None:
        """Delete the group's holder, if it hangs on this lease. Its permit must be gone."""
        self.held.pop(group, None)
        item = await self.calls.coordination.get(CoordinationKeys.holder(group))
        if item is not None and item.lease == lease:
            await self.calls.coordination.commit(txns.release(item))

    async def obey(self, sealed: Mapping[GroupName, Epoch]) -> bool:
        """Leave no sealed group a permit, and return whether one of them was held (4.1 rule 2).

        A permit of it that was justified before the seal may then still be on its way.
        """
        if not sealed:
            return False
        held = txns.sealed_among(self.held, sealed)
        permits = await self.calls.permits()
        for group in sorted(held | txns.sealed_among(permits.epochs, sealed)):
            _log.warning("chain.sealed", group=group, cluster=self.cluster)
            try:
                timeout_ms = self.calls.timing.call_timeout_ms
                await within(self.calls.clock, timeout_ms, self.on_sealed(group))
            except MeshError as error:
                _log.warning("chain.seal_not_obeyed", group=group, error=str(error))
        permits = await self.calls.permits()
        left = txns.sealed_among(permits.epochs, sealed)
        if left:
            items = [item for item in permits.items if txns.group_of(item.key) in left]
            await self.calls.commit(txns.delete_permits(items))
        for group in held:
            self.held.pop(group, None)
        return bool(held)
