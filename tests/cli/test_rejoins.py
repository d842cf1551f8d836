"""Rejoins and failback on the command line: what is asked, what is shown, how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli import samples
from tests.cli.conftest import Mesh, Types
from tests.cli.fake_api import FakeApi, Reply, refusal
from tests.cli.test_exit_codes import run_of

SHOWN = "GET /v1/rejoins/r-1"
BEGIN = "POST /v1/clusters/us-east/rejoin"
FAILOVERS = "POST /v1/groups/orders/failovers"
FAILBACK = ("clusters", "failback", "us-east", "--group", "orders", "--yes")


def rejoin(phase: str, step: str = "stand_by", **more: Any) -> dict[str, Any]:
    code = {"succeeded": 0, "abandoned": 6}.get(phase, 5)
    return {
        "id": "r-1",
        "group": "orders",
        "cluster": "us-east",
        "active": "eu-west",
        "epoch": 4,
        "phase": phase,
        "exit_code": code,
        "step": step,
        "step_number": 6,
        "steps_total": 6,
        "requested_by": "coordinator",
        "reason": "it came back",
        "began_ms": 1_000,
        "ended_ms": None,
        "cut": 991,
        "lineage": {"parent": "us-east", "sequence": 960},
        "diverged": {"only here": 3, "total": 3},
        "completeness": "complete",
        "needs_approval": False,
        "approved_by": "",
        "problem": None,
        "steps": [{"step": "fence", "status": "done", "detail": ""}],
        **more,
    }


WAITS = rejoin(
    "held",
    "approve",
    completeness="state-only",
    needs_approval=True,
    problem={"happened": "not every change is known", "next": "mesh rejoins approve r-1"},
)


def begun(result: dict[str, Any] | None, message: str = "begun") -> dict[str, Any]:
    return {
        "cluster": "us-east",
        "results": [{"group": "orders", "message": message, "rejoin": result}],
    }


def test_rejoins_are_listed_with_what_they_set_aside(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/rejoins", {"rejoins": [rejoin("succeeded")]})

    ran = mesh("rejoins", "list", "--group", "orders")

    assert ran.code == 0
    assert "3 changes (3 only here), complete" in ran.out
    assert operator_env.queries == [{"group": "orders"}]


def test_one_is_shown_with_its_steps_and_what_its_successor_stands_on(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    operator_env.on(SHOWN, rejoin("succeeded"))

    ran = mesh("rejoins", "show", "r-1")

    assert ran.code == 0
    assert "us-east@960" in ran.out
    assert "fence" in ran.out


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (rejoin("succeeded"), 0),
        (rejoin("abandoned"), 6),
        (rejoin("held"), 5),
        (WAITS, 10),
    ],
)
def test_a_rejoin_that_is_begun_is_followed_and_says_by_its_code_how_it_ended(
    mesh: Mesh, operator_env: FakeApi, ended: dict[str, Any], code: int
) -> None:
    operator_env.on(BEGIN, begun(rejoin("advancing", "fence")))
    operator_env.on(SHOWN, rejoin("advancing", "quarantine"), ended)

    ran = mesh("clusters", "rejoin", "us-east", "--group", "orders", "--reason", "back")

    assert ran.code == code
    assert operator_env.asked(BEGIN) == [{"reason": "back", "group": "orders"}]


def test_there_may_be_nothing_to_do(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(BEGIN, begun(None, "nothing to do: it is a standby"))

    ran = mesh("clusters", "rejoin", "us-east")

    assert ran.code == 0
    assert "orders: nothing to do: it is a standby" in ran.err
    assert operator_env.asked(BEGIN) == [{"reason": ""}]


def test_an_approval_goes_on_with_it_and_follows(mesh: Mesh, operator_env: FakeApi) -> None:
    path = "POST /v1/rejoins/r-1/approve"
    operator_env.on(path, {"changed": True, "rejoin": rejoin("advancing", "reconcile")})
    operator_env.on(SHOWN, rejoin("succeeded", approved_by="operator/alice"))

    ran = mesh("rejoins", "approve", "r-1", "--reason", "the owners know")

    assert ran.code == 0
    assert operator_env.asked(path) == [{"reason": "the owners know"}]


def test_3_what_waits_for_an_approval_is_not_tried_again(mesh: Mesh, operator_env: FakeApi) -> None:
    said = refusal("refused", 409, 3, "rejoin r-1 waits for an approval, not for another attempt")
    operator_env.on("POST /v1/rejoins/r-1/resume", said)

    ran = mesh("rejoins", "resume", "r-1")

    assert ran.code == 3
    assert "waits for an approval" in ran.err


NEEDED = {
    "cluster": "us-east",
    "results": [{"group": "orders", "message": "would begin", "needed": True, "rejoin": None}],
}

# --- failback: a rejoin if it is needed, then a planned failover back ----------------------------


def comes_back(api: FakeApi, *, running: list[dict[str, Any]]) -> None:
    """Let us-east be a standby that may be failed back to."""
    run_of(api, samples.failover("succeeded", done=10))
    api.on("GET /v1/rejoins", {"rejoins": running})


def test_failback_follows_the_rejoin_that_runs_and_then_moves_writes(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    comes_back(operator_env, running=[rejoin("advancing")])
    operator_env.on(SHOWN, rejoin("succeeded"))

    ran = mesh(*FAILBACK, "-o", "json")

    assert ran.code == 0
    assert "part 1 of 2" in ran.err
    assert "part 2 of 2" in ran.err
    assert json.loads(ran.out)["phase"] == "succeeded", "one document for machines"
    assert operator_env.asked(FAILOVERS)[-1]["kind"] == "failback"
    assert operator_env.asked(FAILOVERS)[0]["target"] == "us-east"


def test_failback_shows_both_parts_then_begins_the_rejoin_that_is_needed(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    comes_back(operator_env, running=[])
    operator_env.on(BEGIN, NEEDED, begun(rejoin("advancing", "fence")))
    operator_env.on(SHOWN, rejoin("succeeded"))

    ran = mesh(*FAILBACK, "--reason", "home")

    assert ran.code == 0
    looked, asked = operator_env.asked(BEGIN)
    assert looked["dry_run"] is True
    assert asked == {"group": "orders", "reason": "home"}
    dry, real = operator_env.asked(FAILOVERS)
    assert (dry["dry_run"], real["dry_run"]) == (True, False)
    assert real["expect_epoch"] == samples.preview()["preview"]["epoch"]
    order = [(method, body.get("dry_run", False)) for method, _, body in acts(operator_env)]
    assert order == [("POST", True), ("POST", True), ("POST", False), ("POST", False)]


def acts(api: FakeApi) -> list[tuple[str, str, Any]]:
    return [request for request in api.requests if request[0] == "POST"]


def test_without_the_answer_neither_part_of_a_failback_begins(
    mesh: Mesh, operator_env: FakeApi, types: Types
) -> None:
    """It used to rejoin first and ask then."""
    comes_back(operator_env, running=[])
    operator_env.on(BEGIN, NEEDED, begun(rejoin("advancing", "fence")))
    types("n")

    ran = mesh(*FAILBACK[:-1])

    assert ran.code == 3
    assert "us-east has to rejoin orders first" in ran.err
    assert "part 2 of 2" in ran.err
    assert "nothing was changed" in ran.err
    assert [body["dry_run"] for _, _, body in acts(operator_env)] == [True, True]


def test_failback_of_a_standby_is_a_planned_failover_alone(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    comes_back(operator_env, running=[rejoin("succeeded")])
    operator_env.on(BEGIN, begun(None, "nothing to do"))

    ran = mesh(*FAILBACK)

    assert ran.code == 0
    assert "us-east needs no rejoin" in ran.err


def test_10_failback_moves_nothing_while_its_rejoin_waits_for_an_approval(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    comes_back(operator_env, running=[WAITS])
    operator_env.on(SHOWN, WAITS)

    ran = mesh(*FAILBACK, "-o", "json")

    assert ran.code == 10
    assert "part 2 was not begun: no writes were moved" in ran.err
    assert json.loads(ran.out)["rejoins"][0]["id"] == "r-1"
    assert operator_env.asked(FAILOVERS) == []


def test_3_failback_to_a_region_that_does_not_report_moves_nothing(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    comes_back(operator_env, running=[])
    operator_env.on(BEGIN, refusal("refused", 409, 3, "us-east does not report"))

    ran = mesh(*FAILBACK)

    assert ran.code == 3
    assert operator_env.asked(FAILOVERS) == []


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("needed", "us-east has to rejoin orders first"),
        ("standby", "us-east needs no rejoin (nothing to do)"),
    ],
)
def test_a_dry_run_of_failback_says_whether_it_rejoins_and_begins_neither_part(
    mesh: Mesh, operator_env: FakeApi, result: str, words: str
) -> None:
    comes_back(operator_env, running=[])
    operator_env.on(FAILOVERS, Reply(samples.preview()))
    operator_env.on(BEGIN, NEEDED if result == "needed" else begun(None, "nothing to do"))

    ran = mesh(*FAILBACK, "--dry-run", "-o", "json")

    assert ran.code == 0
    assert words in ran.err
    assert json.loads(ran.out)["preview"]["target"]
    assert [body["dry_run"] for body in operator_env.asked(BEGIN)] == [True]
    assert [body["dry_run"] for body in operator_env.asked(FAILOVERS)] == [True]


def test_failback_without_a_cluster_goes_to_the_one_that_was_active_before(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    comes_back(operator_env, running=[rejoin("advancing")])
    shown = samples.GROUP | {"lineage": {"parent": "us-east", "sequence": 960}}
    operator_env.on("GET /v1/groups/orders", shown)
    operator_env.on(SHOWN, rejoin("succeeded"))

    ran = mesh("clusters", "failback", "--group", "orders", "--yes")

    assert ran.code == 0
    assert operator_env.asked(FAILOVERS)[0]["target"] == "us-east"
