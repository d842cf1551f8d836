"""What an emergency remembers of what happens, and how a planned failover turns into one. Pure."""

from __future__ import annotations

import attrs

from coordinator.failover.due import missing_consent
from coordinator.failover.events import ConsentGiven, FenceEnded, LossStated
from coordinator.failover.loss import FenceStatus
from coordinator.failover.plan import EMERGENCY_1
from coordinator.failover.record import Emergency, Failover, FailoverKind, Phase
from meshkit.commands import Answer, CommandStep
from meshkit.ordinals import ABSENT


def of(record: Failover) -> Emergency:
    """Return the part of the record that only an emergency has."""
    assert record.emergency is not None, "only an emergency's plan has these steps"
    return record.emergency


def fenced(record: Failover, event: FenceEnded) -> Failover:
    """Remember how surely the source is fenced, without its answer."""
    emergency = attrs.evolve(of(record), fence=event.fence, permit_ended_ms=event.permit_ended_ms)
    return attrs.evolve(record, emergency=emergency)


def stated(record: Failover, event: LossStated) -> Failover:
    """Remember what may be lost."""
    return attrs.evolve(record, emergency=attrs.evolve(of(record), loss=event.statement))


def beyond_policy(record: Failover) -> str:
    """Return why an emergency that nobody watches must not lose what was stated; else nothing."""
    missing = missing_consent(record) if of(record).automatic else ()
    return f"more may be lost than the policy allows: {'; '.join(missing)}" if missing else ""


def what_next(record: Failover) -> str:
    """Return what to do about a failover that failed before its pivot."""
    if record.emergency is None or not record.emergency.automatic:
        return "remove the cause and begin a new failover"
    return (
        "no other one begins by itself: decide yourself, see mesh groups show"
        f" {record.group}; then: mesh groups acknowledge {record.group}"
    )


def consented(record: Failover, event: ConsentGiven) -> Failover:
    """Remember who accepts which loss; the newest word counts, also before it is an emergency."""

    def said(emergency: Emergency) -> Emergency:
        return attrs.evolve(emergency, accept=event.bound, accepted_by=event.actor)

    if record.emergency is not None:
        return attrs.evolve(record, emergency=said(record.emergency))
    if record.fallback is not None:
        return attrs.evolve(record, fallback=said(record.fallback))
    return record


def answered(record: Failover, answer: Answer) -> Failover:
    """Remember what a region says: that it is sealed, what it took in, where it is frozen."""
    match answer.step:
        case CommandStep.SEAL:
            return _sealed(record, answer)
        case CommandStep.TAKE_IN:
            return _taken_in(record, answer)
        case CommandStep.FREEZE:
            emergency = attrs.evolve(of(record), stands_on=answer.stands_on)
            return attrs.evolve(record, watermark=answer.watermark, emergency=emergency)
        case _:
            return record


def must_release(record: Failover) -> bool:
    """Return whether the source may be stopped by this failover, or by the one before it."""
    emergency = record.emergency
    if emergency is None:
        return False
    is_sealed = emergency.seal_revision != ABSENT
    return is_sealed or emergency.supersedes is not None or bool(emergency.after_planned)


def fault(answer: Answer) -> str:
    """Return what an answer lacks that the emergency needs, or nothing."""
    if answer.step is CommandStep.FREEZE and answer.stands_on is None:
        return f"{answer.cluster} froze its copy but did not say where"
    return ""


def _sealed(record: Failover, answer: Answer) -> Failover:
    emergency = attrs.evolve(
        of(record),
        fence=FenceStatus.CONFIRMED,
        permit_ended_ms=answer.at_ms,
        never_opened=answer.opened is None and answer.cut is None,
    )
    if answer.cut is None:
        return attrs.evolve(record, emergency=emergency)
    return attrs.evolve(
        record,
        emergency=emergency,
        cut=answer.cut,
        cut_incarnation=answer.incarnation,
        cut_prefixes=answer.prefixes,
    )


def _taken_in(record: Failover, answer: Answer) -> Failover:
    """A cut in the source's log is its own word that it has stopped (S26)."""
    emergency = attrs.evolve(of(record), contained_at_ms=answer.at_ms)
    if answer.cut is None:
        return attrs.evolve(record, emergency=emergency)
    emergency = attrs.evolve(emergency, fence=FenceStatus.CONFIRMED)
    return attrs.evolve(record, emergency=emergency, cut=answer.cut)


def falls_back(record: Failover) -> bool:
    """Return whether a planned failover that fails now goes on as an emergency."""
    return record.fallback is not None and not record.authority_moved


def was_planned_first(record: Failover) -> bool:
    """Return whether a planned failover was asked for, with an emergency only if that fails."""
    return record.fallback is not None or (
        record.emergency is not None and bool(record.emergency.after_planned)
    )


def fallen_back(record: Failover, why: str) -> Failover:
    """Return the record as that of an emergency, before its first step is entered.

    What the planned part learnt of the source's cut stays true: only an undrain could undo it,
    and none was asked for.
    """
    assert record.fallback is not None, "it may fall back"
    return attrs.evolve(
        record,
        kind=FailoverKind.EMERGENCY,
        plan=EMERGENCY_1.name,
        phase=Phase.ADVANCING,
        cursor=0,
        attempt=1,
        awaiting=None,
        problem=None,
        emergency=attrs.evolve(record.fallback, after_planned=why),
        fallback=None,
    )
