"""Claims about `mesh clusters evacuate`: what it asks, shows and exits with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi, Reply

PATH = "/v1/clusters/us-east/evacuation"
EVACUATE = ("clusters", "evacuate", "us-east")


def row(group: str, outcome: str, *, reason: str = "") -> dict[str, Any]:
    return {
        "group": group,
        "target": "eu-west",
        "failover": f"f-{group}" if outcome == "begun" else None,
        "outcome": outcome,
        "reason": reason,
    }


def answer(*rows: dict[str, Any]) -> Reply:
    body = {
        "cluster": "us-east",
        "kind": "promote",
        "request_id": "r-1",
        "dry_run": False,
        "changed": any(r["outcome"] == "begun" for r in rows),
        "groups": list(rows),
    }
    return Reply(body, status=202)


def stands(group: str, *, moved: bool, under_way: bool = False, phase: str = "succeeded") -> Any:
    problem = None if moved or under_way else {"happened": "drain failed: no answer"}
    return {
        "group": group,
        "failover": f"f-{group}",
        "moved": moved,
        "under_way": under_way,
        "phase": phase,
        "problem": problem,
    }


def progress(*rows: dict[str, Any]) -> Reply:
    return Reply(
        {
            "cluster": "us-east",
            "request_id": "r-1",
            "under_way": sum(r["under_way"] for r in rows),
            "moved": sum(r["moved"] for r in rows),
            "groups": list(rows),
        }
    )


def test_all_groups_move_and_the_end_is_told(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(
        f"POST {PATH}",
        answer(row("orders", "would_move"), row("users", "would_move")),
        answer(row("orders", "begun"), row("users", "begun")),
    )
    operator_env.on(
        f"GET {PATH}",
        progress(stands("orders", moved=True), stands("users", moved=False, under_way=True)),
        progress(stands("orders", moved=True), stands("users", moved=True)),
    )

    ran = mesh(*EVACUATE, "--yes", "--reason", "maintenance")

    assert ran.code == 0
    assert "2 groups moved away from us-east" in ran.out
    dry, real = operator_env.asked(f"POST {PATH}")
    assert (dry["dry_run"], dry["reason"]) == (True, "maintenance")
    assert real["request_id"]


@pytest.mark.parametrize(
    ("refused", "last", "code"),
    [
        ([row("users", "refused", reason="lag: 3 s")], stands("orders", moved=True), 3),
        ([], stands("orders", moved=False, phase="rolled_back"), 8),
        ([], stands("orders", moved=False, under_way=True, phase="held"), 5),
    ],
    ids=["one refused", "one rolled back", "one still running"],
)
def test_what_did_not_move_decides_the_exit_code(
    mesh: Mesh, operator_env: FakeApi, refused: list[Any], last: Any, code: int
) -> None:
    begun = answer(row("orders", "begun"), *refused)
    operator_env.on(f"POST {PATH}", answer(row("orders", "would_move"), *refused), begun)
    operator_env.on(f"GET {PATH}", progress(last))

    ran = mesh(*EVACUATE, "--yes", "--timeout", "1s")

    assert ran.code == code


def test_a_dry_run_asks_for_nothing_and_says_who_cannot_move(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    rows = (row("orders", "would_move"), row("users", "refused", reason="lag: 3 s"))
    operator_env.on(f"POST {PATH}", answer(*rows))

    ran = mesh(*EVACUATE, "--dry-run")

    assert ran.code == 3
    assert "lag: 3 s" in ran.out
    assert [body["dry_run"] for body in operator_env.asked(f"POST {PATH}")] == [True]


def test_an_empty_cluster_needs_nothing(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(f"POST {PATH}", answer())

    ran = mesh(*EVACUATE, "--yes")

    assert ran.code == 0
    assert "no group is active at us-east" in ran.out


def test_an_emergency_says_what_may_be_lost(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(f"POST {PATH}", answer())

    mesh(*EVACUATE, "--emergency", "--reason", "lost", "--accept-loss", "records=5,seconds=9")

    (asked,) = operator_env.asked(f"POST {PATH}")
    assert asked["kind"] == "emergency"
    assert asked["accept_loss"] == {"records": 5, "seconds": 9}


def test_a_bound_that_cannot_be_read_is_refused(mesh: Mesh, operator_env: FakeApi) -> None:
    ran = mesh(*EVACUATE, "--emergency", "--reason", "lost", "--accept-loss", "much")

    assert ran.code == 2
    assert operator_env.requests == []
