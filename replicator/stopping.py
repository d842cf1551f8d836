"""Ends a cluster's own epoch of a group when authority has gone, or is about to go, elsewhere.

By the authority, by a seal, or by the word of another cluster; never to begin one. It stands behind
nobody: what it asks of an etcd shares no request.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from fencing import fence as fences
from fencing.fence_view import FenceView, view_of, view_reads
from fencing.patience import within
from meshkit.asking import TellSealed
from meshkit.codec import decode
from meshkit.commands import Command, CommandStep
from meshkit.errors import OutcomeUnknown, Refused, RevisionConflict, Unreachable
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority, CoordinationIncarnation, Group, Seal
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Token
from meshkit.regional import Fence, FenceMode, SegmentCut
from meshkit.store.txn import Committed, Txn, prefix_range
from replicator.agent import Agent
from replicator.agent_ports import Region

_log = structlog.get_logger()

SEAL_READ_MS_MAX = 300
"""A coordination etcd that does not answer within this cannot be reached from here."""


class Stopping:
    """Obeys what says that this cluster is not active any more, while a term lasts."""

    def __init__(self, region: Region, agent: Agent, *, nudge: Callable[[], None]) -> None:
        """`nudge`: has upkeep look at everything, when a fence moved under a transaction."""
        self._region = region
        self._agent = agent
        self._nudge = nudge

    async def obey(
        self, group: GroupName, below: Epoch, *, reason: str = "superseded", seal: Token = NO_TOKEN
    ) -> None:
        """Stop being active in any epoch below this one; the fence as it is now decides."""
        view = await read_view(self._region, group)
        if view.command_token.incarnation == seal.incarnation and view.command_token > seal:
            # What was obeyed since knew of the seal: it released the group.
            return
        txn = fences.supersede(
            view, below=below, leader=self._region.leader, reason=reason, seal=seal
        )
        if txn is None:
            return
        async with self._region.access.closing(view.scope or ()):
            outcome = await self._region.regional.commit(txn)
        if not isinstance(outcome, Committed):
            self._nudge()
            return
        _log.warning("group.superseded", group=group, below=below, why=reason)

    async def obey_authority(self) -> None:
        """Stop being active wherever the authority has gone elsewhere, before the first beat.

        Raises:
            MeshError: it could not be made sure of; there must be no beat.
        """
        await self._agent.loaded()
        fences_now = await self._region.regional.range(prefix_range(RegionalKeys.fences))
        for item in fences_now.items:
            fence = decode(Fence, item.value)
            stored = self._agent.authorities.entries.get(CoordinationKeys.authority(fence.group))
            if fence.mode is not FenceMode.OPEN or stored is None:
                continue
            await self.obey(fence.group, decode(Authority, stored.value).epoch)

    async def obey_epoch(self, group: GroupName, epoch: Epoch) -> None:
        """Stop being active in any epoch below this one, as another cluster says that it exists."""
        await self.obey(group, epoch, reason="overtaken")

    async def obey_seal(self, group: GroupName) -> None:
        """Stop accepting writes for a sealed group: its segment ends here, its permit goes."""
        item = await self._region.coordination.get(CoordinationKeys.seal(group))
        if item is None:
            return
        # Its token is that of the command put with it. Revisions alone say nothing across an
        # adoption of the coordination etcd: they may have begun again lower.
        stored = await self._region.coordination.get(CoordinationKeys.incarnation)
        known = (
            decode(CoordinationIncarnation, stored.value) if stored else CoordinationIncarnation()
        )
        seal = Token(incarnation=known.number, revision=item.mod_revision)
        below = Epoch(decode(Seal, item.value).epoch + 1)
        await self.obey(group, below, reason="sealed", seal=seal)

    async def obey_told_seal(self, told: TellSealed, teller: ClusterName) -> bool:
        """Obey the command to seal a group as another member tells it; return whether it is cut.

        For a region that cannot read its commands itself. Its permits run out anyhow; that its log
        has ended proves to the teller that nothing of it is missing. It is the very command, with
        its token: no older one is obeyed any more, and to read it later changes nothing.

        Raises:
            Refused: nobody but a member is believed, and nobody whom the coordination etcd belies.
            RevisionConflict: the fence moves too fast; to be told again.
        """
        item = self._agent.groups.entries.get(CoordinationKeys.group(told.group))
        if item is None or teller not in decode(Group, item.value).members:
            raise Refused(f"{teller} is no member of {told.group}, as far as is known here")
        await self._refuse_if_belied(told)
        view = await read_view(self._region, told.group)
        if view.fence is None or view.fence.epoch != told.epoch:
            return False
        command = Command(
            group=told.group,
            cluster=self._region.cluster,
            step=CommandStep.SEAL,
            incarnation=told.seal.incarnation,
            epoch=told.epoch,
            failover=told.failover,
        )
        match fences.decide(view, command, told.seal, leader=self._region.leader):
            case fences.Refuse(reason):
                raise Refused(reason)
            case fences.Act(txn):
                async with self._region.access.closing(view.scope or ()):
                    outcome = await self._region.regional.commit(txn)
                if not isinstance(outcome, Committed):
                    raise RevisionConflict(f"the fence of {told.group} moved meanwhile")
                _log.warning("group.sealed", group=told.group, epoch=told.epoch, told_by=teller)
            case _:
                pass
        cut = await self._region.regional.get(RegionalKeys.segment_cut(told.group, told.epoch))
        return cut is not None and decode(SegmentCut, cut.value).command_token == told.seal

    async def _refuse_if_belied(self, told: TellSealed) -> None:
        """Believe what cannot be read: whoever reaches the coordination etcd knows better."""
        if not self._region.coordination.is_connected:
            return
        reading = self._region.coordination.get(CoordinationKeys.seal(told.group))
        try:
            seal = await within(self._region.clock, SEAL_READ_MS_MAX, reading)
        except (Unreachable, OutcomeUnknown):
            return
        if seal is None or seal.mod_revision != told.seal.revision:
            raise Refused(f"the coordination etcd has no such seal of {told.group}")


async def read_view(region: Region, group: GroupName) -> FenceView:
    """Return a group's fence with all that belongs to it, read at one revision."""
    outcome = await region.regional.commit(Txn(operations=view_reads(group)))
    assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
    return view_of(group, outcome.reads)
