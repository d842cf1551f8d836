"""Claims about `mesh replication replay`: what it asks for, shows and exits with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi, Reply

PATH = "/v1/groups/orders/replay"


def body(outcome: str | None, **more: Any) -> dict[str, Any]:
    result = {
        "id": "p-1", "outcome": outcome, "source": "us-east", "start": 5, "through": 991,
        "records": 40, "duplicates": 40, "reason": "",
    }  # fmt: skip
    replay = {
        "id": "p-1", "group": "orders", "target": "eu-west", "start": 5,
        "status": "done" if outcome else "running", "result": result if outcome else None, **more,
    }  # fmt: skip
    return {"changed": True, "group": "orders", "replays": [replay]}


@pytest.mark.parametrize(("outcome", "code"), [("done", 0), ("refused", 3)])
def test_the_outcome_is_the_exit_code(
    mesh: Mesh, operator_env: FakeApi, outcome: str, code: int
) -> None:
    operator_env.on(f"POST {PATH}", Reply(body(None), status=202))
    operator_env.on(f"GET {PATH}", body(None), body(outcome))

    ran = mesh("replication", "replay", "orders", "--from", "5", "--target", "eu-west")

    assert ran.code == code
    assert "eu-west  us-east" in ran.out
    (sent,) = operator_env.asked(f"POST {PATH}")
    assert (sent["start"], sent["target"]) == (5, "eu-west")


def test_what_is_still_under_way_says_so(mesh: Mesh, operator_env: FakeApi) -> None:
    """Nothing is claimed that is not known."""
    operator_env.on(f"POST {PATH}", Reply(body(None), status=202))
    operator_env.on(f"GET {PATH}", body(None))

    ran = mesh("--timeout", "300ms", "replication", "replay", "orders", "--from", "5")

    assert ran.code == 5
    assert "running" in ran.out


def test_a_request_that_was_replaced_is_not_taken_for_its_successor(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    operator_env.on(f"POST {PATH}", Reply(body(None), status=202))
    operator_env.on(f"GET {PATH}", body("done", id="p-2"))

    ran = mesh("replication", "replay", "orders", "--from", "5")

    assert ran.code == 3
    assert "a newer request took its place" in ran.out
