"""Which clusters might take a group by themselves, in order, and what speaks against each. Pure."""

from __future__ import annotations

import attrs

from coordinator.automatic.judging import Candidate, bound_of
from coordinator.failover.evidence import statement
from coordinator.failover.loss import FenceStatus, objections
from coordinator.failover.record import Emergency
from coordinator.governance.preflight import Situation
from coordinator.governance.rescue_checks import rescue_checks
from coordinator.mesh import Mesh
from coordinator.rejoin.record import Rejoin
from meshkit.incarnations import SuspectStore
from meshkit.model import Authority, FailoverPolicy, Group
from meshkit.names import ClusterName
from meshkit.status import LogHead
from meshkit.store.port import StoreStatus


@attrs.frozen(kw_only=True, eq=False)
class Around:
    """What is known beside the group itself."""

    mesh: Mesh
    coordination: StoreStatus | None
    rejoins: tuple[Rejoin, ...]
    head: LogHead | None
    """The last that is known of the active cluster's log."""
    permit_ended_ms: int | None
    """By when its permit has ended, or would have, on its own wall clock; None: not judged."""
    now_ms: int


def candidates(group: Group, authority: Authority, around: Around) -> tuple[Candidate, ...]:
    """Return every other member, preferred first, with what speaks against it.

    The clusters' own failover policy comes first (`preferred` before `allowed`, `never` is not to
    be chosen), then the order of the group's members.
    """
    found = [
        _candidate(group, authority, member, around)
        for member in group.members
        if member != authority.active
    ]
    mesh = around.mesh

    def is_less_preferred(candidate: Candidate) -> bool:
        described = mesh.clusters.get(candidate.cluster)
        policy = described.record.failover_policy if described else FailoverPolicy.ALLOWED
        return policy is not FailoverPolicy.PREFERRED

    return tuple(sorted(found, key=is_less_preferred))


def coordination_problem(mesh: Mesh, coordination: StoreStatus | None) -> str:
    """Return what is wrong with the coordination etcd, or nothing."""
    if coordination is None or not coordination.leader_id:
        return "the coordination etcd does not tell its status, or has no leader"
    if coordination.alarms:
        return f"the coordination etcd has alarms: {', '.join(coordination.alarms)}"
    suspects = [
        name
        for name, seen in mesh.suspensions.items()
        if seen.record.store is SuspectStore.COORDINATION
    ]
    if suspects:
        return f"the coordination etcd went back, says {', '.join(sorted(suspects))}"
    return ""


def _candidate(
    group: Group, authority: Authority, member: ClusterName, around: Around
) -> Candidate:
    found = (
        *_standing(group, authority, member, around),
        *_unfit(group, authority, member, around),
    )
    against = () if found else _lossy(group, authority, member, around)
    return Candidate(cluster=member, obstacles=found, objections=against)


def _standing(
    group: Group, authority: Authority, member: ClusterName, around: Around
) -> tuple[str, ...]:
    """Return why a person has to decide about this one."""
    mesh, found = around.mesh, []
    described = mesh.clusters.get(member)
    if described is not None and described.record.failover_policy is FailoverPolicy.NEVER:
        found.append("its failover policy is never")
    if member in mesh.suspensions:
        found.append("it is suspended, because an etcd went back")
    running = [
        rejoin.id
        for rejoin in around.rejoins
        if (rejoin.group, rejoin.cluster) == (group.name, member) and not rejoin.phase.is_final
    ]
    if running:
        found.append(f"its rejoin {running[0]} is not done")
    health = mesh.health.get(member)
    known = health.groups.get(group.name) if health else None
    if known is not None and known.ahead:
        found.append(f"it has more than epoch {authority.epoch} stands on")
    return tuple(found)


def _unfit(
    group: Group, authority: Authority, member: ClusterName, around: Around
) -> tuple[str, ...]:
    """Return which checks of an emergency it fails."""
    mesh = around.mesh
    if member not in mesh.clusters or authority.active not in mesh.clusters:
        return ("it is not described",)
    situation = Situation(
        group=group,
        authority=authority,
        source=mesh.clusters[authority.active].record,
        target=mesh.clusters[member].record,
        source_health=mesh.health.get(authority.active),
        target_health=mesh.health.get(member),
        stream=None,
        coordination=around.coordination,
        is_sealed=group.name in mesh.sealed,
        running=None,
        succeeded_at_ms=None,
        pause_ms_last=None,
        pact=around.mesh.pacts.get(group.name),
        now_ms=around.now_ms,
    )
    failed = [check for check in rescue_checks(situation) if check.refuses]
    return tuple(f"{c.name}: {c.detail}" for c in failed if c.name != "coordination_healthy")


def _lossy(
    group: Group, authority: Authority, member: ClusterName, around: Around
) -> tuple[str, ...]:
    """Return why what may be lost with it is more than the policy allows, as far as is known."""
    if around.permit_ended_ms is None:
        return ()
    is_kept = group.name in around.mesh.pacts
    emergency = Emergency(
        fence=FenceStatus.UNKNOWN if is_kept else FenceStatus.LEASE_EXPIRED,
        permit_ended_ms=around.permit_ended_ms,
        source_lineage=authority.lineage,
    )
    foreseen = statement(
        around.mesh,
        authority,
        emergency,
        target=member,
        head=around.head,
        targets_head=around.head,
        cut=None,
        now_ms=around.now_ms,
    )
    return objections(foreseen, bound_of(group.policy))
