"""An emergency on the command line: what is asked, shown, accepted, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from cli import emergency
from meshkit.errors import InvalidInput
from tests.cli import samples
from tests.cli.conftest import Mesh
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


def test_a_bound_is_read_as_it_is_shown() -> None:
    assert emergency.bound_of("seconds=5,records=7") == {"records": 7, "seconds": 5}
    assert emergency.bound_of(emergency.shown(loss())) == {"records": 7, "seconds": 5}
    assert emergency.shown(loss(fence="unknown")) == "unknown"
    with pytest.raises(InvalidInput, match="no bound"):
        emergency.bound_of("records=-1")
