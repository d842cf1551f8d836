"""Whether a planned failover may begin: named checks over what is known, and a preview. Pure.

What is unknown fails its check and says so. Each check may be waived only by its name, and those
without which the failover could not be carried out cannot be waived at all.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from coordinator.comparison import CHECK, Standing, is_known_equal
from coordinator.failover.plan import PLANNED_1
from coordinator.governance.check import Check, checked, lasting
from coordinator.governance.copy_checks import copy_checks
from coordinator.governance.lag import behind_of, group_lag
from meshkit.model import Authority, ClusterDescriptor, ClusterIntent, Group, VerifyMode
from meshkit.names import ClusterName, FailoverId
from meshkit.pauses import AutomationPause, ReplicationPause
from meshkit.promises import Pact
from meshkit.status import ClusterHealth, Lag, StreamState, StreamStatus
from meshkit.store.port import StoreStatus
from meshkit.verification import VerifyOutcome

STATUS_AGE_MS_MAX = 15_000
"""A report older than this counts as none. Wide, because two regions' wall clocks differ."""

CLOSE_AGE_MS_MAX = 2_000
"""A lag that was reported longer ago says nothing of now; nor does one by a clock that far off."""

CERTIFICATE_MS_MIN = 3_600_000
PAUSE_OVERHEAD_MS = 150
"""What a pause takes beside the lag: drain, converge, pivot, open; a few round trips."""

VERSION_MIN = (3, 4, 0)
VERSIONS_WARNED = ((3, 5, 0), (3, 5, 2))
"""etcd 3.5.0 to 3.5.2 can corrupt data when a member is killed (etcd issue 13766)."""


@attrs.frozen(kw_only=True)
class Situation:
    """What is known about a failover that is asked for."""

    group: Group
    authority: Authority
    source: ClusterDescriptor
    target: ClusterDescriptor
    source_health: ClusterHealth | None
    target_health: ClusterHealth | None
    stream: StreamStatus | None
    coordination: StoreStatus | None
    is_sealed: bool
    running: FailoverId | None
    succeeded_at_ms: int | None
    """When the last failover of the group succeeded."""
    pause_ms_last: int | None
    """How long the last one paused writes."""
    automation: AutomationPause | None = None
    pauses: tuple[ReplicationPause, ...] = ()
    pact: Pact | None = None
    """Whom the source asks for promises, if its writes may outlive the coordination etcd."""
    copy: Standing = attrs.field(factory=Standing)
    """What is known of comparing the target's copy with its source."""
    now_ms: int
    """Wall clock: reports carry wall times, and only ages of many seconds are judged by it."""


@attrs.frozen(kw_only=True)
class Preview:
    """What would happen."""

    checks: tuple[Check, ...]
    lag_ms: int | None
    lag_error_ms: int | None
    stream: str
    pause_ms_predicted: int | None
    pause_budget_ms: int
    steps: tuple[str, ...] = PLANNED_1.step_names

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that stand in the way."""
        return tuple(check for check in self.checks if check.refuses)


def preview(situation: Situation, *, waivers: Iterable[str] = ()) -> Preview:
    """Return what would happen, with every check and what was waived."""
    waived = set(waivers)
    checks = (
        coordination_check(situation.coordination),
        *region_checks("source", situation.source.name, situation.source_health, situation.now_ms),
        *region_checks("target", situation.target.name, situation.target_health, situation.now_ms),
        _lag(situation),
        *_copy_checks(situation),
        service_check(situation),
        _not_sealed(situation),
        _nothing_running(situation),
        _cool_down(situation),
        _pause_budget(situation),
        _verify(situation),
        _not_paused(situation),
        _automation(situation),
    )
    lag = _lag_of(situation)
    return Preview(
        checks=tuple(
            attrs.evolve(check, waived=not check.ok and check.waivable and check.name in waived)
            for check in checks
        ),
        lag_ms=lag.lag_ms,
        lag_error_ms=lag.error_bound_ms,
        stream=lag.state.value,
        pause_ms_predicted=_pause_predicted(situation),
        pause_budget_ms=situation.group.policy.pause_budget_ms,
    )


CHECK_NAMES = frozenset(
    {
        "coordination_healthy",
        "source_healthy",
        "source_version",
        "source_certificate",
        "target_healthy",
        "target_version",
        "target_certificate",
        "lag",
        "target_in_step",
        "nothing_parked",
        "leases",
        "target_in_service",
        "not_sealed",
        "nothing_running",
        "cool_down",
        "pause_budget",
        CHECK,
        "not_paused",
        "automation",
    }
)

PROMISES = "target_promises"
WAIVABLE_NAMES = CHECK_NAMES | {PROMISES}
"""What may be named in a waiver: emergencies have a check that no planned failover needs."""


def fresh_health(health: ClusterHealth | None, *, now_ms: int) -> ClusterHealth | None:
    """Return a region's report unless it is absent or too old."""
    return health if health and now_ms - health.at_ms <= STATUS_AGE_MS_MAX else None


def fresh_stream(stream: StreamStatus | None, *, now_ms: int) -> StreamStatus | None:
    """Return a stream's report unless it is absent or too old."""
    return stream if stream and now_ms - stream.at_ms <= STATUS_AGE_MS_MAX else None


def coordination_check(status: StoreStatus | None) -> Check:
    """Return whether the coordination etcd is well."""
    name = "coordination_healthy"
    if status is None:
        return checked(name, False, "the coordination etcd does not tell its status")
    if status.alarms:
        return checked(name, False, f"alarms: {', '.join(status.alarms)}")
    if not status.leader_id:
        return checked(name, False, "the coordination etcd has no leader")
    return checked(name, True, f"etcd {status.version}, no alarm")


def region_checks(
    role: str, cluster: ClusterName, health: ClusterHealth | None, now_ms: int
) -> tuple[Check, ...]:
    """Return whether a region is well and of a version we know."""
    known = fresh_health(health, now_ms=now_ms)
    if known is None:
        why = "its last report is too old" if health else "no replicator of it leads"
        return (
            checked(f"{role}_healthy", False, f"{cluster} does not report: {why}"),
            checked(f"{role}_version", False, f"unknown: {cluster} does not report", waivable=True),
            checked(
                f"{role}_certificate", False, f"unknown: {cluster} does not report", waivable=True
            ),
        )
    return (
        _healthy(role, cluster, known),
        _version(role, known.etcd_version),
        _certificate(role, known.certificate_not_after_ms, now_ms),
    )


def _healthy(role: str, cluster: ClusterName, health: ClusterHealth) -> Check:
    if health.alarms:
        detail = f"{cluster} has etcd alarms: {', '.join(health.alarms)}"
        return checked(f"{role}_healthy", False, detail)
    detail = f"{cluster} reports by {health.replicator}"
    if health.problems:
        detail += f"; it says: {'; '.join(health.problems)}"
    return checked(f"{role}_healthy", True, detail, warning=bool(health.problems))


def _version(role: str, version: str) -> Check:
    name = f"{role}_version"
    parts = tuple(
        int(part) for part in version.split("-", maxsplit=1)[0].split(".") if part.isdigit()
    )
    if len(parts) < 3 or parts < VERSION_MIN:
        return checked(name, False, f"etcd {version or 'unknown'} is not supported", waivable=True)
    if VERSIONS_WARNED[0] <= parts <= VERSIONS_WARNED[1]:
        return checked(name, True, f"etcd {version} is known to lose data; upgrade", warning=True)
    return checked(name, True, f"etcd {version}")


def _certificate(role: str, not_after_ms: int | None, now_ms: int) -> Check:
    name = f"{role}_certificate"
    if not_after_ms is None:
        return checked(name, True, "no certificate is in use", warning=True)
    left_ms = not_after_ms - now_ms
    ok = left_ms > CERTIFICATE_MS_MIN
    if left_ms <= 0:
        return checked(name, ok, f"expired {lasting(-left_ms)} ago", waivable=True)
    return checked(name, ok, f"valid for {lasting(left_ms)} more", waivable=True)


def _lag_of(situation: Situation) -> Lag:
    """Return the lag of the group, not of others in its stream."""
    return group_lag(
        fresh_stream(situation.stream, now_ms=situation.now_ms),
        fresh_health(situation.target_health, now_ms=situation.now_ms),
        situation.group.name,
    )


def _lag(situation: Situation) -> Check:
    stream = fresh_stream(situation.stream, now_ms=situation.now_ms)
    lag, target = _lag_of(situation), situation.target.name
    lag_ms_max = situation.group.policy.lag_ms_max
    behind = behind_of(stream, situation.group.name)
    if lag.lag_ms is None:
        why = stream.problem if stream and stream.problem else "nobody reports it"
        why = f"the group is {behind.why} there: {behind.text}" if behind else why
        return checked("lag", False, f"lag of {target} is unknown: {why}", waivable=True)
    if lag.error_bound_ms is None:
        detail = f"{target} is at least {lag.lag_ms} ms behind; how far is unknown"
        return checked("lag", False, detail, waivable=True)
    if lag.state is not StreamState.STREAMING:
        what = f"the group is {behind.why}" if behind else f"the stream is {lag.state.value}"
        detail = f"{what} and {lag.lag_ms} ms behind; it must be streaming"
        return checked("lag", False, detail, waivable=True)
    detail = f"{lag.lag_ms} ms behind (streaming), at most {lag_ms_max} ms allowed"
    return checked("lag", lag.lag_ms <= lag_ms_max, detail, waivable=True)


def how_close(situation: Situation) -> str:
    """Return how close the target was a moment ago, if so close that writes may be paused.

    Nothing if it was not, or nobody has said so lately. If it has fallen behind meanwhile, writes
    are paused for longer, and within the pause budget.
    """
    stream, lag = situation.stream, _lag_of(situation)
    if stream is None or abs(situation.now_ms - stream.at_ms) > CLOSE_AGE_MS_MAX:
        return ""
    if lag.state is not StreamState.STREAMING or lag.greatest_ms is None:
        return ""
    is_close = lag.greatest_ms <= situation.group.policy.catch_up_lag_ms_max
    return f"{lag.greatest_ms} ms behind at most" if is_close else ""


def _copy_checks(situation: Situation) -> tuple[Check, ...]:
    return copy_checks(
        situation.target.name,
        situation.group,
        situation.authority.epoch,
        fresh_health(situation.target_health, now_ms=situation.now_ms),
    )


def reports_late(situation: Situation) -> bool:
    """Return whether the target's last report is about an earlier epoch than the group's.

    So it is for a moment after each failover: regions report twice a second.
    """
    health = fresh_health(situation.target_health, now_ms=situation.now_ms)
    known = health.groups.get(situation.group.name) if health else None
    is_target = situation.target.name != situation.authority.active
    return is_target and known is not None and known.epoch < situation.authority.epoch


def service_check(situation: Situation) -> Check:
    """Return whether operators let the target serve."""
    intent = situation.target.intent
    ok = intent is ClusterIntent.IN_SERVICE
    return checked("target_in_service", ok, f"{situation.target.name} is {intent.value}")


def _not_sealed(situation: Situation) -> Check:
    detail = "the group is sealed by an emergency" if situation.is_sealed else "no seal"
    return checked("not_sealed", not situation.is_sealed, detail)


def _nothing_running(situation: Situation) -> Check:
    running = situation.running
    detail = f"failover {running} is running" if running else "no other failover is running"
    return checked("nothing_running", running is None, detail)


def _cool_down(situation: Situation) -> Check:
    cool_down_ms = situation.group.policy.cool_down_ms
    ended_ms = situation.succeeded_at_ms
    left_ms = ended_ms + cool_down_ms - situation.now_ms if ended_ms is not None else 0
    if left_ms > 0:
        return checked("cool_down", False, f"{left_ms // 1000 + 1} s to go", waivable=True)
    return checked("cool_down", True, "over")


def _pause_predicted(situation: Situation) -> int | None:
    known_ms = _lag_of(situation).lag_ms
    if known_ms is None:
        return None
    lag_ms = min(known_ms, situation.group.policy.catch_up_lag_ms_max)
    return max(lag_ms + PAUSE_OVERHEAD_MS, situation.pause_ms_last or 0)


def _pause_budget(situation: Situation) -> Check:
    predicted_ms = _pause_predicted(situation)
    budget_ms = situation.group.policy.pause_budget_ms
    if predicted_ms is None:
        detail = "the pause cannot be predicted: lag is unknown"
        return checked("pause_budget", False, detail, waivable=True)
    detail = f"about {predicted_ms} ms of pause, {budget_ms} ms allowed"
    return checked("pause_budget", predicted_ms <= budget_ms, detail, waivable=True)


def _not_paused(situation: Situation) -> Check:
    """Judge both directions: the source has to follow the target afterwards."""
    source, target = situation.source.name, situation.target.name
    found = [
        pause
        for pause in situation.pauses
        if pause.group == situation.group.name
        or pause.stops_stream(source, target)
        or pause.stops_stream(target, source)
    ]
    if not found:
        return checked("not_paused", True, "replication is not paused")
    told = "; ".join(f"{p.what} is paused by {p.by}: {p.reason or 'no reason'}" for p in found)
    return checked("not_paused", False, f"{told}; let it go on: mesh replication resume")


def _automation(situation: Situation) -> Check:
    pause = situation.automation
    if pause is None:
        return checked("automation", True, "automation is not paused")
    detail = f"automation is paused by {pause.by}: {pause.reason or 'no reason'}; mesh resume"
    return checked("automation", False, detail, waivable=True)


def _verify(situation: Situation) -> Check:
    """Judge what is known; what is not is found out by the step of the same name."""
    policy, copy = situation.group.policy, situation.copy
    source, epoch = situation.authority.active, situation.authority.epoch
    if policy.verify is VerifyMode.OFF:
        return checked(CHECK, True, "policy asks for no verification")
    age_ms = copy.age_ms(now_ms=situation.now_ms)
    known = is_known_equal(
        copy,
        epoch=epoch,
        source=source,
        mode=policy.verify,
        age_ms_max=policy.verify_age_ms_max,
        now_ms=situation.now_ms,
    )
    if known is not None:
        return checked(CHECK, True, known)
    result = copy.result
    if (
        result is not None
        and age_ms is not None
        and age_ms <= policy.verify_age_ms_max
        and result.outcome is VerifyOutcome.DIFFERENT
        and copy.is_about(epoch=epoch, source=source)
    ):
        detail = (
            f"{result.counts.differing} keys of the copy at {situation.target.name} differed"
            f" {age_ms // 1000} s ago ({result.id}); compare again or repair:"
            f" mesh replication verify {situation.group.name} [--repair]"
        )
        return checked(CHECK, False, detail, waivable=True)
    return checked(CHECK, True, "the copy is compared first, while writes go on", waivable=True)
