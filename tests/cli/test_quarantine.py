"""`mesh quarantine`: what is asked, what is shown, and that nothing is lost by a slip."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi, Reply

PATH = "/v1/groups/orders/quarantine"
ID = "us-east.3.0000000000000991-1f0c5d7e8a9b0c1d2e3f4a5b"


def value(raw: bytes, *, inline: bool = True) -> dict[str, Any]:
    text = base64.b64encode(raw).decode()
    return {"bytes": len(raw), "sha256": "aa", "base64": text if inline else None}


def entry(**more: Any) -> dict[str, Any]:
    return {
        "id": ID, "cluster": "us-east", "group": "orders", "epoch": 3, "sequence": 991,
        "key": "/orders/1", "key_base64": "L29yZGVycy8x", "change": "put",
        "class": "conflicting", "origin": "tail", "completeness": "complete", "newest": True,
        "here": value(b"ours"), "there": value(b"theirs"), "there_cluster": "eu-west",
        "there_sequence": 702, "parent_sequence": 988, "at_ms": 1, "why": "",
        "replayed_ms": None, "replayed_by": "",
    } | more  # fmt: skip


def page(*entries: dict[str, Any], following: str | None = None, problem: str = "") -> Reply:
    of_cluster = {"cluster": "us-east", "entries": list(entries), "next": following}
    return Reply({"group": "orders", "clusters": [of_cluster | {"problem": problem}]})


def test_a_list_follows_every_page(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(f"GET {PATH}", page(entry(), following="ab"), page(entry(key="/orders/2")))

    ran = mesh("quarantine", "list", "orders", "-o", "json")

    assert ran.code == 0
    assert [e["key"] for e in json.loads(ran.out)["entries"]] == ["/orders/1", "/orders/2"]
    assert operator_env.queries[-1] == {"cluster": "us-east", "after": "ab"}


def test_a_cluster_that_does_not_answer_fails_the_command(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    """Promise 7: an empty list must never mean that nobody could look."""
    operator_env.on(f"GET {PATH}", page(problem="us-east does not answer"))

    ran = mesh("quarantine", "list", "orders")

    assert ran.code == 1
    assert "unknown what us-east keeps" in ran.err


def test_an_export_is_one_whole_entry_a_line(mesh: Mesh, operator_env: FakeApi) -> None:
    large = entry(here=value(b"large", inline=False))
    operator_env.on(f"GET {PATH}", page(entry(), large))
    operator_env.on(f"GET {PATH}/{ID}", entry(here=value(b"large")))

    ran = mesh("quarantine", "export", "orders")

    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [base64.b64decode(e["here"]["base64"]) for e in lines] == [b"ours", b"large"]


@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_nothing_is_asked_for_without_saying_which_entries(
    mesh: Mesh, operator_env: FakeApi, verb: str
) -> None:
    for which in ([], ["--all"], [ID, "--all", "--cluster", "us-east"]):
        ran = mesh("quarantine", verb, "orders", *which, "--reason", "r", "--yes")
        assert ran.code == 2
    assert not operator_env.asked(f"POST {PATH}/{verb}")


def test_discarding_takes_a_reason_and_a_confirmation(mesh: Mesh, operator_env: FakeApi) -> None:
    without_reason = mesh("quarantine", "discard", "orders", ID, "--yes")
    without_terminal = mesh("quarantine", "discard", "orders", ID, "--reason", "r")

    assert (without_reason.code, without_terminal.code) == (2, 2)
    assert not operator_env.asked(f"POST {PATH}/discard")


def test_everything_is_discarded_page_by_page(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(
        f"POST {PATH}/discard", {"discarded": 100, "next": "ab"}, {"discarded": 5, "next": None}
    )

    ran = mesh(
        "quarantine", "discard", "orders", "--all", "--cluster", "us-east",
        "--reason", "agreed", "--yes", "-o", "json",
    )  # fmt: skip

    assert (ran.code, json.loads(ran.out)) == (0, {"discarded": 105})
    assert [body.get("after") for body in operator_env.asked(f"POST {PATH}/discard")] == [
        None,
        "ab",
    ]


def test_a_replay_that_was_refused_for_some_key_is_not_done(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    result = {"id": ID, "key": "/orders/1", "outcome": "refused", "reason": "has another value"}
    operator_env.on(f"POST {PATH}/replay", {"results": [result], "next": None})

    ran = mesh("quarantine", "replay", "orders", ID, "--yes")

    assert ran.code == 3
    assert "has another value" in ran.out
