"""The lease times and whether they fit each other: arithmetic, checked when it is loaded. Pure.

Two rules (architecture section 4), with `Tc` the TTL of the coordination lease, `Tr` that of the
regional lease, `rho` how far the rates of two clocks may differ:

* **Safe**: `2*Tr*(1+rho) + expiry delay <= Tc/(1+rho)`. A regional renewal may be delayed by almost
  `Tr` after the coordination renewal that allowed it, and then lasts `Tr`.
* **Calm**: `Tr >= 2*(election timeout + round interval)`. A routine leader change of the
  coordination etcd must not make the permits lapse.

And the promise for the worst emergency, 30 s, must have room for what is waited for in it.

Where a group goes on by the promise of its passive members instead (`fencing/keeping.py`), their
promises stand where the coordination lease stood, so the safe rule is theirs too: each lasts
`2*Tr*(1+rho) + expiry delay`, on any clock, from when it was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from meshkit.errors import InvalidConfig

EMERGENCY_MS_MAX = 30_000
"""The promise for the worst emergency (architecture section 9, promise 10)."""

OPEN_AND_REDIRECT_MS_MAX = 3_000
"""Of the budget: freeze, pivot, open, and the gates' redirect."""

PROMISE_MS_MAX = 30_000
"""A promise keeps the cluster that made it from opening for so long, at most."""

_ROUNDS_PER_REGIONAL_TTL = 4
"""A third would break the calm rule with etcd's own election timeout and a regional TTL of 4 s."""


@attrs.frozen(kw_only=True)
class Timing:
    """The times of one region's chain of leases, of its elections and of its gates."""

    coordination_ttl_ms: int = 9_000
    """`Tc`; whole seconds, as etcd counts."""
    regional_ttl_ms: int = 4_000
    """`Tr`; whole seconds, as etcd counts."""
    round_interval_ms: int = 1_000
    """From the beginning of one round to the next."""
    election_timeout_ms: int = 1_000
    """Of the coordination etcd (`--election-timeout`)."""
    leader_ttl_ms: int = 6_000
    """TTL of the leader keys of replicators and coordinators; whole seconds."""
    expiry_delay_ms: int = 500
    """etcd looks for leases that have run out every 500 ms (`server/lease/lessor.go`)."""
    rho_ppm: int = 10_000
    """How far the rates of two clocks may differ, in parts per million."""

    @property
    def clock_rate_error(self) -> float:
        """`rho` as a fraction."""
        return self.rho_ppm / 1_000_000

    @property
    def coordination_ttl_s(self) -> int:
        """`Tc` as etcd wants it."""
        return self.coordination_ttl_ms // 1000

    @property
    def regional_ttl_s(self) -> int:
        """`Tr` as etcd wants it."""
        return self.regional_ttl_ms // 1000

    @property
    def leader_ttl_s(self) -> int:
        """TTL of leader keys as etcd wants it."""
        return self.leader_ttl_ms // 1000

    @property
    def call_timeout_ms(self) -> int:
        """For one call of a round: short enough that a hung etcd leaves time to act."""
        return max(500, self.regional_ttl_ms // 2)

    @property
    def promise_ttl_s(self) -> int:
        """How long a promise must last, as etcd counts, to outlast every permit it allows."""
        rate = 1 + self.clock_rate_error
        return math.ceil((2 * self.regional_ttl_ms * rate + self.expiry_delay_ms) * rate / 1000)

    @property
    def fence_wait_ms(self) -> int:
        """How long after a seal an unheard cluster is certainly fenced, on any correct clock."""
        return math.ceil(self.coordination_ttl_ms * (1 + self.clock_rate_error))


PROFILES: Mapping[str, Timing] = {
    "default": Timing(),
    "fast": Timing(
        coordination_ttl_ms=5_000,
        regional_ttl_ms=2_000,
        round_interval_ms=500,
        election_timeout_ms=500,
        leader_ttl_ms=3_000,
    ),
}
"""`fast` is for near sites, whose coordination etcd has an election timeout of 500 ms."""


@attrs.frozen(kw_only=True)
class Rule:
    """One rule with its numbers filled in."""

    name: str
    arithmetic: str
    holds: bool


def timing_of(profile: str, overrides: Mapping[str, int] | None = None) -> Timing:
    """Return a profile's timing with some values replaced, checked.

    A regional TTL without a round interval brings its own: a quarter of it.

    Raises:
        InvalidConfig: there is no such profile or value, or the times do not fit each other.
    """
    if profile not in PROFILES:
        raise InvalidConfig(f"there is no timing profile {profile!r}: {', '.join(PROFILES)}")
    changes = dict(overrides or {})
    unknown = changes.keys() - {field.name for field in attrs.fields(Timing)}
    if unknown:
        raise InvalidConfig(f"timing has no value {', '.join(sorted(unknown))}")
    if "regional_ttl_ms" in changes:
        default_ms = changes["regional_ttl_ms"] // _ROUNDS_PER_REGIONAL_TTL
        changes.setdefault("round_interval_ms", default_ms)
    timing = attrs.evolve(PROFILES[profile], **changes)
    check(timing)
    return timing


def rules(timing: Timing) -> tuple[Rule, ...]:
    """Return every rule with its numbers, whether it holds or not."""
    return (_positive(timing), _whole_seconds(timing), *_fitting(timing))


def check(timing: Timing) -> None:
    """Allow the timing.

    Raises:
        InvalidConfig: names each rule that does not hold, with the arithmetic.
    """
    broken = [f"{rule.name}: {rule.arithmetic}" for rule in rules(timing) if not rule.holds]
    if broken:
        raise InvalidConfig(
            "the lease times do not fit each other: " + "; ".join(broken),
            hint="take the profile default or fast, or raise coordination_ttl_ms",
        )


def check_granted(timing: Timing, *, coordination_ttl_s: int, regional_ttl_s: int) -> Timing:
    """Return the timing with the TTLs as etcd granted them: it raises a TTL to its minimum.

    A longer coordination lease helps nobody: coordinators wait for the configured `Tc`.

    Raises:
        InvalidConfig: with these TTLs the rules do not hold.
    """
    granted = attrs.evolve(
        timing,
        coordination_ttl_ms=min(coordination_ttl_s * 1000, timing.coordination_ttl_ms),
        regional_ttl_ms=regional_ttl_s * 1000,
    )
    check(granted)
    return granted


def explain(timing: Timing) -> list[str]:
    """Return one line per rule, for `mesh config validate`."""
    return [
        f"{'ok' if rule.holds else 'BROKEN':<6}  {rule.name}: {rule.arithmetic}"
        for rule in rules(timing)
    ]


def emergency_ms(timing: Timing) -> int:
    """Return how long the worst emergency takes, from the loss of a region to redirected writes.

    The loss is noticed when the holder lapses, and meanwhile a new coordinator leads if the old
    one went with the region; then the fence is waited out; then the target opens.
    """
    rate = 1 + timing.clock_rate_error
    noticed = timing.coordination_ttl_ms * rate + timing.expiry_delay_ms
    led = timing.leader_ttl_ms * rate + timing.expiry_delay_ms + 2 * timing.election_timeout_ms
    fenced = timing.fence_wait_ms + timing.expiry_delay_ms
    return math.ceil(max(noticed, led) + fenced + OPEN_AND_REDIRECT_MS_MAX)


def _positive(timing: Timing) -> Rule:
    values = attrs.asdict(timing)
    wrong = [
        name for name, value in values.items() if value < 0 or (value == 0 and name != "rho_ppm")
    ]
    named = ", ".join(f"{name}={values[name]}" for name in wrong)
    return Rule(name="positive", arithmetic=named or "every time is > 0", holds=not wrong)


def _whole_seconds(timing: Timing) -> Rule:
    names = ("coordination_ttl_ms", "regional_ttl_ms", "leader_ttl_ms")
    wrong = [name for name in names if getattr(timing, name) % 1000]
    arithmetic = ", ".join(f"{name}={getattr(timing, name)}" for name in wrong or names)
    return Rule(name="whole seconds", arithmetic=arithmetic, holds=not wrong)


def _fitting(timing: Timing) -> tuple[Rule, ...]:
    rho, delay_ms = timing.clock_rate_error, timing.expiry_delay_ms
    tc_ms, tr_ms = timing.coordination_ttl_ms, timing.regional_ttl_ms
    worst_ms = 2 * tr_ms * (1 + rho) + delay_ms
    least_ms = tc_ms / (1 + rho)
    stall_ms = 2 * (timing.election_timeout_ms + timing.round_interval_ms)
    emergency = emergency_ms(timing)
    return (
        Rule(
            name="safe",
            arithmetic=(
                f"2*Tr*(1+rho) + {delay_ms} = 2*{tr_ms}*{1 + rho:g} + {delay_ms} = {worst_ms:.0f} "
                f"<= Tc/(1+rho) = {tc_ms}/{1 + rho:g} = {least_ms:.0f} ms"
            ),
            holds=worst_ms <= least_ms,
        ),
        Rule(
            name="calm",
            arithmetic=(
                f"Tr = {tr_ms} >= 2*(election timeout + round interval) = "
                f"2*({timing.election_timeout_ms} + {timing.round_interval_ms}) = {stall_ms} ms"
            ),
            holds=tr_ms >= stall_ms,
        ),
        Rule(
            name="promise",
            arithmetic=(
                f"2*Tr*(1+rho) + {delay_ms} = {worst_ms:.0f} <= promise/(1+rho) ="
                f" {timing.promise_ttl_s * 1000}/{1 + rho:g} ms, which is <= {PROMISE_MS_MAX} ms"
            ),
            holds=worst_ms * (1 + rho) <= timing.promise_ttl_s * 1000 <= PROMISE_MS_MAX,
        ),
        Rule(
            name="budget",
            arithmetic=f"worst emergency {emergency} <= {EMERGENCY_MS_MAX} ms",
            holds=emergency <= EMERGENCY_MS_MAX,
        ),
    )
