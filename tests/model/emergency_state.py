"""What the world of emergencies consists of, and how its regions freeze and answer."""

from __future__ import annotations

from typing import NamedTuple

import attrs

from coordinator.failover.record import Failover, Phase
from fencing import freeze as freezing
from fencing.decision import Act
from fencing.fence_view import view_of
from meshkit.commands import Command, CommandStep
from meshkit.model import Authority, Lineage
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision, Sequence, Token
from meshkit.regional import Checkpoint
from tests.model.emergency_records import Kept, Reply, incarnation_of
from tests.model.explorer import Broken
from tests.model.records import A, other
from tests.model.regions import CHANGED, LEADER, UNCHANGED, RealRegions, Region, reads_of

UNBOUNDED = 99
WAITING = {CommandStep.CATCH_UP, CommandStep.CONVERGE, CommandStep.TAKE_IN}


@attrs.frozen
class Rules:
    """What the world does right; planted bugs turn some of it off."""

    regions: RealRegions = attrs.field(factory=RealRegions)
    saves_compare: bool = True
    permit_ends_before_holder: bool = True
    holder_compares_seal: bool = True
    permit_needs_its_lease: bool = True
    applies_compare_fences: bool = True
    fence_waits: bool = True
    """Off: a lease counts as run out while its holder is there."""
    answers_end_own_holder: bool = True
    """Off: who was stopped ends the proof of life of whoever holds the group by then."""


class Left(NamedTuple):
    """How often something may still happen."""

    writes: int = 1
    cuts: int = 1
    """Times a cluster loses sight of the coordination etcd."""
    deaths: int = 0
    """Times everything in a cluster but its etcd dies."""
    emergencies: int = 1
    timeouts: int = UNBOUNDED
    bounds: int = 0
    """Times somebody accepts less than everything."""
    aborts: int = 0
    resumes: int = 1
    stalls: int = 0
    late_commits: int = 0
    permit: bool = True
    """Whether the source has its permit to begin with."""
    returns: bool = True
    """Whether a cluster that was cut off comes back sooner or later."""
    no_wait: bool = False
    """Whether the operator asks not to wait for the fence."""


class Ask(NamedTuple):
    token: int
    command: int


class Late(NamedTuple):
    """A save in the hands of a coordinator that was stopped before sending it."""

    compared: int
    before: Kept
    after: Kept


class Pending(NamedTuple):
    """A permit's put, decided on `view` under a lease of that generation."""

    cluster: ClusterName
    view: Region
    generation: int


class Coordination(NamedTuple):
    """The coordination keys of the group beside the record and its commands."""

    authority: Authority
    routing_epoch: int
    routing_active: ClusterName
    running: bool
    is_sealed: bool
    sealed_epoch: int
    holder: ClusterName | None


class Site(NamedTuple):
    """One cluster."""

    region: Region
    has: tuple[int, ...]
    """How many of each epoch's acknowledged writes its etcd holds."""
    is_away: bool = False
    """Whether it does not see the coordination etcd."""
    is_dead: bool = False
    """Whether nothing runs there either: no writer is told anything, and nothing is applied."""
    generation: int = 0
    """Of its leases: what was justified under an older one hangs on a lease that is gone."""


class World(NamedTuple):
    """Everything. Revisions and tokens are ranks: only their order decides anything."""

    kept: Kept
    revision: int
    coordination: Coordination
    a: Site
    b: Site
    logs: tuple[int, ...]
    """How many writes were acknowledged in each epoch; the first of each but one is everywhere."""
    reported: int
    """How many of the source's writes its last report told of."""
    known: int
    """As much as that when the loss was stated."""
    fenced: int
    """How many there were when the fence of the running emergency was known to hold; -1: not."""
    excused: frozenset[int]
    """Epochs whose writes may be lost, because somebody accepted that."""
    asks: frozenset[Ask]
    replies: frozenset[Reply]
    late: Late | None
    pending: Pending | None
    left: Left

    def site(self, cluster: ClusterName) -> Site:
        return self.a if cluster == A else self.b

    def with_site(self, cluster: ClusterName, **changes: object) -> World:
        site = self.site(cluster)._replace(**changes)
        return self._replace(a=site) if cluster == A else self._replace(b=site)

    def using(self, **spent: object) -> World:
        return self._replace(left=self.left._replace(**spent))


def frozen(
    site: Site, command: Command, me: ClusterName, *, token: int
) -> tuple[Lineage | None, Region]:
    """Freeze by the real rules; the checkpoints are as many writes as the copy has."""
    region = site.region
    view = view_of(command.group, reads_of(region))
    copies = [
        freezing.Copy(
            source=other(me),
            main=Checkpoint(
                source=other(me),
                incarnation=incarnation_of(other(me)),
                sequence=Sequence(at_place(site.has, region.epoch)),
            ),
            main_revision=Revision(1),
        )
    ]
    on = freezing.stands_on(view, command, copies, me=me, incarnation=incarnation_of(me))
    if not isinstance(on, Lineage):
        return None, region
    if token == region.seen:
        return on, region
    copy = None if freezing.is_cut_here(view) else copies[0]
    at = Token(incarnation=1, revision=Revision(token))
    act = freezing.freeze(view, command, at, LEADER, on=on, copy=copy)
    assert isinstance(act, Act)
    return on, region._replace(mode="held", seen=token, fence_revision=CHANGED)


def fact(ask: Ask, command: Command, region: Region) -> Reply | None:
    if command.step is CommandStep.REVERSE and region.epoch < command.epoch:
        return None
    is_there = region.epoch == command.epoch
    names_cut = command.step in (CommandStep.DRAIN, CommandStep.SEAL) and is_there
    return Reply(
        ask.token,
        ask.command,
        cut=region.cut if names_cut else 0,
        opened=1 if command.step is CommandStep.OPEN or names_cut else 0,
    )


def with_reply(world: World, reply: Reply | None) -> World:
    return world if reply is None else world._replace(replies=world.replies | {reply})


def more(counts: tuple[int, ...], at: int) -> tuple[int, ...]:
    return tuple(count + (index == at) for index, count in enumerate(counts))


def at_place(counts: tuple[int, ...], epoch: Epoch | int) -> int:
    """The place in an epoch's log: how many of its writes are there."""
    return counts[epoch - 1]


def as_read(region: Region) -> Region:
    if region.fence_revision == region.permit_revision == UNCHANGED:
        return region
    return region._replace(fence_revision=UNCHANGED, permit_revision=UNCHANGED)


def is_end(world: World) -> bool:
    """Return whether nothing more has to happen by itself."""
    record = world.kept.record
    if record.phase is Phase.HELD and record.awaiting is not None:
        # It says so, and goes on when that cluster is back; or an emergency takes its place.
        return world.site(record.awaiting.cluster).is_away
    return record.phase.is_final


def check_bound(world: World, record: Failover) -> None:
    """Consent to nothing that is known covers nothing that is known."""
    emergency = record.emergency
    assert emergency is not None
    assert emergency.loss is not None
    assert emergency.stands_on is not None
    if emergency.loss.target.is_none:
        return
    if emergency.accept is None:
        raise Broken("nobody accepted a loss that was not excluded")
    if emergency.accept.unknown:
        return
    on = emergency.stands_on
    if on.parent_epoch == record.epoch_before and world.known > on.sequence:
        raise Broken("more was known to be lost than anybody accepted")
