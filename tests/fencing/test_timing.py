"""Lease times that do not fit each other are refused before anything starts."""

import attrs
import pytest

from fencing.timing import (
    PROFILES,
    Timing,
    check,
    check_granted,
    emergency_ms,
    explain,
    timing_of,
)
from meshkit.config import TimingConfig
from meshkit.errors import InvalidConfig


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profiles_keep_every_rule(profile: str) -> None:
    timing = timing_of(profile)

    assert all(line.startswith("ok") for line in explain(timing))
    assert emergency_ms(timing) <= 30_000


def test_the_configurations_value_names_are_known_here() -> None:
    """`TimingConfig.overrides()` is what the services pass on."""
    names = {a.name for a in attrs.fields(TimingConfig)} - {"profile"}

    assert names <= {a.name for a in attrs.fields(Timing)}


def test_a_regional_lease_that_could_outlive_the_coordination_lease_is_refused() -> None:
    """The permit would still live when the other side opens."""
    with pytest.raises(InvalidConfig, match=r"safe: .*2\*4000\*1.01 \+ 500 = 8580 .* 8416 ms"):
        check(Timing(coordination_ttl_ms=8_500))


def test_a_larger_clock_rate_error_needs_a_longer_coordination_lease() -> None:
    with pytest.raises(InvalidConfig, match="safe"):
        check(Timing(rho_ppm=50_000))

    check(Timing(rho_ppm=50_000, coordination_ttl_ms=10_000))


def test_a_regional_lease_that_a_leader_change_would_end_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="calm"):
        check(Timing(election_timeout_ms=2_000))


def test_times_that_break_the_thirty_seconds_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="budget"):
        check(Timing(coordination_ttl_ms=14_000))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_promise_outlasts_every_permit_that_rests_on_it(profile: str) -> None:
    """By the arithmetic of the coordination lease: it stands where that stood."""
    timing = timing_of(profile)
    rate = 1 + timing.clock_rate_error

    shortest_ms = timing.promise_ttl_s * 1000 / rate
    longest_ms = 2 * timing.regional_ttl_ms * rate + timing.expiry_delay_ms

    assert longest_ms <= shortest_ms < longest_ms + 1_000
    assert any(line.startswith("ok      promise: ") for line in explain(timing))


def test_a_promise_that_would_keep_others_from_opening_for_too_long_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"promise: .* <= 30000 ms"):
        check(Timing(coordination_ttl_ms=40_000, regional_ttl_ms=18_000))


def test_granted_ttls_are_checked_again() -> None:
    """etcd raises a TTL to its minimum (1.5 election timeouts) without complaint."""
    fast = timing_of("fast")

    with pytest.raises(InvalidConfig, match="safe"):
        check_granted(fast, coordination_ttl_s=5, regional_ttl_s=3)

    with pytest.raises(InvalidConfig, match="safe"):
        check_granted(fast, coordination_ttl_s=9, regional_ttl_s=3)

    assert check_granted(fast, coordination_ttl_s=6, regional_ttl_s=2) == fast


def test_fractions_of_a_second_and_zero_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="whole seconds"):
        check(Timing(regional_ttl_ms=2_500))
    with pytest.raises(InvalidConfig, match="positive"):
        check(Timing(round_interval_ms=0))


def test_a_shorter_regional_lease_brings_a_shorter_round() -> None:
    assert timing_of("default", {"regional_ttl_ms": 3_000, "election_timeout_ms": 500}) == Timing(
        regional_ttl_ms=3_000, round_interval_ms=750, election_timeout_ms=500
    )


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="no timing profile"):
        timing_of("quick")
    with pytest.raises(InvalidConfig, match="no value ttl"):
        timing_of("default", {"ttl": 1})
