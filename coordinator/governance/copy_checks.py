"""Whether the copy that a group is to move to may be opened, by what its cluster tells. Pure."""

from __future__ import annotations

from coordinator.governance.check import Check, checked
from meshkit.model import Group, LeasePolicy
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch
from meshkit.status import ClusterHealth, GroupHealth


def copy_checks(
    target: ClusterName, group: Group, epoch: Epoch, health: ClusterHealth | None
) -> tuple[Check, ...]:
    """Return the checks of the copy at `target`; `health` is what it told lately, if it did."""
    known = health.groups.get(group.name) if health else None
    if known is None:
        untold = f"{target} does not report about group {group.name}"
        return tuple(
            checked(name, False, untold) for name in ("target_in_step", "nothing_parked", "leases")
        )
    return (
        _in_step(target, epoch, known),
        _nothing_parked(target, known),
        _leases(target, group, known),
    )


def _in_step(target: ClusterName, epoch: Epoch, known: GroupHealth) -> Check:
    if not known.in_step:
        detail = known.problem or "its copy is not complete"
        return checked("target_in_step", False, f"{target} is out of step: {detail}")
    if known.epoch != epoch:
        detail = f"{target} is in epoch {known.epoch} of the group, which is in epoch {epoch}"
        return checked("target_in_step", False, detail)
    return checked("target_in_step", True, f"the copy at {target} is complete and follows")


def _nothing_parked(target: ClusterName, known: GroupHealth) -> Check:
    if known.parked:
        return checked("nothing_parked", False, f"{target}: {known.parked}")
    return checked("nothing_parked", True, f"the etcd of {target} refused nothing of the group")


def _leases(target: ClusterName, group: Group, known: GroupHealth) -> Check:
    """Look at ids that are somebody else's there, or that hold keys of a group that stays.

    Waived, the second kind moves, and lives at both clusters; the first is refused by the target.
    """
    policy = group.policy.leases
    if known.leases and policy is LeasePolicy.REFUSE:
        return checked("leases", False, f"{target}: {known.leases}", waivable=True)
    if known.leases:
        detail = f"{target}: {known.leases}; the policy is to {policy.value} an id that is taken"
        return checked("leases", True, detail, waivable=True, warning=True)
    detail = f"nothing at {target} stands in the way of the group's leases"
    return checked("leases", True, detail, waivable=True)
