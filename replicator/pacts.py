"""Keeps the pacts of the groups that are active here and go on when coordination is lost.

A pact is worth something only once it stands in both etcds, and what it demands here is never less
than what it says in the coordination etcd (`meshkit.promises`). Hence the order: the coordination
etcd first when it is made, the region first when a member joins or the group stops to keep. With
it, who decides there knows without asking us what we may do when we hear nothing more of them.

A change there may arrive late, long after it was given up. Each compares the mod revision of what
it replaces, and that is stored here first while no pact is in force; one is put in force only on a
pact there of another revision. So whatever is still on its way cannot touch what that rests on.
"""

from __future__ import annotations

import attrs
import structlog

from meshkit.codec import decode, encode
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.mirror import PrefixMirror
from meshkit.model import Authority, CoordinationLoss, Group
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.promises import Pact
from meshkit.store.txn import (
    Committed,
    Delete,
    Guard,
    KeyValue,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
    absent,
)
from replicator.agent_ports import Region

_log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Standing:
    """What a group's pact is and should be, in the epoch in which this cluster is active."""

    group: Group
    authority: Authority
    outside: Pact | None
    here: Pact | None
    outside_revision: Revision = ABSENT
    """The mod revision of `outside`."""

    @property
    def is_wanted(self) -> bool:
        """Whether the group's policy is to go on."""
        return self.group.policy.on_coordination_loss is CoordinationLoss.KEEP

    @property
    def wanted(self) -> Pact:
        """The pact in the coordination etcd that follows from the group as it is described."""
        return Pact(
            group=self.group.name,
            epoch=self.authority.epoch,
            cluster=self.authority.active,
            members=self.group.members,
        )


@attrs.frozen(kw_only=True)
class Change:
    """One change of a pact in one of the two etcds; None deletes."""

    is_here: bool
    pact: Pact | None


def change_due(standing: Standing) -> Change | None:
    """Return the next change that brings both pacts in line, or None. Each is due after the other.

    A pact of an older epoch is nobody's: that this one was opened proves that it is over.
    """
    wanted, here, outside = standing.wanted, standing.here, standing.outside
    in_force = here if here and here.is_in_force and _is_of(here, wanted) else None
    if not standing.is_wanted:
        if in_force is not None:
            ended = attrs.evolve(in_force, is_in_force=False, replaces=standing.outside_revision)
            return Change(is_here=True, pact=ended)
        return _outside_later(standing, None) if outside is not None else None
    if in_force is None:
        if outside != wanted or _is_to_be_replaced(standing):
            return _outside_later(standing, wanted)
        return Change(is_here=True, pact=wanted)
    if not set(wanted.members) <= set(in_force.members):
        members = tuple(dict.fromkeys((*in_force.members, *wanted.members)))
        return Change(is_here=True, pact=attrs.evolve(in_force, members=members))
    return Change(is_here=False, pact=wanted) if outside != wanted else None


def _outside_later(standing: Standing, pact: Pact | None) -> Change:
    """Return the change in the coordination etcd, or what must be stored here before it.

    A pact of another epoch needs nothing: none is put in force on it.
    """
    outside, wanted = standing.outside, standing.wanted
    if outside is None or not _is_of(outside, wanted) or _is_to_be_replaced(standing):
        return Change(is_here=False, pact=pact)
    mark = attrs.evolve(wanted, members=(), is_in_force=False, replaces=standing.outside_revision)
    return Change(is_here=True, pact=mark)


def _is_to_be_replaced(standing: Standing) -> bool:
    """Return whether a change of the very pact in the coordination etcd may be on its way."""
    here = standing.here
    return (
        here is not None
        and not here.is_in_force
        and _is_of(here, standing.wanted)
        and here.replaces == standing.outside_revision
    )


def _is_of(pact: Pact, wanted: Pact) -> bool:
    return (pact.cluster, pact.epoch) == (wanted.cluster, wanted.epoch)


class Pacts:
    """The pacts of one region while its term lasts."""

    def __init__(self, region: Region) -> None:
        self._region = region
        clock = region.clock
        self.here = PrefixMirror(region.regional, RegionalKeys.pacts, clock=clock)
        self.outside = PrefixMirror(region.coordination, CoordinationKeys.pacts, clock=clock)

    @property
    def mirrors(self) -> tuple[PrefixMirror, PrefixMirror]:
        """What has to run and to be ready before `keep` is called."""
        return self.here, self.outside

    def is_due(self, group: Group, authority: Authority) -> bool:
        """Return whether `keep` would change something."""
        return self._change_due(group, authority) is not None

    def _change_due(self, group: Group, authority: Authority) -> Change | None:
        outside = self.outside.entries.get(CoordinationKeys.pact(group.name))
        here = self.here.entries.get(RegionalKeys.pact(group.name))
        return change_due(
            Standing(
                group=group,
                authority=authority,
                outside=decode(Pact, outside.value) if outside else None,
                here=decode(Pact, here.value) if here else None,
                outside_revision=outside.mod_revision if outside else ABSENT,
            )
        )

    async def keep(
        self, group: Group, authority: Authority, revision: Revision, fence_revision: Revision
    ) -> None:
        """Bring the pacts of a group that is active here, in `authority`'s epoch, one step on.

        Raises:
            MeshError: nobody knows what came of it; look again.
        """
        due = self._change_due(group, authority)
        if due is None:
            return
        if due.is_here:
            here = self.here.entries.get(RegionalKeys.pact(group.name))
            await self._change_here(group.name, due.pact, here, fence_revision)
        else:
            outside = self.outside.entries.get(CoordinationKeys.pact(group.name))
            await self._change_outside(group.name, due.pact, outside, revision)

    async def _change_here(
        self,
        group: GroupName,
        pact: Pact | None,
        before: KeyValue | None,
        fence_revision: Revision,
    ) -> None:
        guards = (
            self._region.leader,
            ModRevisionIs(RegionalKeys.fence(group), fence_revision),
            _as_it_was(RegionalKeys.pact(group), before),
        )
        operation = _operation(RegionalKeys.pact(group), pact)
        outcome = await self._region.regional.commit(Txn(guards=guards, operations=(operation,)))
        self._report(group, pact, isinstance(outcome, Committed), self._region.cluster)

    async def _change_outside(
        self,
        group: GroupName,
        pact: Pact | None,
        before: KeyValue | None,
        authority_revision: Revision,
    ) -> None:
        """A pact is not made under a seal: who fences has looked for one after putting it."""
        guards: list[Guard] = [
            ModRevisionIs(CoordinationKeys.authority(group), authority_revision),
            _as_it_was(CoordinationKeys.pact(group), before),
            absent(CoordinationKeys.seal(group)),
        ]
        operation = _operation(CoordinationKeys.pact(group), pact)
        outcome = await self._region.coordination.commit(
            Txn(guards=tuple(guards), operations=(operation,))
        )
        self._report(group, pact, isinstance(outcome, Committed), None)

    def _report(
        self, group: GroupName, pact: Pact | None, is_done: bool, at: ClusterName | None
    ) -> None:
        if is_done:
            members = pact.members if pact and pact.is_in_force else ()
            _log.info("pact.changed", group=group, at=at or "coordination", members=members)


def _as_it_was(key: bytes, before: KeyValue | None) -> Guard:
    return ModRevisionIs(key, before.mod_revision if before else ABSENT)


def _operation(key: bytes, pact: Pact | None) -> Operation:
    return Delete(key) if pact is None else Put(key, encode(pact))
