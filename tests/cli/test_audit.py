"""Claims about `mesh audit`: pages, the tip, and what was changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi


def entry(number: int) -> dict[str, Any]:
    return {
        "n": number,
        "prev_hash": f"h{number - 1}" if number > 1 else "",
        "hash": f"h{number}",
        "at_ms": 1_780_000_000_000 + number,
        "actor": "operator/alice",
        "action": "failover.began",
        "facts": {"failover": f"f-{number}"},
    }


def pages(*numbers: list[int]) -> list[dict[str, Any]]:
    return [{"group": "orders", "entries": [entry(n) for n in page]} for page in numbers]


def test_entries_are_listed_from_all_pages_and_the_newest_are_kept(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    operator_env.on("GET /v1/audit/orders", *pages([1, 2], [3], []))

    ran = mesh("audit", "list", "--group", "orders", "--limit", "2", "-o", "json")

    assert [each["n"] for each in json.loads(ran.out)["entries"]] == [2, 3]
    assert [query["after"] for query in operator_env.queries] == ["0", "2", "3"]


def test_the_table_says_who_did_what(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/audit/_mesh", *pages([1], []))

    assert "operator/alice  failover.began  failover=f-1" in mesh("audit", "list").out


def test_a_broken_chain_is_a_failure(mesh: Mesh, operator_env: FakeApi) -> None:
    verdict = {"group": "_mesh", "ok": True, "entries": 7, "tip_hash": "h7", "problems": []}
    operator_env.on("GET /v1/audit/_mesh/verify", verdict)
    ran = mesh("audit", "verify")
    assert (ran.code, ran.out) == (0, "whole: 7 entries, tip h7\n")

    broken = verdict | {"ok": False, "problems": ["entry 3 is missing: 4 follows 2"]}
    operator_env.on("GET /v1/audit/_mesh/verify", broken)
    ran = mesh("audit", "verify")

    assert ran.code == 1
    assert "NOT whole" in ran.out
    assert "entry 3 is missing" in ran.out


def test_a_tip_that_was_kept_elsewhere_shows_what_the_chain_alone_cannot(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    """Whoever rewrites every later entry and the tip leaves the chain whole."""
    verdict = {"group": "_mesh", "ok": True, "entries": 7, "tip_hash": "h7", "problems": []}
    operator_env.on("GET /v1/audit/_mesh/verify", verdict)
    operator_env.on("GET /v1/audit/_mesh", *pages([5]))

    assert mesh("audit", "verify", "--expect-tip", "h5", "--after", "5").code == 0
    ran = mesh("audit", "verify", "--expect-tip", "other", "--after", "5")

    assert ran.code == 1
    assert "entry 5 has the hash h5, not other" in ran.out


def test_an_export_is_a_line_for_each_entry(
    mesh: Mesh, operator_env: FakeApi, tmp_path: Path
) -> None:
    operator_env.on("GET /v1/audit/orders", *pages([1, 2], [3], []))
    file = tmp_path / "audit.jsonl"

    ran = mesh("audit", "export", "-g", "orders", "-f", str(file))

    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        entry(n) for n in (1, 2, 3)
    ]
    assert "3 entries of orders exported; tip h3" in ran.err
