"""Adopting the coordination etcd itself: the operator's word that it goes on as it is now.

The API asks every region what its fences prove, plans (`coordinator/adoption.py`), and writes: a
new incarnation first, then each group's authority under it, and last that the adoption is complete.
The regions look for that, and go on by themselves. Whoever dies in between leaves regions that
stand still: the same command, repeated, begins the next incarnation and does all of it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import structlog
from aiohttp import web

from coordinator.adoption import AdoptionPlan, Choice, plan
from coordinator.adoption_regions import Region
from coordinator.api.adopt_bodies import CoordinationAsked, coordination_of
from coordinator.api.coordination_views import plan_view
from coordinator.failover.record import ActiveFailover, Failover, FailoverEvent, Phase, Problem
from coordinator.governance.audit import MESH_AUDIT, Act, appending, tip_of, tip_read
from coordinator.mesh import Mesh, read_at_once, read_mesh
from coordinator.registry import routing_of
from meshkit import asking
from meshkit.asker import AskRegion, ask_leader
from meshkit.clock import Clock
from meshkit.codec import canonical, decode, encode, to_plain
from meshkit.errors import Conflict, MeshError, Refused
from meshkit.incarnations import CoordinationAdoption
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import ClusterDescriptor, CoordinationIncarnation
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Revision, Token
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store
from meshkit.store.txn import (
    Committed,
    Delete,
    Get,
    Guard,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
)

_log = structlog.get_logger()

Json = dict[str, Any]

ATTEMPTS_MAX = 5
"""How often a transaction is tried while a record moves under it."""


@attrs.frozen(kw_only=True)
class _Begun:
    """An adoption that has begun its incarnation; everything else is written under that."""

    record: CoordinationAdoption
    revision: Revision

    @property
    def guard(self) -> Guard:
        return ModRevisionIs(Keys.incarnation, self.revision)


@attrs.define(kw_only=True, eq=False)
class CoordinationAdopting:
    """Adoptions of the coordination etcd that `store` is."""

    store: Store
    clock: Clock
    asker: AskRegion

    async def adopt(self, asked: CoordinationAsked, peer: PeerIdentity) -> Json:
        """Rebuild authority from the regions' fences, under a new incarnation; or show the plan.

        Raises:
            Refused: something stands in the way; it says each thing and what to do.
            Conflict: the plan is not the one that was shown, or something moved meanwhile.
        """
        mesh = await read_mesh(self.store)
        regions = await self._ask_all(mesh)
        planned = plan(mesh, regions, waive=frozenset(asked.waive))
        if asked.dry_run:
            return plan_view(planned, mesh, fingerprint=fingerprint(planned), changed=False)
        if planned.problems:
            raise Refused(
                "the coordination etcd cannot be adopted yet: " + "; ".join(planned.problems),
                hint="see what each region says: mesh coordination adopt --reason WHY --dry-run",
            )
        if asked.expect_plan not in ("", fingerprint(planned)):
            raise Conflict(
                "the regions say something else than what was shown; nothing was changed",
                hint="look again: mesh coordination adopt --reason WHY --dry-run",
            )
        begun = await self._begin(mesh, planned, asked, peer)
        for choice in planned.choices:
            await self._give(choice, begun, peer)
        await self._complete(begun, planned, asked)
        return plan_view(planned, mesh, fingerprint=fingerprint(planned), changed=True)

    # --- asking --------------------------------------------------------------------------------

    async def _ask_all(self, mesh: Mesh) -> Mapping[ClusterName, Region]:
        descriptors = [seen.record for seen in mesh.clusters.values()]
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(descriptor)) for descriptor in descriptors]
        return {region.cluster: region for region in (task.result() for task in asked)}

    async def _ask(self, descriptor: ClusterDescriptor) -> Region:
        name, groups = descriptor.name, dict[GroupName, asking.GroupStanding]()
        after: GroupName | None = None
        try:
            while True:
                standing = await ask_leader(
                    self.asker,
                    name,
                    descriptor.replication_endpoints,
                    asking.ReadStanding(after=after),
                    asking.RegionStanding,
                )
                groups |= {one.fence.group: one for one in standing.groups}
                after = standing.next_group
                if after is None:
                    return Region(cluster=name, standing=standing, groups=groups)
        except MeshError as error:
            return Region(cluster=name, problem=str(error))

    # --- writing -------------------------------------------------------------------------------

    async def _begin(
        self, mesh: Mesh, planned: AdoptionPlan, asked: CoordinationAsked, peer: PeerIdentity
    ) -> _Begun:
        """Begin the incarnation. From here on no round of a chain that saw another one goes on."""
        name = uuid.uuid4().hex[:8]
        incarnation = CoordinationIncarnation(number=planned.number, adoption=name)
        record = CoordinationAdoption(
            number=planned.number,
            adoption=name,
            floor=Token(incarnation=planned.number, revision=ABSENT),
            is_complete=False,
            waived=planned.waived,
            wait_ms=planned.wait_ms,
            requested_by=str(peer),
            reason=asked.reason,
            at_ms=self.clock.wall_ms(),
        )
        outcome = await self.store.commit(
            Txn(
                guards=(ModRevisionIs(Keys.incarnation, mesh.incarnation_revision),),
                operations=(
                    Put(Keys.incarnation, encode(incarnation)),
                    Put(Keys.adopted, encode(record)),
                ),
            )
        )
        if not isinstance(outcome, Committed):
            raise Conflict("somebody else is adopting the coordination etcd; nothing was changed")
        _log.warning("coordination.adopting", number=planned.number, requested_by=str(peer))
        floor = Token(incarnation=planned.number, revision=outcome.revision)
        return _Begun(record=attrs.evolve(record, floor=floor), revision=outcome.revision)

    async def _give(self, choice: Choice, begun: _Begun, peer: PeerIdentity) -> None:
        """Give a group its authority, and end whatever was under way for it.

        Raises:
            Conflict: its authority moved meanwhile, or another adoption has begun.
        """
        group = choice.group
        for _ in range(ATTEMPTS_MAX):
            mesh = await read_mesh(self.store)
            guards, operations = _given(choice, begun, mesh)
            gets = (tip_read(group), Get(Keys.failover_active(group)))
            _, (tip, active) = await read_at_once(self.store, gets)
            guards.append(
                ModRevisionIs(
                    Keys.failover_active(group), active[0].mod_revision if active else ABSENT
                )
            )
            if active:
                more_guards, more = await self._ended(
                    group, decode(ActiveFailover, active[0].value)
                )
                guards += more_guards
                operations += more
            act = _act_of(choice, begun, mesh, peer)
            audit = appending(group, tip_of(tip), [act], now_ms=self.clock.wall_ms())
            txn = Txn(guards=(*guards, audit.guard), operations=(*operations, *audit.puts))
            outcome = await self.store.commit(txn)
            if isinstance(outcome, Committed):
                return
            if begun.guard in outcome.broken:
                break
        raise Conflict(
            f"the adoption did not finish at group {group}: something moves there, or another"
            " adoption has begun",
            hint="every region stands still; once more: mesh coordination adopt --reason WHY",
        )

    async def _ended(
        self, group: GroupName, active: ActiveFailover
    ) -> tuple[list[Guard], list[Operation]]:
        """Return what ends the failover that was running when the etcd was lost."""
        operations: list[Operation] = [Delete(Keys.failover_active(group))]
        key = Keys.failover(group, active.id)
        item = await self.store.get(key)
        if item is None:
            return [], operations
        record = decode(Failover, item.value)
        ended = attrs.evolve(
            record,
            phase=Phase.SUPERSEDED,
            awaiting=None,
            transitions=record.transitions + 1,
            ended_ms=self.clock.wall_ms(),
            problem=Problem(
                happened="the coordination etcd went back and was adopted",
                state="what this failover had done is not built on: fences decided",
                next=f"mesh groups show {group}",
            ),
        )
        event = FailoverEvent(
            number=ended.transitions,
            at_ms=self.clock.wall_ms(),
            what="ended by an adoption",
            record=ended,
        )
        operations.append(Put(key, encode(ended)))
        operations.append(
            Put(Keys.failover_event(group, record.id, ended.transitions), encode(event))
        )
        return [ModRevisionIs(key, item.mod_revision)], operations

    async def _complete(
        self, begun: _Begun, planned: AdoptionPlan, asked: CoordinationAsked
    ) -> None:
        """Say that every group has its authority: the regions go on now."""
        record = attrs.evolve(begun.record, is_complete=True)
        act = Act(
            actor=record.requested_by,
            action="coordination.adopted",
            facts={
                "number": record.number,
                "adoption": record.adoption,
                "reason": asked.reason,
                "waived": list(record.waived),
                "regions": {name: how.value for name, how in planned.regions.items()},
                "groups": {c.group: f"{c.active} in epoch {c.epoch}" for c in planned.choices},
            },
        )
        for _ in range(ATTEMPTS_MAX):
            _, (tip,) = await read_at_once(self.store, (tip_read(MESH_AUDIT),))
            audit = appending(MESH_AUDIT, tip_of(tip), [act], now_ms=record.at_ms)
            outcome = await self.store.commit(
                Txn(
                    guards=(begun.guard, audit.guard),
                    operations=(Put(Keys.adopted, encode(record)), *audit.puts),
                )
            )
            if isinstance(outcome, Committed):
                _log.warning("coordination.adopted", number=record.number)
                return
            if begun.guard in outcome.broken:
                break
        raise Conflict(
            "the adoption did not finish: another one has begun, or the audit moves too fast",
            hint="every region stands still; once more: mesh coordination adopt --reason WHY",
        )


def fingerprint(planned: AdoptionPlan) -> str:
    """Return what tells one plan from another: whoever was shown it says which one it was."""
    told = {
        "number": planned.number,
        "waived": list(planned.waived),
        "choices": [to_plain(choice) for choice in planned.choices],
    }
    return hashlib.sha256(canonical(told)).hexdigest()[:16]


def _given(choice: Choice, begun: _Begun, mesh: Mesh) -> tuple[list[Guard], list[Operation]]:
    """Return the authority with its routing and commands, instead of all that there was."""
    group, floor = choice.group, begun.record.floor
    seen, described = mesh.authorities.get(group), mesh.groups[group]
    authority = choice.authority(floor)
    guards: list[Guard] = [
        begun.guard,
        ModRevisionIs(Keys.authority(group), seen.revision if seen else ABSENT),
        ModRevisionIs(Keys.group(group), described.revision),
    ]
    commands = {command.cluster: command for command in choice.commands(floor)}
    pact = choice.pact()
    operations: list[Operation] = [
        Put(Keys.authority(group), encode(authority)),
        Put(Keys.routing(group), encode(routing_of(described.record, authority, mesh))),
        Delete(Keys.seal(group)),
        *([Put(Keys.pact(group), encode(pact))] if pact else []),
    ]
    for member in described.record.members:
        key, command = Keys.command(member, group), commands.get(member)
        operations.append(Put(key, encode(command)) if command else Delete(key))
        operations.append(Delete(Keys.answer(member, group)))
    return guards, operations


def _act_of(choice: Choice, begun: _Begun, mesh: Mesh, peer: PeerIdentity) -> Act:
    seen = mesh.authorities.get(choice.group)
    return Act(
        actor=str(peer),
        action="group.adopted",
        facts={
            "epoch": choice.epoch,
            "active": choice.active,
            "token": str(choice.token or begun.record.floor),
            "lineage": to_plain(choice.lineage) if choice.lineage else None,
            "why": choice.why,
            "was": f"{seen.record.active} in epoch {seen.record.epoch}" if seen else None,
        },
    )


@attrs.frozen(kw_only=True)
class CoordinationHandlers:
    """The handler of the route about adopting the coordination etcd."""

    adopting: CoordinationAdopting
    read_body: Callable[[web.Request], Awaitable[dict[str, Any]]]
    peer_of: Callable[[web.Request], PeerIdentity]

    def by_name(self) -> Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """Return the handler by the name of its route."""
        return {"adopt_coordination": self._adopt}

    async def _adopt(self, request: web.Request) -> web.StreamResponse:
        asked = coordination_of(await self.read_body(request))
        return web.json_response(await self.adopting.adopt(asked, self.peer_of(request)))
