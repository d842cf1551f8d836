"""The target's part of an emergency: take in what still arrives, then fix the copy where it is.

Frozen, the group has a checkpoint of its own, so that the other groups of the stream go on
(`fencing/freeze.py`). Nothing here decides about authority.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from fencing.fence_view import FenceView, view_of, view_reads
from fencing.freeze import Copy, freeze, is_cut_here, stands_on
from fencing.patience import within
from meshkit.asking import TellSealed
from meshkit.codec import decode
from meshkit.commands import Answer, Command
from meshkit.errors import MeshError, RevisionConflict
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, NO_TOKEN, Token
from meshkit.regional import Checkpoint, GroupCheckpoint
from meshkit.store.txn import Committed, Get, KeyValue, Txn
from meshkit.vector import ClusterVersionVector, LogName
from replicator.agent_ports import Inbound, Region
from replicator.answers import Answers
from replicator.elsewhere import Elsewhere
from replicator.region_state import torn_groups

_log = structlog.get_logger()

TELL_MS_MAX = 100
TELL_AGAIN_MS = 250
HEARD_MS = 500
"""A source that says that its log has ended is waited for, unless it is silent for so long."""
FREEZE_ATTEMPTS_MAX = 20
"""How often in a row the freeze is tried while the checkpoint moves under it."""


class Rescue:
    """Obeys `take_in` and `freeze` for one region."""

    def __init__(
        self,
        region: Region,
        *,
        inbound: Inbound,
        elsewhere: Elsewhere,
        answers: Answers,
        members: Callable[[GroupName], tuple[ClusterName, ...]],
    ) -> None:
        self._region = region
        self._inbound = inbound
        self._elsewhere = elsewhere
        self._answers = answers
        self._members = members

    async def take_in(self, command: Command, token: Token) -> Answer:
        """Wait for the source's cut, or until nothing has been heard of it for a while.

        A source that is cut off from the coordination etcd alone is told of its seal (S26): then
        the cut is in its stream, and proves that nothing is missing.
        """
        assert command.source is not None
        source, quiet_ms = command.source, command.quiet_ms or 0
        told = TellSealed(
            group=command.group,
            epoch=command.epoch,
            seal=command.seal or NO_TOKEN,
            failover=command.failover,
        )
        if not quiet_ms and await self._has_heard(source, told):
            quiet_ms = HEARD_MS
        telling = asyncio.ensure_future(self._tell_until_heard(source, told))
        try:
            taken = await self._inbound.wait_taken_in(
                source, command.group, command.epoch, seal=told.seal, quiet_ms=quiet_ms
            )
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        return self._answers.done(command, token, cut=taken.cut, at_ms=taken.contained_at_ms)

    async def _has_heard(self, source: ClusterName, told: TellSealed) -> bool:
        """Tell a source for which nobody waits; return whether it lives, and its log has ended."""
        try:
            return await within(self._region.clock, TELL_MS_MAX, self._tell(source, told))
        except MeshError as error:
            _log.info("seal.not_told", group=told.group, source=source, why=str(error))
            return False

    async def _tell_until_heard(self, source: ClusterName, told: TellSealed) -> None:
        while True:
            try:
                await self._tell(source, told)
            except MeshError as error:
                _log.info("seal.not_told", group=told.group, source=source, why=str(error))
            else:
                return
            await self._region.clock.sleep_ms(TELL_AGAIN_MS)

    async def _tell(self, source: ClusterName, told: TellSealed) -> bool:
        """Tell the source of a seal that is there; return whether its log has ended under it.

        Raises:
            MeshError: it did not hear, or does not obey.
        """
        stored = await self._region.coordination.get(CoordinationKeys.seal(told.group))
        if stored is None or stored.mod_revision != told.seal.revision:
            return False
        return await self._elsewhere.tell_sealed(source, told)

    async def freeze(self, command: Command, token: Token) -> Answer | None:
        """Apply nothing more of the group, and say exactly what is contained; None if overtaken.

        Raises:
            RevisionConflict: the checkpoint moves too fast; try again.
        """
        assert command.source is not None
        async with self._inbound.standing_still(command.source):
            for _ in range(FREEZE_ATTEMPTS_MAX):
                view, copies = await self._read(command)
                if token < view.command_token:
                    return None
                on = stands_on(
                    view,
                    command,
                    copies,
                    me=self._region.cluster,
                    incarnation=self._region.incarnation,
                )
                if not isinstance(on, Lineage):
                    return self._answers.refused(command, token, on)
                if token == view.command_token:
                    return self._frozen(command, token, on)
                copy = None
                if not is_cut_here(view):
                    copy = next(c for c in copies if c.source == on.parent)
                act = freeze(view, command, token, self._region.leader, on=on, copy=copy)
                outcome = await self._region.regional.commit(act.txn)
                if isinstance(outcome, Committed):
                    _log.info("group.frozen", group=command.group, at=f"{on.parent}@{on.sequence}")
                    return self._frozen(command, token, on)
        raise RevisionConflict("the checkpoint moves too fast to be fixed")

    def _frozen(self, command: Command, token: Token, on: Lineage) -> Answer:
        log = LogName(cluster=on.parent, incarnation=on.parent_incarnation)
        vector = ClusterVersionVector.of({log: on.sequence})
        return self._answers.done(
            command, token, watermark=on.sequence, vector=vector, stands_on=on
        )

    async def _read(self, command: Command) -> tuple[FenceView, list[Copy]]:
        """Return the fence and what is contained of every member's log, read at one revision."""
        group = command.group
        sources = sorted(set(self._members(group)) - {self._region.cluster})
        reads = list(view_reads(group))
        for source in sources:
            reads.append(Get(RegionalKeys.checkpoint(source)))
            reads.append(Get(RegionalKeys.group_checkpoint(source, group)))
            reads.append(Get(RegionalKeys.parts(source)))
        outcome = await self._region.regional.commit(Txn(operations=tuple(reads)))
        assert isinstance(outcome, Committed)
        size = len(view_reads(group))
        found = outcome.reads[size:]
        copies = [
            _copy(group, source, found[3 * number : 3 * number + 3])
            for number, source in enumerate(sources)
        ]
        return view_of(group, outcome.reads[:size]), copies


def _copy(group: GroupName, source: ClusterName, reads: tuple[tuple[KeyValue, ...], ...]) -> Copy:
    main, own, parts = reads
    return Copy(
        source=source,
        main=decode(Checkpoint, main[0].value) if main else None,
        main_revision=main[0].mod_revision if main else ABSENT,
        own=decode(GroupCheckpoint, own[0].value) if own else None,
        own_revision=own[0].mod_revision if own else ABSENT,
        is_torn=group in torn_groups(parts),
        parts_revision=parts[0].mod_revision if parts else ABSENT,
    )
