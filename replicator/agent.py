"""The region's hand: obeys the coordinator's commands and keeps what the authority allows.

Runs in the leading replicator of a region. It decides nothing about authority: what to do is
derived from a command and the fence record (`fencing.fence`, pure), done in one transaction of the
regional etcd, and answered in the coordination etcd. It may die between any two of these: its
successor finds the outcome in the fence and gives the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing

import structlog

from fencing import fence as fences
from fencing.fence_view import FenceView, view_of, view_reads
from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.errors import MeshError, OutcomeUnknown, Refused, RevisionConflict
from meshkit.failpoints import reach
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.mirror import PrefixMirror
from meshkit.model import Authority, Group, Lineage, Routing
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, LeaseId, Revision, Token
from meshkit.promises import PromisesRefused
from meshkit.regional import FenceMode
from meshkit.store.txn import Committed, Put, Txn
from meshkit.vector import ClusterVersionVector, LogName
from replicator import rejoining
from replicator.agent_ports import Chain, Inbound, Outbound, Region
from replicator.answering import Answering
from replicator.answers import Answers
from replicator.elsewhere import NOWHERE, Elsewhere
from replicator.group_leases import GroupLeases
from replicator.lease_claims import LeasesTaken
from replicator.rescue import Rescue
from replicator.reversal import Reversal, Untouched, follow_back
from replicator.standing import read_standing

_log = structlog.get_logger()

_OPENING = (CommandStep.OPEN, CommandStep.RELEASE)
"""Commands by which a cluster that has authority may open an epoch."""

RETRY_MS = 100
"""Between attempts at a command while an etcd does not answer; the coordinator bounds the whole."""


Obey = Callable[[Command, Token], Awaitable[Answer | None]]


class Agent:
    """Obeys commands for every group of one region.

    Invariant: at most one task per group is obeying, and it is the one of the newest command.
    """

    def __init__(
        self,
        region: Region,
        *,
        chain: Chain,
        inbound: Inbound,
        outbound: Outbound,
        elsewhere: Elsewhere = NOWHERE,
        local: Untouched | None = None,
    ) -> None:
        self._local = local
        self.region = region
        self._chain = chain
        self._inbound = inbound
        self._outbound = outbound
        coordination, clock = region.coordination, region.clock
        self.commands = PrefixMirror(
            coordination, CoordinationKeys.commands_to(region.cluster), clock=clock
        )
        self.groups = PrefixMirror(coordination, CoordinationKeys.groups, clock=clock)
        self.authorities = PrefixMirror(coordination, CoordinationKeys.authorities, clock=clock)
        self.routings = PrefixMirror(coordination, CoordinationKeys.routings, clock=clock)
        answers = CoordinationKeys.answer(region.cluster, GroupName(""))
        self.answered = PrefixMirror(coordination, answers, clock=clock)
        self.leases = GroupLeases(region, self.groups)
        self._answers = Answers(cluster=region.cluster, incarnation=region.incarnation)
        self._rescue = Rescue(
            region,
            inbound=inbound,
            elsewhere=elsewhere,
            answers=self._answers,
            members=self._members,
        )
        self._rejoining = rejoining.Rejoining(
            region=region,
            inbound=inbound,
            elsewhere=elsewhere,
            answers=self._answers,
            prefixes=self._prefixes,
        )
        self._answering = Answering(region.cluster, region.coordination, self.answered)
        self._obeying: dict[GroupName, tuple[Token, asyncio.Task[None]]] = {}
        self._answered: dict[GroupName, Token] = {}
        self._commanded: set[bytes] = set()
        """Commands that have changed and were not looked at yet."""
        self.commands.on_change(self._on_commands)

    async def run(self) -> None:
        """Obey until cancelled (the end of the region's term cancels)."""
        self._commanded.update(self.commands.entries)
        try:
            async with asyncio.TaskGroup() as tasks:
                for mirror in (self.commands, *self._read_first):
                    tasks.create_task(mirror.run())
                await self.loaded()
                async for _ in self.commands.changes():
                    changed, self._commanded = self._commanded, set()
                    self._dispatch(tasks, changed)
        finally:
            self._obeying.clear()

    @property
    def _read_first(self) -> tuple[PrefixMirror, ...]:
        return (self.groups, self.authorities, self.routings, self.answered)

    async def loaded(self) -> None:
        """Return once authority, groups, routing and our answers have been read."""
        for mirror in self._read_first:
            await mirror.ready.wait()

    def _on_commands(self, keys: frozenset[bytes]) -> None:
        self._commanded |= keys

    def _dispatch(self, tasks: asyncio.TaskGroup, changed: Iterable[bytes]) -> None:
        """Begin to obey the commands that have changed, and look at no other."""
        for key in sorted(changed):
            item = self.commands.entries.get(key)
            if item is None:
                continue
            try:
                command = decode(Command, item.value)
            except MeshError as error:
                _log.error("command.unreadable", key=item.key.decode(), why=str(error))
                continue
            token = Token(incarnation=command.incarnation, revision=item.mod_revision)
            if token <= self._answered.get(command.group, NO_TOKEN):
                continue
            running = self._obeying.get(command.group)
            if running is not None:
                if token <= running[0]:
                    continue
                running[1].cancel()
            self._obeying[command.group] = (token, tasks.create_task(self._obey(command, token)))

    async def _obey(self, command: Command, token: Token) -> None:
        log = _log.bind(group=command.group, step=command.step.value, token=str(token))
        while True:
            try:
                if self._answering.is_answered(command, token):
                    self._answered[command.group] = token
                    return
                reach(f"agent.{command.step.value}.received")
                answer = await self._perform(command, token)
                reach(f"agent.{command.step.value}.acted")
                if answer is not None:
                    await self._answering.put(answer, epoch=command.epoch)
                reach(f"agent.{command.step.value}.answered")
                self._answered[command.group] = token
            except OutcomeUnknown as error:
                log.warning("command.outcome_unknown", why=str(error))
                await self.region.clock.sleep_ms(RETRY_MS)
            except MeshError as error:
                log.warning("command.delayed", why=str(error))
                await self.region.clock.sleep_ms(RETRY_MS)
            else:
                log.info("command.obeyed", outcome=answer.outcome.value if answer else "superseded")
                return

    async def _perform(self, command: Command, token: Token) -> Answer | None:
        """Do what the command asks and return the answer; None if a newer one was obeyed."""
        obey: Mapping[CommandStep, Obey] = {
            CommandStep.CATCH_UP: self._catch_up,
            CommandStep.CONVERGE: self._converge,
            CommandStep.REVERSE: self._reverse,
            CommandStep.TAKE_IN: self._rescue.take_in,
            CommandStep.FREEZE: self._freeze,
            **dict.fromkeys(rejoining.STEPS, self._rejoining.perform),
        }
        return await obey.get(command.step, self._change_fence)(command, token)

    async def _freeze(self, command: Command, token: Token) -> Answer | None:
        answer = await self._rescue.freeze(command, token)
        if answer is not None and answer.outcome is AnswerOutcome.DONE:
            await self.leases.grant(command, may_refuse=False)
        return answer

    # --- commands that only wait ---------------------------------------------------------------

    async def _catch_up(self, command: Command, token: Token) -> Answer:
        assert command.target is not None
        assert command.lag_ms_max is not None
        await self._outbound.wait_caught_up(
            command.target, lag_ms_max=command.lag_ms_max, group=command.group
        )
        return self._answers.done(command, token)

    async def _converge(self, command: Command, token: Token) -> Answer:
        """Wait for the cut, then say what is contained here and whether the group is in step."""
        assert command.source is not None
        assert command.cut is not None
        assert command.cut_incarnation is not None
        await self._inbound.wait_applied(command.source, command.cut_incarnation, command.cut)
        standing = await read_standing(self.region.regional, command.group, command.source)
        fence, checkpoint = standing.view.fence, standing.checkpoint
        if standing.is_out_of_step or fence is None or fence.epoch != command.epoch:
            return self._answers.refused(
                command, token, "the copy here is not in step with the source"
            )
        if checkpoint is None or checkpoint.sequence < command.cut:
            raise RevisionConflict("the stored checkpoint is not there yet")
        if standing.has_leases:
            try:
                await self.leases.grant(command)
            except LeasesTaken as error:
                return self._answers.refused(command, token, str(error))
        vector = ClusterVersionVector.of(
            {LogName(cluster=checkpoint.source, incarnation=checkpoint.incarnation): command.cut}
        )
        return self._answers.done(command, token, watermark=checkpoint.sequence, vector=vector)

    # --- commands that change the fence --------------------------------------------------------

    async def _change_fence(self, command: Command, token: Token) -> Answer | None:
        if command.step in _OPENING and command.lineage is not None:
            view = await self._fit_to_open(command, command.lineage, token)
        else:
            view = await self._view(command.group)
        lease = await self._lease_for(view, command, token)
        if command.step is CommandStep.DRAIN and view.command_token < token:
            await self._check_scope(view)
        decision = fences.decide(
            view,
            command,
            token,
            leader=self.region.leader,
            lease=lease,
            routing=self._routing(command.group),
            prefixes=self._prefixes(command.group),
        )
        match decision:
            case fences.Ignore(token_seen):
                _log.info("command.superseded", group=command.group, token_seen=str(token_seen))
                return None
            case fences.Refuse(reason):
                return self._answers.refused(command, token, reason)
            case fences.Wait(reason):
                await self._refuse_promises(command, token)
                raise Refused(reason)
            case fences.Repeat():
                return self._answers.fact(command, token, view)
            case fences.Act(txn):
                async with self._access_changed(command):
                    revision = await self._commit(txn)
                return self._answers.fact(command, token, view, revision=revision)

    async def _refuse_promises(self, command: Command, token: Token) -> None:
        """Have nothing more promised here that would keep this command waiting for ever."""
        waiting = PromisesRefused(group=command.group, epoch=command.epoch, command_token=token)
        key = RegionalKeys.promises_refused(command.group)
        item = await self.region.regional.get(key)
        if item is None or item.value != encode(waiting):
            await self._commit(
                Txn(guards=(self.region.leader,), operations=(Put(key, encode(waiting)),))
            )

    def _access_changed(self, command: Command) -> AbstractAsyncContextManager[None]:
        """Return what goes around a change of the fence, for clients that ignore the permit."""
        access, prefixes = self.region.access, self._prefixes(command.group)
        opens = command.step in (*_OPENING, CommandStep.UNDRAIN)
        return access.opening(prefixes) if opens else access.closing(prefixes)

    async def _lease_for(self, view: FenceView, command: Command, token: Token) -> LeaseId | None:
        """Return the lease for the permit of `open` or `undrain`, once one may hang there."""
        if command.step not in (*_OPENING, CommandStep.UNDRAIN):
            return None
        if token <= view.command_token:
            return None
        authority, revision = await self._authority(command)
        return await self._chain.permit_lease(authority, revision)

    async def _authority(self, command: Command) -> tuple[Authority, Revision]:
        """Wait for the authority that the command belongs to, and return it."""
        key = CoordinationKeys.authority(command.group)
        async with aclosing(self.authorities.changes_of(key)) as changes:
            async for _ in changes:
                item = self.authorities.entries.get(key)
                if item is None:
                    continue
                authority = decode(Authority, item.value)
                if authority.epoch > command.epoch:
                    raise Refused(f"authority has moved on to epoch {authority.epoch}")
                if authority.epoch == command.epoch and authority.active == self.region.cluster:
                    return authority, item.mod_revision
        raise AssertionError("mirrors end only by cancellation")

    async def _fit_to_open(self, command: Command, lineage: Lineage, token: Token) -> FenceView:
        """Return the fence once this cluster may open the group on top of its parent.

        Authority has moved here, so what is missing is waited for and not given back.

        Raises:
            Refused: the copy here is short of the parent's cut, or not complete.
        """
        standing = await read_standing(self.region.regional, command.group, lineage.parent)
        view, checkpoint = standing.view, standing.checkpoint
        if token <= view.command_token:
            return view
        if view.fence is not None and view.fence.epoch >= command.epoch:
            return view
        is_frozen = view.fence is not None and view.fence.mode is FenceMode.HELD
        if standing.is_out_of_step and not is_frozen:
            raise Refused("the copy of the group here is not complete")
        if lineage.parent == self.region.cluster:
            return view
        if checkpoint is None or checkpoint.incarnation != lineage.parent_incarnation:
            parent = f"{lineage.parent}#{lineage.parent_incarnation}"
            raise Refused(f"nothing of {parent} is applied here")
        if checkpoint.sequence < lineage.sequence:
            raise Refused(
                f"applied up to {checkpoint.sequence}, which is short of {lineage.sequence}"
            )
        return view

    async def _check_scope(self, view: FenceView) -> None:
        """Bring the segment's scope up to date before it ends: what it leaves out is in no log.

        Read from the coordination etcd itself, because writes under a new prefix are accepted from
        the moment it is announced there, whatever a mirror shows.
        """
        item = await self.region.coordination.get(CoordinationKeys.group(view.group))
        if item is None:
            raise Refused(f"group {view.group} is not described in the coordination etcd")
        prefixes = decode(Group, item.value).prefixes
        txn = fences.scope_again(view, prefixes, leader=self.region.leader)
        if txn is not None:
            await self._commit(txn)
            raise RevisionConflict("the group covers more than its segment did; looking again")

    async def _reverse(self, command: Command, token: Token) -> Answer | None:
        """Become passive, set aside what was written past the cut, and follow the new active."""
        assert command.lineage is not None
        assert command.source is not None
        answer = await self._change_fence(command, token)
        if answer is None or answer.outcome is not AnswerOutcome.DONE:
            return answer
        covered = command.lineage.prefixes or self._prefixes(command.group)
        reversal = Reversal(
            regional=self.region.regional,
            leader=self.region.leader,
            group=command.group,
            prefixes=tuple(prefix.encode() for prefix in covered),
            now_ms=self.region.clock.wall_ms(),
            local=self._local,
        )
        await follow_back(reversal, command, self._inbound, self.leases)
        return answer

    # --- reading, writing, answering -----------------------------------------------------------

    async def _view(self, group: GroupName) -> FenceView:
        outcome = await self.region.regional.commit(Txn(operations=view_reads(group)))
        assert isinstance(outcome, Committed)
        return view_of(group, outcome.reads)

    async def _commit(self, txn: Txn) -> Revision:
        match await self.region.regional.commit(txn):
            case Committed(revision=revision):
                return revision
            case rejected:
                broken = ", ".join(str(guard) for guard in rejected.broken)
                raise RevisionConflict(f"the region's state moved: {broken}")

    def _routing(self, group: GroupName) -> Routing | None:
        item = self.routings.entries.get(CoordinationKeys.routing(group))
        return decode(Routing, item.value) if item else None

    def _members(self, group: GroupName) -> tuple[ClusterName, ...]:
        item = self.groups.entries.get(CoordinationKeys.group(group))
        if item is None:
            raise Refused(f"group {group} is not known here yet")
        return decode(Group, item.value).members

    def _prefixes(self, group: GroupName) -> tuple[str, ...]:
        item = self.groups.entries.get(CoordinationKeys.group(group))
        if item is None:
            raise Refused(f"group {group} is not known here yet")
        return decode(Group, item.value).prefixes
