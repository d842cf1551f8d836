"""A holder stops believing in its lease before the server ends it."""

import pytest

from fencing.lease import Lease, lease_of, margin_ms_of
from meshkit.ordinals import LeaseId


def test_a_lease_without_time_left_over_its_margin_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        Lease(lease_id=LeaseId(1), renewed_at_ms=0, ttl_ms=100, margin_ms=100)


def test_the_deadline_counts_from_before_the_request_was_sent() -> None:
    lease = lease_of(LeaseId(1), sent_at_ms=1_000, ttl_s=10, clock_rate_error=0.0)

    assert lease.deadline_ms == 11_000
    assert lease.is_held(now_ms=10_999)
    assert not lease.is_held(now_ms=11_000)


def test_the_margin_covers_a_server_whose_clock_runs_faster() -> None:
    """A server 1 % fast ends a 10 s lease after 9 900.99 ms of ours."""
    margin_ms = margin_ms_of(10_000, clock_rate_error=0.01)

    assert margin_ms == 100
    assert (10_000 - margin_ms) * 1.01 <= 10_000


def test_a_late_acknowledgement_of_an_older_renewal_takes_nothing_away() -> None:
    lease = lease_of(LeaseId(1), sent_at_ms=1_000, ttl_s=10, clock_rate_error=0.01)

    assert lease.renewed(sent_at_ms=3_000).renewed(sent_at_ms=2_000).renewed_at_ms == 3_000
