"""What each region contributes to an adoption of the coordination etcd, and what stops it. Pure.

A region counts only once it has stopped and sees this very etcd; one that runs stops the adoption,
and one that does not answer has to be waived by its name.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

import attrs

from coordinator.mesh import Mesh
from meshkit.asking import GroupStanding, RegionStanding
from meshkit.incarnations import SuspectStore, Suspension, number_of
from meshkit.names import ClusterName, GroupName
from meshkit.regional import FenceMode


class Answering(enum.Enum):
    """What a region contributes."""

    STOPPED = "stopped"
    """It is suspended, has ended its epochs, and sees this very coordination etcd."""
    NEW = "new"
    """It never had to do with any group."""
    RUNNING = "running"
    """It has not stopped, or has not looked at this coordination etcd: nothing may be rebuilt."""
    SILENT = "silent"
    """It does not answer: what its fences prove is not known."""
    WAIVED = "waived"
    """It does not answer, and is gone on without because the operator says so by its name."""


@attrs.frozen(kw_only=True)
class Region:
    """One region as it answered."""

    cluster: ClusterName
    standing: RegionStanding | None = None
    groups: Mapping[GroupName, GroupStanding] = attrs.field(factory=dict)
    problem: str = ""
    """Why it does not answer."""


def judge(region: Region, mesh: Mesh, *, waive: frozenset[ClusterName]) -> tuple[Answering, str]:
    """Return what a region contributes, and what there is to say about that."""
    standing = region.standing
    if standing is None:
        how = Answering.WAIVED if region.cluster in waive else Answering.SILENT
        return how, region.problem
    if standing.suspension is None:
        if not region.groups:
            return Answering.NEW, ""
        return Answering.RUNNING, (
            "it is not suspended: none of its replicators leads, or it looks at another"
            " coordination etcd"
        )
    busy = sorted(
        group
        for group, one in region.groups.items()
        if one.has_permit or one.fence.mode is FenceMode.OPEN
    )
    if busy:
        return Answering.RUNNING, f"it has not stopped {', '.join(busy)} yet"
    if not _sees_this(mesh, region.cluster, standing.suspension):
        return Answering.RUNNING, "it has not looked at this coordination etcd since it stopped"
    return Answering.STOPPED, standing.suspension.reason


def _sees_this(mesh: Mesh, cluster: ClusterName, suspension: Suspension) -> bool:
    """Return whether the region has put its own word into this very coordination etcd."""
    seen = mesh.suspensions.get(cluster)
    if seen is None or seen.record.store is SuspectStore.REGIONAL:
        return seen is not None
    there = seen.record
    return (there.at_ms, there.replicator) == (suspension.at_ms, suspension.replicator)


def region_problems(
    mesh: Mesh,
    regions: Mapping[ClusterName, Region],
    judged: Mapping[ClusterName, tuple[Answering, str]],
) -> Iterator[str]:
    """Yield what stands in the way, of the regions as a whole and one by one."""
    if not regions:
        yield (
            "no cluster is described here: apply clusters and groups first (mesh clusters apply,"
            " mesh groups apply); nothing acts on them before the adoption"
        )
    elif not any(how is Answering.STOPPED for how, _ in judged.values()):
        yield (
            "no region that answers has seen the coordination etcd go back: there is nothing to"
            " adopt"
        )
    members = {member for seen in mesh.groups.values() for member in seen.record.members}
    for name, (how, detail) in sorted(judged.items()):
        if how is Answering.RUNNING:
            yield f"{name} has not stopped: {detail}"
        if how is Answering.SILENT and name in members:
            yield (
                f"{name} does not say what its fences prove: {detail}. Bring it back, or go on"
                f" without it by name: --waive {name}"
            )


def undescribed(mesh: Mesh, regions: Mapping[ClusterName, Region]) -> Iterator[str]:
    """Yield what regions know and this etcd does not: it must be described again first."""
    groups: dict[GroupName, tuple[tuple[str, ...], tuple[ClusterName, ...]]] = {}
    clusters: set[ClusterName] = set()
    for region in regions.values():
        for name, one in region.groups.items():
            members = tuple(sorted(one.routing.endpoints)) if one.routing else ()
            clusters |= {*members}
            if name not in mesh.groups:
                prefixes = one.routing.prefixes if one.routing else one.prefixes
                groups[name] = max(groups.get(name, ((), ())), (prefixes, members))
    for name, (prefixes, members) in sorted(groups.items()):
        yield (
            f"group {name} is in the regions and not described here: apply it first (prefixes"
            f" {', '.join(prefixes) or 'unknown'}; members {', '.join(members) or 'unknown'})"
        )
    for cluster in sorted(clusters - set(mesh.clusters)):
        yield f"cluster {cluster} is a member of groups and not described here: apply it first"


def next_number(mesh: Mesh, regions: Mapping[ClusterName, Region]) -> int:
    """Return a number above every incarnation that anybody has heard of."""
    heard = [mesh.incarnation.number]
    heard += [seen.record.token.incarnation for seen in mesh.authorities.values()]
    for region in regions.values():
        if region.standing is not None:
            heard.append(number_of(region.standing.coordination))
            if region.standing.suspension is not None:
                heard.append(number_of(region.standing.suspension.incarnation))
        for one in region.groups.values():
            heard += [one.fence.token.incarnation, one.fence.command_token.incarnation]
            heard.append(one.routing.token.incarnation if one.routing else 0)
    return max(heard) + 1
