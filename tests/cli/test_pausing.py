"""Claims about pausing and resuming from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi

PAUSED = {"paused": True, "by": "operator/alice", "reason": "freeze", "since_ms": 1_780_000_000_000}
GOING = {"paused": False, "by": None, "reason": "", "since_ms": None}


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (("orders",), {"reason": "", "group": "orders"}),
        (("--stream", "a:b"), {"reason": "", "source": "a", "target": "b"}),
        (("--reason", "why"), {"reason": "why"}),
    ],
    ids=["group", "stream", "all"],
)
@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_is_to_stand_still_is_said_exactly(
    mesh: Mesh, operator_env: FakeApi, verb: str, arguments: tuple[str, ...], sent: dict[str, Any]
) -> None:
    route = f"POST /v1/replication/{verb}"
    pause = {"what": "group orders", "by": "operator/alice"}
    operator_env.on(route, {"changed": True, "pauses": [pause]})

    ran = mesh("replication", verb, *arguments)

    assert (ran.code, ran.out) == (0, "paused now: group orders (by operator/alice)\n")
    assert operator_env.asked(route) == [sent]


def test_a_stream_is_named_by_both_its_ends(mesh: Mesh, operator_env: FakeApi) -> None:
    ran = mesh("replication", "pause", "--stream", "a")

    assert ran.code == 2
    assert "expected SOURCE:TARGET" in ran.err
    assert operator_env.requests == []


def test_automation_is_paused_and_goes_on(mesh: Mesh, operator_env: FakeApi) -> None:
    """Repeating it says that nothing was changed."""
    operator_env.on("POST /v1/automation/pause", {"changed": True, "automation": PAUSED})
    operator_env.on("POST /v1/automation/resume", {"changed": False, "automation": GOING})

    assert mesh("pause", "--reason", "freeze").out == (
        "automation is paused by operator/alice since 2026-05-28T20:26:40Z: freeze (mesh resume)\n"
    )
    assert mesh("resume").out == "no change: automation is not paused\n"
    assert operator_env.asked("POST /v1/automation/pause") == [{"reason": "freeze"}]


def test_every_status_says_that_automation_is_paused(mesh: Mesh, operator_env: FakeApi) -> None:
    """On the standard error, so that what scripts read stays what it was."""
    bodies: dict[str, dict[str, Any]] = {
        "clusters list": {"clusters": [samples.CLUSTER]},
        "groups list": {"groups": [samples.GROUP]},
        "groups show": samples.GROUP,
        "replication status": {"streams": [samples.stream()]},
        "failovers list": {"failovers": []},
    }
    paths = {"groups show": "/v1/groups/orders", "replication status": "/v1/replication"}
    for command, body in bodies.items():
        path = paths.get(command, f"/v1/{command.split()[0]}")
        operator_env.on(f"GET {path}", body | {"automation": PAUSED})
        ran = mesh(*command.split(), *(("orders",) if command == "groups show" else ()))
        assert ran.code == 0
        assert "automation is paused by operator/alice" in ran.err
        assert "automation is paused" not in ran.out


def copy_at(cluster: str, *keys: str, problem: str = "") -> dict[str, object]:
    latest = [{"key": key, "revision": 70 + n, "deleted": n > 0} for n, key in enumerate(keys)]
    count = None if problem else len(keys)
    return {"cluster": cluster, "count": count, "latest": latest, "problem": problem}


def test_foreign_writes_are_listed(mesh: Mesh, operator_env: FakeApi) -> None:
    """By key, with what was done to it and where; a copy without any says that, too."""
    copies = [copy_at("eu-west", "/orders/1", "/orders/2"), copy_at("ap-south")]
    operator_env.on("GET /v1/groups/orders/foreign", {"group": "orders", "clusters": copies})

    ran = mesh("replication", "foreign", "orders")
    as_json = mesh("replication", "foreign", "orders", "--cluster", "eu-west", "-o", "json")

    assert ran.code == 0
    rows = [line.split() for line in ran.out.splitlines()[1:]]
    assert ["eu-west", "2", "/orders/2", "delete", "71"] in rows
    assert ["ap-south", "0", "-", "-", "-"] in rows
    assert json.loads(as_json.out)["clusters"] == copies
    assert operator_env.queries[-1] == {"cluster": "eu-west"}


def test_a_copy_that_nobody_could_look_at_fails_the_listing(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    """Promise 7: an empty list must never mean that nobody could look."""
    clusters = [copy_at("eu-west", problem="eu-west does not answer")]
    operator_env.on("GET /v1/groups/orders/foreign", {"group": "orders", "clusters": clusters})

    ran = mesh("replication", "foreign", "orders")

    assert ran.code == 1
    assert "unknown" in ran.out
    assert "unknown what was written at eu-west: eu-west does not answer" in ran.err
