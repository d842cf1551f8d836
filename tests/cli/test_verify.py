"""Claims about `mesh replication verify`: what it asks for, shows and exits with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi, Reply

PATH = "/v1/groups/orders/verify"
VERIFY = ("replication", "verify", "orders")


def verification(outcome: str | None, **more: Any) -> dict[str, Any]:
    result = {
        "id": "v-1",
        "outcome": outcome,
        "source": "us-east",
        "source_sequence": 991,
        "target_revision": 402,
        "counts": {"source_keys": 10, "only_source": 1, "only_target": 1, "different": 0},
        "differing": 2 if outcome in ("different", "repaired") else 0,
        "where": "/mesh/v1/verify/orders" if outcome == "different" else "",
        "reason": "",
        "began_ms": 1000,
        "ended_ms": 1120,
    }
    return {
        "id": "v-1",
        "group": "orders",
        "target": "eu-west",
        "repair": False,
        "status": "done" if outcome else "running",
        "result": result if outcome else None,
        **more,
    }


def answers(api: FakeApi, *outcomes: str | None) -> None:
    """Answer the request, and then each poll."""
    bodies = [
        {"changed": True, "group": "orders", "verifications": [verification(outcome)]}
        for outcome in outcomes
    ]
    api.on(f"POST {PATH}", Reply(bodies[0], status=202))
    api.on(f"GET {PATH}", *(Reply(body) for body in bodies))


@pytest.mark.parametrize(
    ("outcome", "code"), [("equal", 0), ("repaired", 0), ("different", 1), ("refused", 3)]
)
def test_the_outcome_is_the_exit_code(
    mesh: Mesh, operator_env: FakeApi, outcome: str, code: int
) -> None:
    answers(operator_env, None, outcome)
    ran = mesh(*VERIFY, "--target", "eu-west")
    assert ran.code == code
    assert outcome in ran.out
    (asked,) = operator_env.asked(f"POST {PATH}")
    assert (asked["target"], asked["repair"]) == ("eu-west", False)


def test_5_what_is_still_compared_when_time_is_up(mesh: Mesh, operator_env: FakeApi) -> None:
    answers(operator_env, None)
    ran = mesh(*VERIFY, "--timeout", "300ms")
    assert ran.code == 5
    assert "running" in ran.out


def test_a_difference_says_where_to_look_and_what_to_do(mesh: Mesh, operator_env: FakeApi) -> None:
    answers(operator_env, "different")
    ran = mesh(*VERIFY)
    assert "/mesh/v1/verify/orders in eu-west" in ran.out
    assert "mesh replication verify orders --target eu-west --repair" in ran.err


def test_a_repair_asks_first(mesh: Mesh, operator_env: FakeApi) -> None:
    answers(operator_env, "repaired")
    assert mesh(*VERIFY, "--repair").code == 2
    assert operator_env.asked(f"POST {PATH}") == []
    assert mesh(*VERIFY, "--repair", "--yes").code == 0
    assert operator_env.asked(f"POST {PATH}")[0]["repair"] is True


def test_a_request_that_was_replaced_is_not_called_equal(mesh: Mesh, operator_env: FakeApi) -> None:
    answers(operator_env, None)
    newer = {"group": "orders", "verifications": [verification("equal", id="v-2")]}
    operator_env.on(f"GET {PATH}", newer)
    ran = mesh(*VERIFY)
    assert ran.code == 3
    assert "a newer request took its place" in ran.out


def test_status_shows_when_a_copy_was_compared_last(mesh: Mesh, operator_env: FakeApi) -> None:
    results = [
        {"group": "orders", "outcome": "different", "differing": 2, "ended_ms": 1780000000000},
        {"group": "users", "outcome": "equal", "differing": 0, "ended_ms": 1780000000000},
    ]
    stream = samples.stream(last_verify=results)
    operator_env.on("GET /v1/replication", {"streams": [stream]})
    shown = mesh("replication", "status").out
    assert "orders 2 differ 2026-05-28" in shown
    assert "users equal 2026-05-28" in shown
