"""Whether a group's policy for automatic failovers can be kept at all. Pure."""

from __future__ import annotations

import math

from meshkit.errors import InvalidInput
from meshkit.model import CoordinationLoss, FailoverMode, GroupPolicy

EXPIRY_DELAY_MS = 500
"""etcd looks for leases that have run out every so often (`fencing.timing`)."""
HEAD_AGE_MS = 1_000
"""How old the last head of a region's log may be when it dies, and how late that is seen."""


def least_seconds(coordination_ttl_ms: int) -> int:
    """Return the least bound in seconds that the death of an idle region does not exceed."""
    worst_ms = coordination_ttl_ms + EXPIRY_DELAY_MS + HEAD_AGE_MS
    return math.ceil(worst_ms / 1000)


def check_policy(policy: GroupPolicy, *, coordination_ttl_ms: int) -> None:
    """Allow a policy.

    Raises:
        InvalidInput: an automatic failover has no bound on its loss, or one that can never be kept.
    """
    if policy.failover is not FailoverMode.AUTOMATIC:
        return
    if policy.on_coordination_loss is CoordinationLoss.KEEP:
        raise InvalidInput(
            "policy: failover: automatic does not go with on_coordination_loss: keep: nobody can"
            " know that a cluster has stopped which may go on unheard, so nothing bounds the loss",
            hint="leave failover: manual, or let writes lapse with the coordination etcd",
        )
    seconds, records = policy.automatic_loss_seconds_max, policy.automatic_loss_records_max
    least = least_seconds(coordination_ttl_ms)
    if seconds is None or records is None:
        raise InvalidInput(
            "policy: failover: automatic needs a bound on what may be lost without anybody asking:"
            " automatic_loss_seconds_max and automatic_loss_records_max",
            hint=f"for a region that just dies {least + 5} seconds and a few hundred records do",
        )
    if seconds < least:
        raise InvalidInput(
            f"policy.automatic_loss_seconds_max: {seconds} s can never be kept: that a region has"
            f" stopped is known only when its lease of {coordination_ttl_ms} ms has run out, so up"
            f" to {least} s of writes may be lost",
            hint=f"allow at least {least} s, or leave failover: manual",
        )
    if policy.automatic_after_ms < coordination_ttl_ms:
        raise InvalidInput(
            f"policy.automatic_after_ms: {policy.automatic_after_ms} ms is shorter than the lease"
            f" of {coordination_ttl_ms} ms within which a region comes back that only lost its way",
            hint=f"wait at least {coordination_ttl_ms} ms",
        )
