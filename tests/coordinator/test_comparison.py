"""When copies are compared by themselves, and what a comparison means for a failover."""

from __future__ import annotations

import attrs
import pytest

from coordinator.comparison import (
    FIRST_MS_MAX,
    UNDER_WAY_MS_MAX,
    Ask,
    Copy,
    Satisfied,
    Standing,
    Unfit,
    Wait,
    due,
    judge,
    own_id,
)
from coordinator.failover.record import Failover, FailoverKind
from meshkit.codec import decode, encode
from meshkit.model import GroupPolicy, VerifyMode
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Revision
from meshkit.verification import Counts, Verify, VerifyOutcome, VerifyResult

A, B, C = ClusterName("us-east"), ClusterName("eu-west"), ClusterName("ap-south")
ORDERS = GroupName("orders")
NOW = 1_700_000_000_000
HOUR = 3_600_000


def record(mode: VerifyMode = VerifyMode.RECENT) -> Failover:
    return Failover(
        id=FailoverId("f-1"),
        group=ORDERS,
        kind=FailoverKind.PROMOTE,
        plan="planned/1",
        source=A,
        target=B,
        epoch_before=Epoch(3),
        incarnation=1,
        authority_revision=Revision(7),
        source_token=NO_TOKEN,
        policy=GroupPolicy(verify=mode, verify_age_ms_max=HOUR),
    )


def asked(verify_id: str = "v-other", *, ago_ms: int = 60_000) -> Verify:
    return Verify(
        id=verify_id, group=ORDERS, target=B, repair=False, requested_by="x",
        requested_ms=NOW - ago_ms,
    )  # fmt: skip


def found(
    outcome: VerifyOutcome = VerifyOutcome.EQUAL, verify_id: str = "v-other", *, epoch: int = 3
) -> VerifyResult:
    return VerifyResult(
        id=verify_id, group=ORDERS, target=B, outcome=outcome, source=A, epoch=Epoch(epoch),
        counts=Counts(target_keys=9, different=2 * (outcome is VerifyOutcome.DIFFERENT)),
        ended_ms=NOW,
    )  # fmt: skip


def standing(outcome: VerifyOutcome = VerifyOutcome.EQUAL, **changes) -> Standing:
    ago_ms = changes.pop("ago_ms", 60_000)
    verify_id = changes.pop("verify_id", "v-other")
    return Standing(
        request=asked(verify_id, ago_ms=ago_ms), result=found(outcome, verify_id, **changes)
    )


def verdict(known: Standing, mode: VerifyMode = VerifyMode.RECENT) -> type:
    return type(judge(record(mode), known, now_ms=NOW))


@pytest.mark.parametrize(
    ("known", "mode", "expected"),
    [
        (Standing(), VerifyMode.RECENT, Ask),
        (standing(), VerifyMode.RECENT, Satisfied),
        (standing(VerifyOutcome.REPAIRED), VerifyMode.RECENT, Satisfied),
        (standing(ago_ms=HOUR), VerifyMode.RECENT, Satisfied),
        (standing(ago_ms=HOUR + 1), VerifyMode.RECENT, Ask),
        (standing(epoch=2), VerifyMode.RECENT, Ask),
        (standing(VerifyOutcome.DIFFERENT), VerifyMode.RECENT, Ask),
        (standing(VerifyOutcome.REFUSED), VerifyMode.RECENT, Ask),
        (standing(), VerifyMode.ALWAYS, Ask),
        (Standing(request=asked()), VerifyMode.RECENT, Wait),
        (Standing(request=asked()), VerifyMode.ALWAYS, Wait),
        (Standing(request=asked(ago_ms=UNDER_WAY_MS_MAX + 1)), VerifyMode.RECENT, Ask),
        (Standing(request=asked("v-new"), result=found()), VerifyMode.RECENT, Satisfied),
        (standing(verify_id="v-f-1"), VerifyMode.ALWAYS, Satisfied),
        (standing(VerifyOutcome.DIFFERENT, verify_id="v-f-1"), VerifyMode.RECENT, Unfit),
        (standing(VerifyOutcome.REFUSED, verify_id="v-f-1"), VerifyMode.RECENT, Unfit),
    ],
)
def test_a_failover_goes_on_only_on_a_copy_known_to_be_equal(
    known: Standing, mode: VerifyMode, expected: type
) -> None:
    """Equal in the present epoch and young enough; else it is compared, or what runs awaited."""
    assert own_id(record()) == "v-f-1"
    assert verdict(known, mode) is expected


def test_the_age_of_a_result_does_not_follow_the_clock_of_the_region_that_found_it() -> None:
    """A region whose clock is an hour ahead cannot make an old result look new."""
    known = standing(ago_ms=HOUR + 60_000)
    assert known.result is not None
    ahead = attrs.evolve(known, result=attrs.evolve(known.result, ended_ms=NOW + HOUR))

    assert verdict(ahead) is Ask


def test_a_difference_says_how_many_keys_and_what_to_do() -> None:
    """An operator reads it in the record of the refused failover."""
    judged = judge(record(), standing(VerifyOutcome.DIFFERENT, verify_id="v-f-1"), now_ms=NOW)

    assert isinstance(judged, Unfit)
    assert "2 keys of the copy at eu-west differ" in judged.detail
    assert "--repair" in judged.detail
    assert "--waive verify" in judged.detail


def test_a_record_from_before_there_was_a_mode_loads_and_is_verified() -> None:
    """Its policy is completed by the defaults; nothing else in it changes its meaning."""
    raw = encode(record()).replace(
        b',"verify":"recent","verify_age_ms_max":3600000,"verify_every_ms":21600000'
        b',"verify_ms_max":600000', b"",
    )  # fmt: skip
    assert b"verify" not in raw

    assert decode(Failover, raw).policy == GroupPolicy()


# --- by schedule --------------------------------------------------------------------------------


def copy(known: Standing | None = None, **changes) -> Copy:
    made = Copy(
        group=ORDERS, target=B, source=A, epoch=Epoch(3), every_ms=6 * HOUR, seen_ms=NOW,
        standing=known or Standing(),
    )  # fmt: skip
    return attrs.evolve(made, **changes)


def test_a_copy_is_compared_about_as_often_as_policy_says() -> None:
    """A tenth sooner or later, always the same for one copy, so that copies are spread."""
    waits = {
        each.due_ms(now_ms=NOW) - (NOW - 60_000)
        for each in (copy(standing(), group=GroupName(f"g-{n}")) for n in range(50))
    }

    assert all(0.9 * 6 * HOUR <= wait <= 1.1 * 6 * HOUR for wait in waits)
    assert len(waits) > 40


@pytest.mark.parametrize("known", [Standing(), standing(epoch=2)], ids=["never", "earlier-epoch"])
def test_a_copy_that_follows_anew_is_compared_soon(known: Standing) -> None:
    """After a failover the old active cluster's copy has never been compared in this epoch."""
    assert NOW <= copy(known).due_ms(now_ms=NOW) <= NOW + FIRST_MS_MAX


def test_a_comparison_that_could_not_be_made_is_tried_again_soon() -> None:
    """Not only after hours; and not at once, over and over."""
    due_ms = copy(standing(VerifyOutcome.REFUSED)).due_ms(now_ms=NOW) - (NOW - 60_000)

    assert FIRST_MS_MAX // 2 <= due_ms <= FIRST_MS_MAX


def test_a_request_from_a_clock_that_was_wrong_does_not_stop_the_schedule() -> None:
    """A coordinator whose clock was a year ahead must not have asked for the last time."""
    assert copy(standing(ago_ms=-365 * 24 * HOUR)).due_ms(now_ms=NOW) == NOW


def test_a_cluster_compares_one_copy_at_a_time() -> None:
    """So the cost is bounded, however many groups are due; other clusters do not wait for it."""
    late = standing(ago_ms=20 * HOUR)
    copies = [copy(late, group=GroupName(f"g-{n}"), target=t) for n in range(9) for t in (B, C)]

    chosen = due(copies, now_ms=NOW)
    assert [each.target for each in chosen] == [C, B]

    running = [*copies, copy(Standing(request=asked()), group=GroupName("busy"))]
    assert [each.target for each in due(running, now_ms=NOW)] == [C]


def test_policy_may_ask_for_no_schedule() -> None:
    """`verify_every_ms: 0`."""
    assert due([copy(standing(ago_ms=20 * HOUR), every_ms=0)], now_ms=NOW) == []
