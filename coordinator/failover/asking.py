"""The commands of remote steps, derived from the record alone. Pure."""

from __future__ import annotations

import attrs

from coordinator.failover.loss import FenceStatus
from coordinator.failover.plan import QUIET_MS, THAW, Party, Step, plan_named
from coordinator.failover.record import Emergency, Failover
from meshkit.commands import Command, CommandStep
from meshkit.model import Lineage
from meshkit.names import ClusterName
from meshkit.ordinals import Token


def command_of(record: Failover, step: Step) -> Command:
    """Return the command of a remote step, from the record alone."""
    moved = record.authority_moved
    name = CommandStep(step.command or step.name)
    emergency = record.emergency
    lineage = lineage_of(record) if moved else None
    if emergency is not None and name in (CommandStep.FREEZE, CommandStep.RELEASE):
        lineage = emergency.source_lineage
    quiet_ms, seal = None, None
    if emergency is not None and name is CommandStep.TAKE_IN:
        quiet_ms = 0 if emergency.fence is FenceStatus.UNKNOWN else QUIET_MS
        seal = Token(incarnation=record.incarnation, revision=emergency.seal_revision)
    is_reverse = name is CommandStep.REVERSE
    return Command(
        group=record.group,
        cluster=addressee(record, step),
        step=name,
        incarnation=record.incarnation,
        epoch=record.epoch_after if moved else record.epoch_before,
        failover=record.id,
        source=record.target if is_reverse else record.source,
        target=record.source if is_reverse else record.target,
        cut=record.cut,
        cut_incarnation=record.cut_incarnation,
        lag_ms_max=record.policy.catch_up_lag_ms_max if name is CommandStep.CATCH_UP else None,
        token=record.target_token or record.source_token,
        lineage=lineage,
        quiet_ms=quiet_ms,
        seal=seal,
    )


def lineage_of(record: Failover) -> Lineage:
    """Return what the new epoch stands on: the cut of the source's log, or where it was frozen."""
    if record.emergency is not None:
        return _frozen_at(record, record.emergency)
    assert record.cut is not None, "the pivot comes after the cut"
    assert record.cut_incarnation is not None, "the pivot comes after the cut"
    return Lineage(
        parent=record.source,
        parent_incarnation=record.cut_incarnation,
        parent_epoch=record.epoch_before,
        sequence=record.cut,
        prefixes=record.cut_prefixes,
    )


def addressee(record: Failover, step: Step) -> ClusterName:
    """Return the cluster that a remote step is asked of."""
    return record.source if step.party is Party.SOURCE else record.target


def _frozen_at(record: Failover, emergency: Emergency) -> Lineage:
    """Return what an emergency's epoch stands on; proven to be all of it, it is an ordinary cut."""
    on = emergency.stands_on
    assert on is not None, "the pivot comes after the freeze"
    if (on.parent, on.parent_epoch) != (record.source, record.epoch_before):
        return on
    covered = attrs.evolve(on, prefixes=on.prefixes or record.cut_prefixes)
    if record.cut is None or on.sequence < record.cut:
        return covered
    return attrs.evolve(covered, sequence=record.cut, may_go_on=False)


def thaw_of(record: Failover, *, besides: ClusterName) -> Command | None:
    """Return the command that lets a failover's target go on, if it may be frozen for that."""
    plan = plan_named(record.plan)
    frozen = next((n for n, step in enumerate(plan.steps) if step.name == "freeze"), None)
    may_be_frozen = frozen is not None and (record.cursor >= frozen or record.undoing)
    if not may_be_frozen or record.authority_moved or record.target == besides:
        return None
    return command_of(record, THAW)
