"""When copies are to be compared, and what a comparison means for a failover. Pure.

Of time only ages count, and as far as possible by the coordinators' clocks alone: how old a result
is follows from when it was asked for, whatever the clock of the region says that found it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import attrs

from coordinator.failover.record import Failover
from meshkit.model import VerifyMode
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch
from meshkit.verification import Verify, VerifyOutcome, VerifyResult

CHECK = "verify"
"""The name of the step, and of the check by which it is waived."""

EQUAL = frozenset({VerifyOutcome.EQUAL, VerifyOutcome.REPAIRED})

UNDER_WAY_MS_MAX = 15 * 60 * 1000
"""A request without a result that is older than this is not waited for."""

FIRST_MS_MAX = 15 * 60 * 1000
"""A copy that was not compared in the present epoch is, within so long of its beginning."""

CLOCK_DOUBT_MS = 60_000
"""A request that was made later than this from now was made by a clock that was wrong."""


@attrs.frozen(kw_only=True)
class Standing:
    """The newest request to compare one copy, and the newest result; not always of one another."""

    request: Verify | None = None
    result: VerifyResult | None = None

    @property
    def is_done(self) -> bool:
        """Whether the newest request has its result."""
        return (
            self.request is not None
            and self.result is not None
            and self.request.id == self.result.id
        )

    def is_under_way(self, *, now_ms: int) -> bool:
        """Whether a comparison was asked for that may still end."""
        if self.request is None or self.is_done:
            return False
        return abs(now_ms - self.request.requested_ms) <= UNDER_WAY_MS_MAX

    def age_ms(self, *, now_ms: int) -> int | None:
        """Return how long ago the newest result was found, at most; None if there is none."""
        if self.result is None:
            return None
        found_ms = self.result.ended_ms
        if self.is_done and self.request is not None:
            found_ms = self.request.requested_ms
        return max(0, now_ms - found_ms)

    def is_about(self, *, epoch: Epoch, source: ClusterName) -> bool:
        """Whether the newest result speaks of this epoch."""
        return (
            self.result is not None and self.result.epoch == epoch and self.result.source == source
        )


# --- before a failover --------------------------------------------------------------------------


@attrs.frozen
class Satisfied:
    """The copy is known to be equal; `detail` says how."""

    detail: str


@attrs.frozen
class Unfit:
    """The copy must not be promoted; `detail` says why."""

    detail: str


@attrs.frozen
class Ask:
    """The copy has to be compared."""


@attrs.frozen
class Wait:
    """A comparison is under way."""


Verdict = Satisfied | Unfit | Ask | Wait


def own_id(record: Failover) -> str:
    """Return the id of the request that a failover makes, however often it makes it."""
    return f"v-{record.id}"


def is_passed(record: Failover) -> str:
    """Return why a failover does not compare the copy, or nothing."""
    if record.policy.verify is VerifyMode.OFF:
        return "policy asks for no verification"
    return "waived by name" if CHECK in record.waivers else ""


def judge(record: Failover, standing: Standing, *, now_ms: int) -> Verdict:
    """Return what the failover's step makes of what is known of the target's copy."""
    is_own = standing.request is not None and standing.request.id == own_id(record)
    if is_own and standing.is_done:
        assert standing.result is not None, "what is done has a result"
        return _of_result(standing.result, record)
    known = is_known_equal(
        standing,
        epoch=record.epoch_before,
        source=record.source,
        mode=record.policy.verify,
        age_ms_max=record.policy.verify_age_ms_max,
        now_ms=now_ms,
    )
    if known is not None:
        return Satisfied(known)
    return Wait() if standing.is_under_way(now_ms=now_ms) else Ask()


def is_known_equal(
    standing: Standing,
    *,
    epoch: Epoch,
    source: ClusterName,
    mode: VerifyMode,
    age_ms_max: int,
    now_ms: int,
) -> str | None:
    """Return how it is known that the copy is equal, if that is known and young enough."""
    result, age_ms = standing.result, standing.age_ms(now_ms=now_ms)
    if result is None or age_ms is None or mode is not VerifyMode.RECENT:
        return None
    if not standing.is_about(epoch=epoch, source=source) or result.outcome not in EQUAL:
        return None
    if age_ms > age_ms_max:
        return None
    return f"{result.outcome.value} {age_ms // 1000} s ago ({result.id})"


def _of_result(result: VerifyResult, record: Failover) -> Verdict:
    group, target = record.group, record.target
    waive = f"or waive it by name: --waive {CHECK}"
    if result.outcome in EQUAL:
        keys = result.counts.target_keys
        return Satisfied(f"{result.outcome.value}: {keys} keys compared ({result.id})")
    if result.outcome is VerifyOutcome.DIFFERENT:
        return Unfit(
            f"{result.counts.differing} keys of the copy at {target} differ from {record.source};"
            f" repair it (mesh replication verify {group} --target {target} --repair), {waive}"
        )
    why = result.reason or "no reason was given"
    return Unfit(f"the copy at {target} could not be compared: {why}; remove the cause, {waive}")


# --- by schedule --------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Copy:
    """A passive copy that its group's policy wants compared."""

    group: GroupName
    target: ClusterName
    source: ClusterName
    epoch: Epoch
    every_ms: int
    seen_ms: int
    """When this coordinator first saw the copy follow this epoch."""
    standing: Standing

    def due_ms(self, *, now_ms: int) -> int:
        """Return when it is to be compared next; spread, so that copies do not come together."""
        spread = _spread(self.group, self.target, self.epoch)
        first_ms = min(self.every_ms, FIRST_MS_MAX)
        request, result = self.standing.request, self.standing.result
        if request is None or result is None or not self.standing.is_done:
            return self.seen_ms + int(first_ms * spread)
        if request.requested_ms > now_ms + CLOCK_DOUBT_MS:
            return now_ms
        if result.outcome is VerifyOutcome.REFUSED:
            return request.requested_ms + int(first_ms * (0.5 + 0.5 * spread))
        if not self.standing.is_about(epoch=self.epoch, source=self.source):
            return self.seen_ms + int(first_ms * spread)
        return request.requested_ms + int(self.every_ms * (0.9 + 0.2 * spread))


def due(copies: Iterable[Copy], *, now_ms: int) -> list[Copy]:
    """Return the copies to be compared now: one at each cluster, and none where one is.

    So what a schedule costs a cluster is one comparison at a time, however many groups it has.
    """
    by_target: dict[ClusterName, list[Copy]] = {}
    for copy in copies:
        by_target.setdefault(copy.target, []).append(copy)
    chosen: list[Copy] = []
    for target in sorted(by_target):
        at_target = by_target[target]
        if any(copy.standing.is_under_way(now_ms=now_ms) for copy in at_target):
            continue
        waiting = [(c.due_ms(now_ms=now_ms), c.group, c) for c in at_target if c.every_ms]
        ready = sorted(((at, g, c) for at, g, c in waiting if at <= now_ms), key=lambda e: e[:2])
        if ready:
            chosen.append(ready[0][2])
    return chosen


def _spread(*parts: object) -> float:
    """Return a number in [0, 1) that only depends on what it is about."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32
