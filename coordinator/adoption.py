"""What an adoption of the coordination etcd gives each group, from the regions' fences. Pure.

The greatest epoch that fences prove decides who goes on. Where that cluster answers, it begins a
*new* epoch on its own cut, above every epoch that anybody has heard of: so whatever happened in a
region that does not answer is older, and is found and set aside when that region rejoins. Where it
does not answer, authority stays with it: only a promotion, which is another act, may take it away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from coordinator.adoption_regions import (
    Answering,
    Region,
    judge,
    next_number,
    region_problems,
    undescribed,
)
from coordinator.mesh import Mesh
from meshkit.asking import GroupStanding, RegionStanding
from meshkit.commands import Command, CommandStep
from meshkit.model import Authority, Group, Lineage
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Token
from meshkit.promises import Pact
from meshkit.regional import FenceMode

EPOCHS_UNSEEN_MAX = 1_000
"""How many epochs a region that does not answer is thought to have been in, unseen by the rest."""

WAIT_MS = 30_000
"""No permit outlives its region's last sight of the coordination etcd by more, nor the last promise
by which its group went on: every valid timing has the worst emergency done in that time
(`fencing/timing.py`). It says nothing of a waived region that is still promised: see `Choice.pact`.
"""


@attrs.frozen(kw_only=True)
class Claim:
    """Somebody's word that a cluster was given an epoch; not that it ever opened it."""

    epoch: Epoch
    active: ClusterName
    token: Token
    lineage: Lineage | None = None
    is_copied: bool = False
    """Whether a region copied it from the coordination etcd before that went back."""

    def same(self, other: Claim) -> bool:
        """Return whether both are about one pivot."""
        return (self.epoch, self.active, self.token) == (other.epoch, other.active, other.token)


@attrs.frozen(kw_only=True)
class Choice:
    """What a group is given."""

    group: GroupName
    epoch: Epoch
    active: ClusterName
    lineage: Lineage | None
    token: Token | None
    """The epoch's fencing token; None: a new one, because a new epoch begins."""
    frozen: tuple[ClusterName, ...] = ()
    """Members whose copies an emergency had frozen, and who go on following."""
    why: str = ""

    @property
    def is_left(self) -> bool:
        """Whether authority stays with a cluster that does not answer."""
        return self.token is not None

    def authority(self, floor: Token) -> Authority:
        """Return the authority, with `floor` as the token of a new epoch."""
        return Authority(
            group=self.group,
            epoch=self.epoch,
            token=self.token or floor,
            active=self.active,
            lineage=self.lineage,
        )

    def pact(self) -> Pact | None:
        """Return the pact of a cluster that does not answer: nobody knows whose promises it asks.

        It may go on by them, so a holder of it that runs out proves nothing, until it makes its own
        or deletes this one.
        """
        if not self.is_left:
            return None
        return Pact(group=self.group, epoch=self.epoch, cluster=self.active, members=(self.active,))

    def commands(self, floor: Token) -> Iterator[Command]:
        """Yield what is asked of the members: to open, or to go on, and to thaw."""
        failover = FailoverId(f"adoption-{floor.incarnation}")
        yield Command(
            group=self.group,
            cluster=self.active,
            step=CommandStep.RELEASE if self.is_left else CommandStep.OPEN,
            incarnation=floor.incarnation,
            epoch=self.epoch,
            failover=failover,
            target=self.active,
            token=self.token or floor,
            lineage=self.lineage,
        )
        for member in self.frozen:
            yield Command(
                group=self.group,
                cluster=member,
                step=CommandStep.THAW,
                incarnation=floor.incarnation,
                epoch=self.epoch,
                failover=failover,
            )


@attrs.frozen(kw_only=True)
class AdoptionPlan:
    """What an adoption would do. It may be carried out only if there is no problem."""

    number: int
    """Of the coordination etcd's next incarnation."""
    regions: Mapping[ClusterName, Answering]
    details: Mapping[ClusterName, str]
    choices: tuple[Choice, ...]
    problems: tuple[str, ...]
    waived: tuple[ClusterName, ...]

    @property
    def wait_ms(self) -> int:
        """How long the regions wait before they go on."""
        return WAIT_MS if self.waived else 0


def plan(
    mesh: Mesh, regions: Mapping[ClusterName, Region], *, waive: frozenset[ClusterName]
) -> AdoptionPlan:
    """Return what an adoption gives each group, and what stands in its way."""
    judged = {name: judge(region, mesh, waive=waive) for name, region in regions.items()}
    waived = tuple(sorted(n for n, (how, _) in judged.items() if how is Answering.WAIVED))
    choices: list[Choice] = []
    problems = [*region_problems(mesh, regions, judged), *undescribed(mesh, regions)]
    for _, seen in sorted(mesh.groups.items()):
        found = _choose(seen.record, _Evidence.of(seen.record, mesh, regions, absent=waived))
        if isinstance(found, str):
            problems.append(found)
        elif found is not None:
            choices.append(found)
    return AdoptionPlan(
        number=next_number(mesh, regions),
        regions={name: how for name, (how, _) in judged.items()},
        details={name: detail for name, (_, detail) in judged.items()},
        choices=tuple(choices),
        problems=tuple(problems),
        waived=waived,
    )


# --- groups -------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Evidence:
    """What is known of one group."""

    known: Mapping[ClusterName, GroupStanding]
    incarnations: Mapping[ClusterName, RegionStanding]
    claims: tuple[Claim, ...]
    absent: frozenset[ClusterName]
    """Members that do not answer and are gone on without."""

    @staticmethod
    def of(
        group: Group,
        mesh: Mesh,
        regions: Mapping[ClusterName, Region],
        *,
        absent: tuple[ClusterName, ...],
    ) -> _Evidence:
        answered = {n: r for n, r in regions.items() if r.standing is not None}
        known = {n: r.groups[group.name] for n, r in answered.items() if group.name in r.groups}
        claims = [
            Claim(epoch=r.epoch, active=r.active, token=r.token, is_copied=True)
            for one in known.values()
            if (r := one.routing) is not None
        ]
        seen = mesh.authorities.get(group.name)
        if seen is not None:
            a = seen.record
            claims.append(Claim(epoch=a.epoch, active=a.active, token=a.token, lineage=a.lineage))
        return _Evidence(
            known=known,
            incarnations={n: r.standing for n, r in answered.items() if r.standing is not None},
            claims=tuple(claims),
            absent=frozenset(absent) & frozenset(group.members),
        )

    @property
    def opened(self) -> Epoch:
        """The greatest epoch whose own cluster says that it opened it."""
        active = (FenceMode.OPEN, FenceMode.DRAINED)
        return max(
            (o.fence.epoch for o in self.known.values() if o.fence.mode in active), default=Epoch(0)
        )

    @property
    def owners(self) -> list[ClusterName]:
        active = (FenceMode.OPEN, FenceMode.DRAINED)
        return sorted(
            name
            for name, one in self.known.items()
            if one.fence.mode in active and one.fence.epoch == self.opened
        )

    @property
    def followed(self) -> Epoch:
        """The greatest epoch that a copy follows."""
        return max((one.fence.epoch for one in self.known.values()), default=Epoch(0))

    @property
    def claimed(self) -> Claim | None:
        """The greatest claim.

        What a region has copied counts before what this etcd says itself: where that was set up
        anew, it is made up of nothing.
        """
        best = max(self.claims, key=lambda c: (c.epoch, c.is_copied, c.token), default=None)
        same = [
            c for c in self.claims if c.lineage is not None and best is not None and c.same(best)
        ]
        return same[0] if same else best

    @property
    def next_epoch(self) -> Epoch:
        claimed = self.claimed
        heard = max(self.followed, claimed.epoch if claimed else Epoch(0))
        return Epoch(heard + 1 + (EPOCHS_UNSEEN_MAX if self.absent else 0))

    @property
    def frozen(self) -> tuple[ClusterName, ...]:
        held = (n for n, one in self.known.items() if one.fence.mode is FenceMode.HELD)
        return tuple(sorted(held))


def _choose(group: Group, evidence: _Evidence) -> Choice | str | None:
    """Return what the group is given, or what stands in the way; None if nobody has heard of it."""
    owners, claimed = evidence.owners, evidence.claimed
    if len(owners) > 1:
        return (
            f"group {group.name}: {' and '.join(owners)} both say that they opened epoch"
            f" {evidence.opened}. Nothing is rebuilt on that; see the runbook"
        )
    unseen = claimed if claimed is not None and claimed.active in evidence.absent else None
    if unseen is not None and unseen.epoch >= max(evidence.opened + 1, evidence.followed):
        return _left(group, evidence, unseen)
    if evidence.followed > evidence.opened:
        return (
            f"group {group.name}: epoch {evidence.followed} is followed, and no region that answers"
            " opened it. Bring back the one that did"
        )
    if owners:
        return _goes_on(group, evidence, owners[0])
    return _begins(group, evidence, claimed) if claimed is not None else None


def _left(group: Group, evidence: _Evidence, claimed: Claim) -> Choice:
    return Choice(
        group=group.name,
        epoch=claimed.epoch,
        active=claimed.active,
        lineage=claimed.lineage,
        token=claimed.token,
        frozen=evidence.frozen,
        why=(
            f"{claimed.active} was given epoch {claimed.epoch} and does not answer: authority stays"
            " with it, and nobody accepts writes until it is back or another is promoted in an"
            " emergency"
        ),
    )


def _goes_on(group: Group, evidence: _Evidence, owner: ClusterName) -> Choice | str:
    one = evidence.known[owner]
    if one.cut is None or one.fence.mode is not FenceMode.DRAINED:
        return f"group {group.name}: {owner} has not stopped epoch {one.fence.epoch} yet; try again"
    lineage = Lineage(
        parent=owner,
        parent_incarnation=evidence.incarnations[owner].incarnation,
        parent_epoch=one.fence.epoch,
        sequence=one.cut,
        prefixes=one.prefixes,
    )
    return Choice(
        group=group.name,
        epoch=evidence.next_epoch,
        active=owner,
        lineage=lineage,
        token=None,
        frozen=evidence.frozen,
        why=f"{owner} opened epoch {one.fence.epoch}, the greatest that fences prove",
    )


def _begins(group: Group, evidence: _Evidence, claimed: Claim) -> Choice:
    """A group that no region that answers has ever had to do with."""
    return Choice(
        group=group.name,
        epoch=evidence.next_epoch,
        active=claimed.active,
        lineage=None,
        token=None,
        why=f"no region has opened it yet: {claimed.active} begins",
    )
