"""Clusters and groups as operators declare them, and the records that follow from them.

A group's first authority is founded in the transaction that makes the group. Whatever is missing
or out of date all the same (a group put by hand, endpoints that changed) is repaired by
`reconcile`, which the leader runs after each change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import structlog

from coordinator.failover.record import ActiveFailover
from coordinator.failover.repository import FailoverRunning
from coordinator.governance.audit import MESH_AUDIT, Act, appending, tip_of, tip_read
from coordinator.mesh import Mesh, read_at_once, read_mesh
from coordinator.term import Term
from meshkit.clock import Clock
from meshkit.codec import decode, encode, to_plain
from meshkit.commands import Command, CommandStep
from meshkit.errors import (
    InvalidInput,
    MeshError,
    NotFound,
    OutcomeUnknown,
    RevisionConflict,
    TermEnded,
)
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import (
    Authority,
    ClusterDescriptor,
    CoordinationIncarnation,
    Group,
    Routing,
    check_group,
    check_transition,
)
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import ABSENT, Epoch, Token
from meshkit.store.port import Store
from meshkit.store.txn import (
    Committed,
    Guard,
    ModRevisionIs,
    NoneModifiedSince,
    Operation,
    Put,
    Rejected,
    Txn,
    absent,
    prefix_range,
)

_log = structlog.get_logger()

FOUNDING = FailoverId("founding")
"""Stands for a failover in the command that opens a group's first epoch."""

ATTEMPTS_MAX = 5


@attrs.define(kw_only=True, eq=False)
class Registry:
    """Stores clusters and groups; with a `term`, only while it lasts."""

    store: Store
    clock: Clock
    term: Term | None = None

    async def put_cluster(
        self, descriptor: ClusterDescriptor, *, mesh: Mesh, actor: str, dry_run: bool = False
    ) -> bool:
        """Store a cluster's descriptor, and enter it in the mesh's audit; whether it changed.

        With `dry_run` everything is checked and nothing stored.

        Raises:
            InvalidInput: its intent may not go from what it was to this.
            RevisionConflict: it changed since `mesh` was read.
        """
        seen = mesh.clusters.get(descriptor.name)
        if seen is not None:
            if seen.record == descriptor:
                return False
            check_transition(seen.record.intent, descriptor.intent)
        if dry_run:
            return True
        key = Keys.cluster(descriptor.name)
        guard = ModRevisionIs(key, seen.revision if seen else ABSENT)
        act = Act(
            actor=actor,
            action="cluster.changed" if seen else "cluster.made",
            facts=_changed(seen.record if seen else None, descriptor),
        )
        await self._commit([guard], [Put(key, encode(descriptor))], group=MESH_AUDIT, acts=[act])
        return True

    async def put_group(
        self,
        group: Group,
        *,
        mesh: Mesh,
        active: ClusterName | None,
        actor: str,
        dry_run: bool = False,
    ) -> bool:
        """Store a group, founding its first epoch at `active` if it is new; whether it changed.

        With `dry_run` everything is checked and nothing stored.

        Raises:
            InvalidInput: see `check_group`; or a member or a prefix would be removed.
            FailoverRunning: the prefixes would change while a failover of the group runs.
            RevisionConflict: groups changed since `mesh` was read.
        """
        others = [seen.record for seen in mesh.groups.values()]
        check_group(group, others=others, clusters=mesh.clusters)
        if active is not None and active not in group.members:
            raise InvalidInput(f"{active} cannot be active for {group.name}: it is no member")
        seen = mesh.groups.get(group.name)
        if seen is not None and seen.record == group:
            return False
        if seen is not None:
            _check_nothing_lost(seen.record, group)
        is_rescoped = seen is not None and seen.record.prefixes != group.prefixes
        if dry_run:
            if is_rescoped:
                await self._check_none_runs(group.name)
            return True
        key = Keys.group(group.name)
        guards: list[Guard] = [
            ModRevisionIs(key, seen.revision if seen else ABSENT),
            NoneModifiedSince(prefix_range(Keys.groups), mesh.revision),
        ]
        if is_rescoped:
            guards.append(absent(Keys.failover_active(group.name)))
        operations: list[Operation] = [Put(key, encode(group))]
        act = Act(
            actor=actor, action="group.changed" if seen else "group.made", facts=_facts(group)
        )
        acts = [act]
        if group.name not in mesh.authorities:
            founded = _founding(group, mesh=mesh, active=active or group.members[0])
            guards += founded.guards
            operations += founded.operations
            acts.append(attrs.evolve(founded.act, actor=actor))
        try:
            await self._commit(guards, operations, group=group.name, acts=acts)
        except RevisionConflict:
            if is_rescoped:
                await self._check_none_runs(group.name)
            raise
        await self._follow(group, await read_mesh(self.store))
        return True

    async def _check_none_runs(self, group: GroupName) -> None:
        item = await self.store.get(Keys.failover_active(group))
        if item is not None:
            raise FailoverRunning(group, decode(ActiveFailover, item.value).id)

    async def ensure_incarnation(self) -> None:
        """Create the coordination incarnation if it is not there."""
        record = Put(Keys.incarnation, encode(CoordinationIncarnation()))
        try:
            await self._commit([absent(Keys.incarnation)], [record])
        except RevisionConflict:
            return

    async def reconcile(self) -> None:
        """Found groups that have no authority, and bring routing up to date.

        A group that was put by hand, past `put_group`, is taken as it is: what it was before is
        not known here, so nobody can refuse that it lost a member or a prefix, or changed its
        prefixes during a failover. The cluster that is active follows it by a mark in its log.

        Raises:
            TermEnded: another coordinator leads.
            Unreachable: the coordination etcd did not answer.
        """
        mesh = await read_mesh(self.store)
        for seen in mesh.groups.values():
            try:
                if seen.record.name not in mesh.authorities:
                    await self._found(seen.record, mesh)
                else:
                    await self._follow(seen.record, mesh)
            except TermEnded:
                raise
            except MeshError as error:
                _log.warning("group.not_reconciled", group=seen.record.name, why=str(error))

    async def _found(self, group: Group, mesh: Mesh) -> None:
        founded = _founding(group, mesh=mesh, active=group.members[0])
        guard = ModRevisionIs(Keys.group(group.name), mesh.groups[group.name].revision)
        guards = [guard, *founded.guards]
        await self._commit(guards, founded.operations, group=group.name, acts=[founded.act])
        _log.info("group.founded", group=group.name, active=group.members[0])

    async def _follow(self, group: Group, mesh: Mesh) -> None:
        """Make the routing say what the group, its authority and its members' endpoints say."""
        authority = mesh.authorities.get(group.name)
        if authority is None:
            return
        routing = mesh.routings.get(group.name)
        wanted = routing_of(group, authority.record, mesh)
        if routing is not None and routing.record == wanted:
            return
        guards = [
            ModRevisionIs(Keys.routing(group.name), routing.revision if routing else ABSENT),
            ModRevisionIs(Keys.authority(group.name), authority.revision),
        ]
        await self._commit(guards, [Put(Keys.routing(group.name), encode(wanted))])
        _log.info("routing.changed", group=group.name)

    async def _commit(
        self,
        guards: Sequence[Guard],
        operations: Sequence[Operation],
        *,
        group: GroupName | None = None,
        acts: Sequence[Act] = (),
    ) -> None:
        """Commit once under the guards; only the audit's tip may move and is read again."""
        for _ in range(ATTEMPTS_MAX):
            all_guards, all_operations = [*guards], [*operations]
            if group is not None and acts:
                _, (tip,) = await read_at_once(self.store, (tip_read(group),))
                audit = appending(group, tip_of(tip), acts, now_ms=self.clock.wall_ms())
                all_guards.append(audit.guard)
                all_operations += audit.puts
            leading = self.term.guard() if self.term else None
            if leading is not None:
                all_guards.append(leading)
            txn = Txn(guards=tuple(all_guards), operations=tuple(all_operations))
            match await self.store.commit(txn):
                case Committed():
                    return
                case Rejected(broken=broken) if leading is not None and leading in broken:
                    raise TermEnded("another coordinator leads, or nobody does")
                case Rejected(broken=broken) if any(guard in broken for guard in guards):
                    raise RevisionConflict("it was changed by somebody else meanwhile")
        raise OutcomeUnknown("the audit moves too fast")


@attrs.frozen(kw_only=True)
class _Founding:
    guards: list[Guard]
    operations: list[Operation]
    act: Act


def _founding(group: Group, *, mesh: Mesh, active: ClusterName) -> _Founding:
    """Return what gives a group its first epoch.

    Its fencing token is the revision at which the absence of any authority was seen: lower than
    the revision of every command and every failover record there will ever be for the group.
    """
    token = Token(incarnation=mesh.incarnation.number, revision=mesh.revision)
    authority = Authority(group=group.name, epoch=Epoch(1), token=token, active=active)
    command = Command(
        group=group.name,
        cluster=active,
        step=CommandStep.OPEN,
        incarnation=mesh.incarnation.number,
        epoch=authority.epoch,
        failover=FOUNDING,
        target=active,
        token=token,
    )
    return _Founding(
        guards=[
            absent(Keys.authority(group.name)),
            absent(Keys.routing(group.name)),
            ModRevisionIs(Keys.incarnation, mesh.incarnation_revision),
        ],
        operations=[
            Put(Keys.authority(group.name), encode(authority)),
            Put(Keys.routing(group.name), encode(routing_of(group, authority, mesh))),
            Put(Keys.command(active, group.name), encode(command)),
        ],
        act=Act(
            actor="coordinator",
            action="group.founded",
            facts={"active": active, "epoch": 1, "token": str(token)},
        ),
    )


def routing_of(group: Group, authority: Authority, mesh: Mesh) -> Routing:
    """Return the routing record that group, authority and members' endpoints make."""
    return Routing(
        group=group.name,
        epoch=authority.epoch,
        token=authority.token,
        active=authority.active,
        endpoints={
            member: mesh.clusters[member].record.etcd_endpoints
            for member in group.members
            if member in mesh.clusters
        },
        prefixes=group.prefixes,
    )


def _check_nothing_lost(before: Group, after: Group) -> None:
    """Demand that a group keeps its members and prefixes.

    A prefix that went on to another group would be applied over by the old group's stream.
    """
    members = set(before.members) - set(after.members)
    if members:
        raise InvalidInput(
            f"group {after.name} cannot lose its member {', '.join(sorted(members))}",
            hint="a member cannot be removed from a group yet",
        )
    prefixes = set(before.prefixes) - set(after.prefixes)
    if prefixes:
        raise InvalidInput(
            f"group {after.name} cannot lose its prefix {', '.join(sorted(prefixes))}",
            hint="a prefix cannot be removed from a group yet; adding one is possible",
        )


def _changed(before: ClusterDescriptor | None, after: ClusterDescriptor) -> dict[str, Any]:
    """Return what the audit says of a cluster: what is new of it."""
    old = to_plain(before) if before else {}
    new = {name: value for name, value in to_plain(after).items() if old.get(name) != value}
    return {"cluster": after.name, "new": new}


def _facts(group: Group) -> dict[str, list[str]]:
    return {"prefixes": [*group.prefixes], "members": [*group.members]}


def require_members(group: Group, *clusters: ClusterName) -> None:
    """Demand that clusters are members of a group.

    Raises:
        NotFound: one is not; names those that are.
    """
    for cluster in clusters:
        if cluster not in group.members:
            raise NotFound(
                f"cluster {cluster!r} is no member of group {group.name}",
                hint=f"members are: {', '.join(group.members)}",
            )
