"""An emergency on the command line: what is asked, shown, accepted, and how it ends."""

from __future__ import annotations

import io
from typing import Any

import pytest

from cli import emergency
from meshkit.errors import InvalidInput
from tests.cli import samples
from tests.cli.conftest import Mesh, Types
from tests.cli.fake_api import FakeApi, Reply
from tests.cli.test_exit_codes import EVENTS, FAILOVERS, transition

ASKED = (
    "clusters", "promote", "eu-west", "--group", "orders", "--emergency",
    "--reason", "us-east is down",
)  # fmt: skip


def loss(**changes: Any) -> dict[str, Any]:
    target = {
        "cluster": "eu-west",
        "certain": 800,
        "certain_of": "us-east",
        "certain_epoch": 3,
        "is_none": False,
        "window_ms": 4_200,
        "records_known": 7,
        "records_estimated": 12,
    }
    stated = {
        "source": "us-east",
        "fence": "lease-expired",
        "target": target,
        "others": [],
        "stated_at_ms": 0,
        "seconds": 5,
        "text": "certain: eu-west has everything of us-east up to 800; the rest is lost",
        "most_advanced": "eu-west",
        "objections": ["up to 7 known records may be lost, and nothing was said of that"],
    }
    return {**stated, **changes}


def preview() -> dict[str, Any]:
    body = samples.preview()
    body["preview"] |= {"kind": "emergency", "loss": loss(), "supersedes": None}
    return body


def state(phase: str, *, waits: bool = False) -> dict[str, Any]:
    told = {
        "fence": "lease-expired",
        "no_fence_wait": False,
        "after_planned": "",
        "supersedes": None,
        "accepted": None,
        "accepted_by": "",
        "awaits_consent": waits,
        "loss": loss(),
    }
    return samples.failover(phase, done=5, emergency=told)


def runs(api: FakeApi, *states: dict[str, Any]) -> None:
    begun = {"changed": True, "failover": samples.failover()}
    api.on(FAILOVERS, Reply(preview()), Reply(begun, status=202))
    events = [*(transition(each) for each in states), ("end", {"phase": states[-1]["phase"]})]
    api.on(EVENTS, Reply(None, events=events))
    api.on("GET /v1/failovers/f-1", states[-1])
    api.on("GET /v1/groups/orders", samples.GROUP)


def test_it_says_in_plain_words_what_it_may_lose(mesh: Mesh, operator_env: FakeApi) -> None:
    runs(operator_env, state("succeeded"))

    ran = mesh(*ASKED, "--yes", "--accept-loss", "records=10,seconds=5")

    assert ran.code == 0
    told = " ".join(ran.err.split())
    assert "This moves writes without the help of us-east" in told
    assert "everything of us-east up to 800" in told
    assert "emergency; fence: lease-expired" in told
    begun = operator_env.asked(FAILOVERS)[-1]
    assert begun["kind"] == "emergency"
    assert begun["accept_loss"] == {"records": 10, "seconds": 5}


def test_10_without_consent_it_waits_and_says_how_to_give_it(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    runs(operator_env, state("advancing", waits=True))

    ran = mesh(*ASKED, "--yes")

    assert ran.code == 10
    assert "waits for consent" in ran.err
    assert "up to 7 known records may be lost" in ran.err
    assert "mesh failovers approve f-1 --accept-loss records=7,seconds=5" in ran.err
    assert "mesh failovers abort f-1" in ran.err


def test_what_it_may_lose_is_shown_with_who_accepted_it(mesh: Mesh, operator_env: FakeApi) -> None:
    """Every way to ask what was lost gives the same words."""
    told = state("advancing", waits=True)
    told["emergency"] |= {"accepted": {"records": 5, "seconds": 9, "unknown": False}}
    operator_env.on("GET /v1/failovers/f-1", told)

    ran = mesh("failovers", "show", "f-1")

    assert loss()["text"] in ran.out
    assert "lease-expired" in ran.out
    assert "records 5, seconds 9 by the request" in ran.out
    assert "consent: up to 7 known records may be lost" in ran.out


def test_consent_is_given_within_a_bound(mesh: Mesh, operator_env: FakeApi) -> None:
    path = "POST /v1/failovers/f-1/consent"
    operator_env.on(path, {"changed": True, "failover": state("succeeded")})
    operator_env.on("GET /v1/groups/orders", samples.GROUP)

    ran = mesh("failovers", "approve", "f-1", "--accept-loss", "unknown")

    assert ran.code == 0
    assert operator_env.asked(path) == [{"accept_loss": {"unknown": True}}]


def test_that_it_once_waited_for_consent_is_no_end_after_consent_was_given(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    """Whoever follows is told all that happened, from the beginning: also what is over by now."""
    going_on = state("advancing")
    operator_env.on(
        "POST /v1/failovers/f-1/consent", Reply({"changed": True, "failover": going_on})
    )
    past = [state("advancing", waits=True), going_on, state("succeeded")]
    events = [*(transition(each) for each in past), ("end", {"phase": "succeeded"})]
    operator_env.on(EVENTS, Reply(None, events=events))
    operator_env.on("GET /v1/failovers/f-1", going_on, state("succeeded"))
    operator_env.on("GET /v1/groups/orders", samples.GROUP)

    ran = mesh("failovers", "approve", "f-1", "--accept-loss", "records=7,seconds=5")

    assert ran.code == 0
    assert "waits for consent" not in ran.err


def test_a_dry_run_shows_the_loss_and_begins_nothing(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(FAILOVERS, Reply(preview()))

    ran = mesh(*ASKED, "--dry-run")

    assert ran.code == 0
    assert "everything of us-east up to 800" in " ".join(ran.out.split())
    assert [body["dry_run"] for body in operator_env.asked(FAILOVERS)] == [True]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--emergency",), "--reason"),
        (("--accept-loss", "unknown"), "--emergency"),
        (("--emergency", "--reason", "x", "--accept-loss", "much"), "no bound"),
    ],
)
def test_2_what_is_missing_or_too_much_is_named(
    mesh: Mesh, operator_env: FakeApi, flags: tuple[str, ...], words: str
) -> None:
    ran = mesh("clusters", "promote", "eu-west", "--group", "orders", "--yes", *flags)

    assert ran.code == 2
    assert words in ran.err


# --- planned first ------------------------------------------------------------------------------

PLANNED_FIRST = (*ASKED[:5], "--planned-then-emergency", *ASKED[6:])
EMERGENCY_STEPS = (
    *("assess", "approve", "fence", "take_in", "freeze"),
    *("state_loss", "consent", "pivot", "open", "settle"),
)


def planned_first(*failed: str) -> dict[str, Any]:
    body = preview()
    shown = body["preview"]
    checks = [samples.check(name, ok=False) for name in failed] or shown["checks"]
    shown["planned"] = {**samples.preview(*checks)["preview"]}
    shown["steps"] = list(EMERGENCY_STEPS)
    shown["checks"] = [samples.check("target_in_step", detail="the copy is complete")]
    return body


def gone_on(phase: str, *, waits: bool = False) -> dict[str, Any]:
    """As an emergency, after its planned part had drained the source."""
    told = state(phase, waits=waits)
    why = "converge failed: the pause budget of 600 ms ran out"
    planned = [
        {**step, "status": "failed" if step["step"] == "converge" else "done"}
        for step in samples.failover(done=6)["steps"][:6]
        if step["step"] not in EMERGENCY_STEPS
    ]
    steps = [
        {
            "step": name,
            "status": "done" if phase == "succeeded" or number < 6 else "pending",
            "detail": "",
            "started_ms": 5_000 + number,
            "ended_ms": 5_001 + number,
        }
        for number, name in enumerate(EMERGENCY_STEPS)
    ]
    return told | {
        "kind": "emergency",
        "plan": "emergency/1",
        "planned_first": True,
        "emergency": told["emergency"] | {"after_planned": why},
        "steps": [*steps, *planned],
    }


def test_planned_first_is_shown_as_what_it_is(mesh: Mesh, operator_env: FakeApi) -> None:
    """The emergency is the second part, under its conditions; it used to be all that was shown."""
    operator_env.on(FAILOVERS, Reply(planned_first()))

    ran = mesh(*PLANNED_FIRST, "--dry-run")

    assert ran.code == 0
    told = ran.out
    first, second = told.index("1. planned"), told.index("2. only if that fails before its pivot")
    assert told.index("Planned first") < first < told.index("converge") < second
    assert "pauses writes 10.0s at most" in told
    assert first < told.index("12 ms behind") < second
    assert second < told.index("take_in")
    assert second < told.index("This moves writes without the help of us-east")
    assert second < told.index("not enough: up to 7 known records may be lost")
    (asked,) = operator_env.asked(FAILOVERS)
    assert (asked["kind"], asked["planned_first"]) == ("emergency", True)


def test_planned_first_says_if_the_planned_part_cannot_begin(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    operator_env.on(FAILOVERS, Reply(planned_first("source_reports", "lag")))

    ran = mesh(*PLANNED_FIRST, "--dry-run")

    assert "cannot begin now (source_reports, lag), so the emergency begins at once" in ran.out


def test_planned_first_that_succeeds_carries_no_emergency_label(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    runs(operator_env, samples.failover("succeeded", done=10, emergency=None, planned_first=True))
    operator_env.replies[FAILOVERS][0] = Reply(planned_first())

    ran = mesh(*PLANNED_FIRST, "--yes")

    assert ran.code == 0
    after = ran.err[ran.err.index("1/10 check") :]
    assert "planned: no emergency was needed" in after
    assert "EMERGENCY" not in after


def test_planned_first_that_goes_on_says_so_and_tells_the_steps_of_both_plans(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    planned = samples.failover(done=5, emergency=None, planned_first=True)
    runs(operator_env, planned, gone_on("succeeded"))
    operator_env.replies[FAILOVERS][0] = Reply(planned_first())

    ran = mesh(*PLANNED_FIRST, "--yes", "--accept-loss", "unknown")

    assert ran.code == 0
    after = ran.err[ran.err.index("1/10 check") :]
    assert "given up before its pivot: converge failed: the pause budget of 600 ms ran out" in after
    assert "it goes on as an EMERGENCY" in after
    assert after.index("5/10 drain") < after.index("EMERGENCY") < after.index("3/10 fence")
    assert after.count(" approve ") == 2
    assert "plan converge" in after
    assert "emergency; fence: lease-expired; after a planned failover was tried" in after


def test_10_planned_first_without_consent_waits_as_an_emergency(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    runs(operator_env, gone_on("advancing", waits=True))
    operator_env.replies[FAILOVERS][0] = Reply(planned_first())

    ran = mesh(*PLANNED_FIRST, "--yes")

    assert ran.code == 10
    assert "it goes on as an EMERGENCY" in ran.err
    assert "mesh failovers approve f-1 --accept-loss records=7,seconds=5" in ran.err


# --- typed confirmation -------------------------------------------------------------------------


def test_an_emergency_is_confirmed_by_typing_the_groups_name(
    mesh: Mesh, operator_env: FakeApi, types: Types
) -> None:
    runs(operator_env, state("succeeded"))
    types("orders")

    ran = mesh(*ASKED, "--accept-loss", "records=10,seconds=5")

    assert ran.code == 0
    assert "Type orders to go on" in ran.err
    assert [body["dry_run"] for body in operator_env.asked(FAILOVERS)] == [True, False]


@pytest.mark.parametrize("word", ["y", "yes", "eu-west", "Orders", ""])
def test_3_any_other_word_changes_nothing(
    mesh: Mesh, operator_env: FakeApi, types: Types, word: str
) -> None:
    """What is typed by habit must not move writes without their cluster's help."""
    runs(operator_env, state("succeeded"))
    types(word)

    ran = mesh(*ASKED, "--accept-loss", "unknown")

    assert ran.code == 3
    assert "nothing was changed" in ran.err
    assert [body["dry_run"] for body in operator_env.asked(FAILOVERS)] == [True]


def test_2_without_a_terminal_and_without_yes_nobody_is_asked(
    mesh: Mesh, operator_env: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("orders\n"))
    runs(operator_env, state("succeeded"))

    ran = mesh(*ASKED)

    assert ran.code == 2
    assert "--yes" in ran.err
    assert [body["dry_run"] for body in operator_env.asked(FAILOVERS)] == [True]


CONSENT = "POST /v1/failovers/f-1/consent"


def test_on_a_terminal_consent_is_asked_for_and_bounds_exactly_what_was_shown(
    mesh: Mesh, operator_env: FakeApi, types: Types
) -> None:
    runs(operator_env, state("advancing", waits=True))
    done = state("succeeded")
    operator_env.on(CONSENT, {"changed": True, "failover": done})
    types("orders", "orders")

    ran = mesh(*ASKED)

    assert ran.code == 0
    assert loss()["text"] in ran.err
    assert "Type orders to accept that loss" in ran.err
    assert operator_env.asked(CONSENT) == [{"accept_loss": {"records": 7, "seconds": 5}}]


@pytest.mark.parametrize("word", ["y", "us-east", "f-1", ""])
def test_10_a_loss_that_is_not_accepted_by_its_groups_name_moves_nothing(
    mesh: Mesh, operator_env: FakeApi, types: Types, word: str
) -> None:
    runs(operator_env, state("advancing", waits=True))
    types("orders", word)

    ran = mesh(*ASKED)

    assert ran.code == 10
    assert operator_env.asked(CONSENT) == []
    assert "mesh failovers abort f-1" in ran.err
    assert "mesh failovers approve f-1 --accept-loss records=7,seconds=5" in ran.err


def test_a_bound_is_read_as_it_is_shown() -> None:
    assert emergency.bound_of("seconds=5,records=7") == {"records": 7, "seconds": 5}
    assert emergency.bound_of(emergency.shown(loss())) == {"records": 7, "seconds": 5}
    assert emergency.shown(loss(fence="unknown")) == "unknown"
    with pytest.raises(InvalidInput, match="no bound"):
        emergency.bound_of("records=-1")
