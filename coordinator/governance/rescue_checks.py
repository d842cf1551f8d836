"""Whether an emergency may begin: only what it cannot do without stands in its way. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from coordinator.failover.plan import EMERGENCY_1
from coordinator.governance.check import Check, checked
from coordinator.governance.preflight import (
    PROMISES,
    Preview,
    Situation,
    coordination_check,
    fresh_health,
    preview,
    region_checks,
    service_check,
)
from meshkit.regional import FenceMode


def rescue_preview(situation: Situation, *, waivers: Iterable[str] = ()) -> Preview:
    """The same for an emergency: only what it cannot do without stands in its way."""
    waived = set(waivers)
    checks = rescue_checks(situation)
    planned = preview(situation)
    return attrs.evolve(
        planned,
        checks=tuple(
            attrs.evolve(check, waived=not check.ok and check.waivable and check.name in waived)
            for check in checks
        ),
        pause_ms_predicted=None,
        steps=EMERGENCY_1.step_names,
    )


def rescue_checks(situation: Situation) -> tuple[Check, ...]:
    """Return what an emergency cannot do without."""
    return (
        coordination_check(situation.coordination),
        *region_checks("target", situation.target.name, situation.target_health, situation.now_ms),
        _can_be_frozen(situation),
        _promises(situation),
        service_check(situation),
    )


def _promises(situation: Situation) -> Check:
    """Whether the active cluster cannot go on, unheard, without this one's promise (4.1 rule 4)."""
    pact, target = situation.pact, situation.target.name
    if pact is None:
        return checked(PROMISES, True, "writes do not outlive the coordination etcd")
    if target in pact.members:
        return checked(PROMISES, True, f"{pact.cluster} goes on only by the promise of {target}")
    asked = ", ".join(member for member in pact.members if member != pact.cluster)
    whose = f"the promises of {asked}, and does not ask {target}, which became a member since"
    if not asked:
        whose = f"promises, and nobody knows whether it asks {target} for one"
    detail = (
        f"{pact.cluster} may go on by {whose}; waive it only if {pact.cluster} surely stands still"
    )
    return checked(PROMISES, False, detail, waivable=True)


def _can_be_frozen(situation: Situation) -> Check:
    """Whether the copy is complete, in the source's epoch or in the one which that stands on."""
    name, target, group = "target_in_step", situation.target.name, situation.group.name
    health = fresh_health(situation.target_health, now_ms=situation.now_ms)
    known = health.groups.get(group) if health else None
    if known is None:
        return checked(name, False, f"{target} does not report about group {group}")
    lineage = situation.authority.lineage
    epochs = {situation.authority.epoch, *([lineage.parent_epoch] if lineage else [])}
    if known.epoch not in epochs:
        return checked(name, False, f"{target} is in epoch {known.epoch} of the group")
    if not known.in_step and known.mode != FenceMode.HELD.value:
        detail = known.problem or "its copy is not complete"
        return checked(name, False, f"{target} is out of step: {detail}")
    return checked(name, True, f"the copy at {target} is complete, in epoch {known.epoch}")
