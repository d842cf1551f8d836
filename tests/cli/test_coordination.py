"""Claims about `mesh coordination adopt`: it shows first, asks, and does only what was shown."""

from __future__ import annotations

from typing import Any

from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi

ROUTE = "POST /v1/coordination/adopt"


def plan(**changes: Any) -> dict[str, Any]:
    return {
        "changed": False,
        "number": 2,
        "plan": "f00d",
        "regions": [
            {"cluster": "eu-west", "answer": "waived", "detail": "nobody answers"},
            {"cluster": "us-east", "answer": "stopped", "detail": "its revision fell"},
        ],
        "groups": [
            {
                "group": "orders",
                "active": "us-east",
                "epoch": 1004,
                "was_active": "eu-west",
                "was_epoch": 2,
                "why": "us-east opened epoch 3, the greatest that fences prove",
            }
        ],
        "problems": [],
        "warnings": ["eu-west: nobody knows what its fences prove"],
        "waived": ["eu-west"],
        "wait_ms": 30_000,
        **changes,
    }


def test_what_stands_in_the_way_is_listed_and_nothing_is_asked_for(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    operator_env.on(ROUTE, plan(problems=["eu-west does not say what its fences prove"]))

    ran = mesh("coordination", "adopt", "--reason", "lost", "--yes")

    assert ran.code == 3
    assert "In the way: eu-west does not say" in ran.out
    assert [body["dry_run"] for body in operator_env.asked(ROUTE)] == [True]


def test_the_plan_that_was_shown_is_the_one_that_is_asked_for(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    operator_env.on(ROUTE, plan(), plan(changed=True))

    ran = mesh("coordination", "adopt", "--reason", "lost", "--waive", "eu-west", "--yes")

    assert ran.code == 0
    assert "Warning: eu-west: nobody knows" in ran.err
    assert "us-east" in ran.err
    assert "after 30 s" in ran.out
    shown, done = operator_env.asked(ROUTE)
    assert shown == {"reason": "lost", "waive": ["eu-west"], "dry_run": True}
    assert done == {"reason": "lost", "waive": ["eu-west"], "expect_plan": "f00d"}


def test_without_a_terminal_it_takes_yes(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(ROUTE, plan())

    ran = mesh("coordination", "adopt", "--reason", "lost")

    assert ran.code == 2
    assert "--yes" in ran.err
    assert len(operator_env.asked(ROUTE)) == 1
