"""Whether an automatic failover of one group is due, and why not. Pure.

Every obstacle is looked at, whatever the others say, so that the person who asks gets the whole
answer. A failover is due only if nothing at all stands in its way: what is unknown stands.
"""

from __future__ import annotations

import enum

import attrs

from coordinator.automatic.record import AutomaticRecord, Obstacle, Reason
from coordinator.failover.loss import LossBound
from meshkit.model import (
    Authority,
    ClusterDescriptor,
    ClusterIntent,
    FailoverMode,
    Group,
    GroupPolicy,
)
from meshkit.names import ClusterName, FailoverId
from meshkit.pauses import AutomationPause


class Standing(enum.Enum):
    """How an automatic failover of a group stands."""

    MANUAL = "manual"
    """The policy has none."""
    READY = "ready"
    """The active cluster lives; if it died, nothing known would stand in the way."""
    BLOCKED = "blocked"
    """The active cluster lives; if it died, nothing would happen by itself, for the reasons."""
    OBSERVING = "observing"
    """Its proof of life is missing, not yet for long enough."""
    MOVING = "moving"
    """A failover of the group runs, whoever began it."""
    WITHHELD = "withheld"
    """It is gone for long enough, and something stands in the way."""
    DUE = "due"


@attrs.frozen(kw_only=True)
class Candidate:
    """A cluster that might take the group, in order of preference."""

    cluster: ClusterName
    obstacles: tuple[str, ...] = ()
    """Why it cannot."""
    objections: tuple[str, ...] = ()
    """Why what may be lost with it is not within the policy's bound."""


@attrs.frozen(kw_only=True)
class Facts:
    """All that the decision about one group goes by."""

    group: Group
    authority: Authority
    now_ms: int
    """Wall clock, for the cool-down: it was begun by another coordinator perhaps."""
    is_missing: bool
    """Whether the active cluster shows no proof of life."""
    gone_ms: int = 0
    """For how long, at the least, as seen without a break by the one who judges."""
    suspected_ms: int = 0
    why_anew: str = ""
    source: ClusterDescriptor | None
    source_reports: bool
    source_suspended: bool = False
    automation: AutomationPause | None = None
    is_sealed: bool = False
    running: FailoverId | None = None
    last: AutomaticRecord | None = None
    incarnation: int = 1
    """Of the coordination etcd."""
    ended: FailoverId | None = None
    """The failover of the group that ended last, of whatever kind..."""
    ended_ms: int | None = None
    """...and when."""
    coordination: str = ""
    """What is wrong with the coordination etcd."""
    candidates: tuple[Candidate, ...] = ()


@attrs.frozen(kw_only=True)
class Verdict:
    """What follows from the facts."""

    standing: Standing
    reasons: tuple[Reason, ...] = ()
    target: ClusterName | None = None
    """Where it goes, or would go."""


def bound_of(policy: GroupPolicy) -> LossBound:
    """Return what an automatic failover may lose: the policy's word, and never the unknown."""
    return LossBound(
        records=policy.automatic_loss_records_max, seconds=policy.automatic_loss_seconds_max
    )


def judge(facts: Facts) -> Verdict:
    """Return how an automatic failover of the group stands."""
    policy = facts.group.policy
    if policy.failover is not FailoverMode.AUTOMATIC:
        return Verdict(standing=Standing.MANUAL)
    target = next((c for c in facts.candidates if not c.obstacles and not c.objections), None)
    reasons = (*_everywhere(facts), *_at_source(facts), *(() if target else _at_targets(facts)))
    chosen = target.cluster if target else None
    if not facts.is_missing:
        standing = Standing.BLOCKED if reasons else Standing.READY
        return Verdict(standing=standing, reasons=reasons, target=chosen)
    if facts.running is not None:
        return Verdict(standing=Standing.MOVING, reasons=reasons, target=chosen)
    if facts.gone_ms < policy.automatic_after_ms:
        if facts.suspected_ms < policy.automatic_after_ms:
            return Verdict(standing=Standing.OBSERVING, reasons=reasons, target=chosen)
        anew = Reason(
            obstacle=Obstacle.OBSERVING,
            detail=f"{facts.why_anew}: {policy.automatic_after_ms} ms are to be seen without a"
            " break first",
        )
        return Verdict(standing=Standing.WITHHELD, reasons=(anew, *reasons), target=chosen)
    standing = Standing.WITHHELD if reasons else Standing.DUE
    return Verdict(standing=standing, reasons=reasons, target=chosen)


def _everywhere(facts: Facts) -> list[Reason]:
    """Return what stands in the way of any automatic failover of the group."""
    found: list[Reason] = []

    def note(obstacle: Obstacle, detail: str, *, until_ms: int | None = None) -> None:
        found.append(Reason(obstacle=obstacle, detail=detail, until_ms=until_ms))

    if facts.automation is not None:
        pause = facts.automation
        told = f"automation is paused by {pause.by}: {pause.reason or 'no reason'}; mesh resume"
        note(Obstacle.PAUSED, told)
    if facts.is_sealed and facts.running is None:
        note(Obstacle.SEALED, "the group is sealed, and no failover runs that could say why")
    if facts.running is not None:
        note(Obstacle.RUNNING, f"failover {facts.running} is running")
    last = facts.last
    if last is not None and last.needs_acknowledgement(facts.incarnation):
        told = f"the last one, {last.failover}, waits for a person to acknowledge it"
        if last.incarnation < facts.incarnation:
            told = "the coordination etcd was adopted anew, and may have forgotten the last one"
        note(Obstacle.ACKNOWLEDGEMENT, f"{told}: mesh groups acknowledge {facts.group.name}")
    until_ms = (facts.ended_ms or 0) + facts.group.policy.automatic_cool_down_ms
    if facts.ended_ms is not None and facts.now_ms < until_ms:
        note(Obstacle.COOL_DOWN, f"after failover {facts.ended}", until_ms=until_ms)
    if facts.coordination:
        note(Obstacle.COORDINATION, facts.coordination)
    return found


def _at_source(facts: Facts) -> list[Reason]:
    """Return what makes an active cluster look less gone than its missing proof of life."""
    name = facts.authority.active
    found: list[Reason] = []
    if facts.is_missing and facts.source_reports:
        told = f"{name} reports, so it is not gone: why has it no proof of life for the group?"
        found.append(Reason(obstacle=Obstacle.SOURCE_REPORTS, detail=told))
    if facts.source_suspended:
        told = f"{name} is suspended, because an etcd went back: mesh clusters show {name}"
        found.append(Reason(obstacle=Obstacle.SOURCE_SUSPENDED, detail=told))
    if facts.source is not None and facts.source.intent is ClusterIntent.MAINTENANCE:
        told = f"{name} is in maintenance: what a person stopped is not gone"
        found.append(Reason(obstacle=Obstacle.SOURCE_IN_MAINTENANCE, detail=told))
    return found


def _at_targets(facts: Facts) -> list[Reason]:
    """Return why none of the other members can take the group."""
    if not facts.candidates:
        return [Reason(obstacle=Obstacle.TARGET, detail="the group has no other member")]
    return [
        Reason(
            obstacle=Obstacle.TARGET if each.obstacles else Obstacle.LOSS,
            detail=f"{each.cluster}: {'; '.join(each.obstacles or each.objections)}",
            cluster=each.cluster,
        )
        for each in facts.candidates
    ]
