"""The region's part of a rejoin: fence itself, find what diverged, set it aside, follow again.

Runs in the agent, for one command at a time. Each step may be repeated by a successor: what was
found is found again, what was set aside is there once, and the fence says which step was obeyed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing

import attrs
import structlog

from fencing import fence as fences
from fencing.fence_view import FenceView, view_of, view_reads
from fencing.rejoin import (
    OwnCheckpoint,
    decide_apart,
    decide_reconcile,
    known_lineage,
    let_go,
    standing,
)
from meshkit.codec import decode
from meshkit.commands import Answer, Command, CommandStep, Standing
from meshkit.errors import RevisionConflict
from meshkit.keys import RegionalKeys, parts_below
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Token
from meshkit.regional import FenceMode, GroupCheckpoint
from meshkit.store.txn import Committed, Get, KeyValue, Txn, prefix_range
from replicator.agent_ports import Inbound, Region
from replicator.answers import Answers
from replicator.divergence import Divergence, Found
from replicator.elsewhere import Elsewhere
from replicator.quarantine import Quarantine
from replicator.reversal import Reversal

_log = structlog.get_logger()

STEPS = frozenset(
    {
        CommandStep.FENCE,
        CommandStep.FIND,
        CommandStep.QUARANTINE,
        CommandStep.RECONCILE,
        CommandStep.STAND_BY,
    }
)


@attrs.frozen(kw_only=True)
class Rejoining:
    """Obeys the steps of a rejoin in one region."""

    region: Region
    inbound: Inbound
    elsewhere: Elsewhere
    answers: Answers
    prefixes: Callable[[GroupName], tuple[str, ...]]

    async def perform(self, command: Command, token: Token) -> Answer | None:
        """Do what the command asks and return the answer; None if a newer one was obeyed.

        Raises:
            MeshError: not now; try again.
        """
        match command.step:
            case CommandStep.FENCE:
                return await self._fence(command, token)
            case CommandStep.FIND:
                return await self._find(command, token)
            case CommandStep.QUARANTINE:
                return await self._quarantine(command, token)
            case CommandStep.RECONCILE:
                return await self._reconcile(command, token)
            case _:
                return await self._stand_by(command, token)

    # --- the steps -----------------------------------------------------------------------------

    async def _fence(self, command: Command, token: Token) -> Answer:
        """Make sure that this cluster is active in no epoch below the command's; say how it stands.

        Whoever asks goes by a report, which may be from before this cluster followed.
        """
        view, joins = await self._standing(command.group)
        txn = fences.supersede(
            view, below=command.epoch, leader=self.region.leader, reason="superseded"
        )
        if txn is not None:
            await self._commit(txn)
            view, joins = await self._standing(command.group)
        if view.fence is None:
            return self.answers.refused(command, token, "it never had to do with the group")
        if view.fence.mode is FenceMode.OPEN:
            reason = f"it is active itself, in epoch {view.fence.epoch}"
            return self.answers.refused(command, token, reason)
        if view.fence.mode is FenceMode.HELD:
            why = await self._let_go(view, command, token)
            if why:
                return self.answers.refused(command, token, why)
            view, joins = await self._standing(command.group)
        assert view.fence is not None, "a fence is never removed"
        return attrs.evolve(
            self.answers.done(command, token, cut=view.cut, stands_on=known_lineage(joins)),
            standing=standing(view, joins),
            own_epoch=view.fence.epoch,
        )

    async def _let_go(self, view: FenceView, command: Command, token: Token) -> str:
        """Thaw what a failover left frozen that is over; return why not, or nothing."""
        match let_go(view, command, token, leader=self.region.leader):
            case fences.Act(txn):
                await self._commit(txn)
                _log.warning("group.thawed", group=command.group, why="its failover is over")
                return ""
            case fences.Refuse(reason):
                return reason
        raise AssertionError("it acts or refuses")

    async def _find(self, command: Command, token: Token) -> Answer:
        follows = await self._following(command, token)
        return follows or self._answer(command, token, await self._found(command))

    async def _following(self, command: Command, token: Token) -> Answer | None:
        """Return the answer of a cluster that has begun to follow since it was asked, or None."""
        view, joins = await self._standing(command.group)
        how = standing(view, joins)
        if how is not Standing.FOLLOWS:
            return None
        return attrs.evolve(self.answers.done(command, token), standing=how)

    async def _found(self, command: Command, keep: Quarantine | None = None) -> Found:
        found = Found()
        async with aclosing(self._divergence(command).entries()) as batches:
            async for batch in batches:
                if keep is not None:
                    await keep.put(batch)
                found.add(batch)
        return found

    async def _quarantine(self, command: Command, token: Token) -> Answer | None:
        """Set aside what diverged, then have the streams leave the group alone."""
        follows = await self._following(command, token)
        if follows is not None:
            return follows
        keep = Quarantine(regional=self.region.regional, leader=self.region.leader)
        found = await self._found(command, keep)
        view, joins = await self._standing(command.group)
        decision = decide_apart(view, joins, command, token, leader=self.region.leader)
        _log.warning(
            "tail.quarantined",
            group=command.group,
            entries=found.total,
            completeness=found.completeness.value,
        )
        return await self._settled(command, token, decision, found)

    async def _reconcile(self, command: Command, token: Token) -> Answer | None:
        view, joins = await self._standing(command.group)
        is_new = token > view.command_token and standing(view, joins) is not Standing.FOLLOWS
        if is_new and not command.is_diverged:
            found = await self._found(command)
            if found.total:
                reason = f"{found.total} changes were found that were not there before"
                return self.answers.refused(command, token, reason)
        decision = decide_reconcile(view, joins, command, token, leader=self.region.leader)
        answer = await self._settled(command, token, decision, None)
        self.inbound.refresh()
        return answer

    async def _stand_by(self, command: Command, token: Token) -> Answer:
        assert command.source is not None
        self.inbound.refresh()
        await self.inbound.wait_follow(command.group, command.epoch)
        reversal = Reversal(
            regional=self.region.regional,
            leader=self.region.leader,
            group=command.group,
            prefixes=self._prefixes(command),
            now_ms=self.region.clock.wall_ms(),
        )
        await reversal.detach_leases(command.source)
        return self.answers.done(command, token)

    # --- parts ---------------------------------------------------------------------------------

    async def _settled(
        self, command: Command, token: Token, decision: fences.Decision, found: Found | None
    ) -> Answer | None:
        match decision:
            case fences.Ignore(token_seen):
                _log.info("command.superseded", group=command.group, token_seen=str(token_seen))
                return None
            case fences.Refuse(reason):
                return self.answers.refused(command, token, reason)
            case fences.Act(txn):
                await self._commit(txn)
        return self._answer(command, token, found) if found else self.answers.done(command, token)

    def _answer(self, command: Command, token: Token, found: Found) -> Answer:
        counts = {kind.value: count for kind, count in found.classes.items()}
        return attrs.evolve(
            self.answers.done(command, token),
            diverged={**counts, "total": found.total},
            completeness=found.completeness.value,
        )

    def _divergence(self, command: Command) -> Divergence:
        assert command.source is not None
        return Divergence(
            regional=self.region.regional,
            elsewhere=self.elsewhere,
            me=self.region.cluster,
            incarnation=self.region.incarnation,
            group=command.group,
            active=command.source,
            lineage=command.lineage,
            prefixes=self._prefixes(command),
            now_ms=self.region.clock.wall_ms(),
        )

    def _prefixes(self, command: Command) -> tuple[bytes, ...]:
        lineage = command.lineage
        covered = (lineage.prefixes if lineage else ()) or self.prefixes(command.group)
        return tuple(prefix.encode() for prefix in covered)

    async def _standing(self, group: GroupName) -> tuple[FenceView, list[OwnCheckpoint]]:
        reads = (*view_reads(group), Get(*prefix_range(RegionalKeys.checkpoints)))
        outcome = await self.region.regional.commit(Txn(operations=reads))
        assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
        *fence_reads, checkpoints = outcome.reads
        return view_of(group, tuple(fence_reads)), _joins(group, checkpoints)

    async def _commit(self, txn: Txn) -> None:
        outcome = await self.region.regional.commit(txn)
        if not isinstance(outcome, Committed):
            broken = ", ".join(str(guard) for guard in outcome.broken)
            raise RevisionConflict(f"the region's state moved: {broken}")


def _joins(group: GroupName, items: Sequence[KeyValue]) -> list[OwnCheckpoint]:
    found = []
    for item in items:
        parts = parts_below(RegionalKeys.checkpoints, item.key)
        if parts is not None and len(parts) == 2 and parts[1] == group:
            record = decode(GroupCheckpoint, item.value)
            found.append(
                OwnCheckpoint(
                    source=ClusterName(parts[0]),
                    phase=record.phase,
                    revision=item.mod_revision,
                    lineage=record.lineage,
                )
            )
    return found
