"""How long the holder of a lease may believe in it: deadline arithmetic. Pure."""

from __future__ import annotations

import math

import attrs

from meshkit.ordinals import LeaseId


def margin_ms_of(ttl_ms: int, *, clock_rate_error: float) -> int:
    """Return what a holder gives up of `ttl_ms` because the server's clock may run faster.

    A server that is `clock_rate_error` faster ends the lease after `ttl / (1 + error)` of ours.
    """
    return math.ceil(ttl_ms - ttl_ms / (1 + clock_rate_error))


@attrs.frozen(kw_only=True)
class Lease:
    """A lease as its holder may safely believe in it.

    The store starts counting when it handles the request; we start when we
    send it. Ours therefore always runs out first, which is the side to err on.
    """

    lease_id: LeaseId
    renewed_at_ms: int
    """When the grant or the last acknowledged renewal was *sent*, on our monotonic clock."""
    ttl_ms: int = attrs.field(validator=attrs.validators.gt(0))
    margin_ms: int = attrs.field(validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if self.margin_ms >= self.ttl_ms:
            raise ValueError(f"margin_ms={self.margin_ms} leaves nothing of ttl_ms={self.ttl_ms}")

    @property
    def deadline_ms(self) -> int:
        """The first moment at which it may no longer be ours."""
        return self.renewed_at_ms + self.ttl_ms - self.margin_ms

    def is_held(self, *, now_ms: int) -> bool:
        """Return whether it is certainly still ours."""
        return now_ms < self.deadline_ms

    def renewed(self, *, sent_at_ms: int) -> Lease:
        """Return the lease after a renewal, sent at `sent_at_ms`, was acknowledged."""
        return attrs.evolve(self, renewed_at_ms=max(sent_at_ms, self.renewed_at_ms))


def lease_of(lease_id: LeaseId, *, sent_at_ms: int, ttl_s: int, clock_rate_error: float) -> Lease:
    """Return the lease that a request sent at `sent_at_ms` got granted, with its margin."""
    ttl_ms = ttl_s * 1000
    return Lease(
        lease_id=lease_id,
        renewed_at_ms=sent_at_ms,
        ttl_ms=ttl_ms,
        margin_ms=margin_ms_of(ttl_ms, clock_rate_error=clock_rate_error),
    )


def live_id(lease: Lease | None, *, now_ms: int) -> LeaseId | None:
    """Return the id of a lease that is certainly alive, else None."""
    return lease.lease_id if lease is not None and lease.is_held(now_ms=now_ms) else None
