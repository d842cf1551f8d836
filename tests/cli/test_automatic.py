"""Claims about automatic failovers on the command line: why one did not happen, and acknowledging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.specs import GroupSpec, body_of, load_specs
from meshkit.errors import InvalidConfig
from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi, refusal

LAST: dict[str, Any] = {
    "failover": "f-1",
    "source": "us-east",
    "target": "eu-west",
    "began_ms": 1_780_000_000_000,
    "acknowledged_by": "",
    "acknowledged_ms": None,
    "acknowledged_reason": "",
}
SHOWN: dict[str, Any] = {
    "group": "orders",
    "mode": "automatic",
    "standing": "ready",
    "proof_of_life": True,
    "target": "eu-west",
    "reasons": [],
    "withheld_since_ms": None,
    "after_ms": 15_000,
    "cool_down_ms": 600_000,
    "loss_records_max": 100,
    "loss_seconds_max": 12,
    "needs_acknowledgement": False,
    "last": None,
}
WITHHELD = SHOWN | {
    "standing": "withheld",
    "withheld_since_ms": 1_780_000_000_000,
    "reasons": [
        {"obstacle": "cool-down", "detail": "after failover f-9", "cluster": None,
         "until_ms": 1_780_000_600_000},
        {"obstacle": "loss", "detail": "eu-west: up to 30 s", "cluster": "eu-west",
         "until_ms": None},
    ],
    "last": LAST,
}  # fmt: skip
ROUTE = "POST /v1/groups/orders/acknowledge"


def show(mesh: Mesh, api: FakeApi, automatic: dict[str, Any] | None) -> str:
    more = {} if automatic is None else {"automatic": automatic}
    api.on("GET /v1/groups/orders", samples.GROUP | more)
    ran = mesh("groups", "show", "orders")
    assert ran.code == 0, ran.err
    return " ".join(ran.out.split())


def test_the_one_screen_says_that_it_would_happen_and_within_which_bound(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    text = show(mesh, operator_env, SHOWN)

    assert "ready: to eu-west once us-east is gone for 15" in text
    assert "100 records, 12 s" in text


def test_the_one_screen_says_why_it_does_not_happen(mesh: Mesh, operator_env: FakeApi) -> None:
    """Each reason, and when it ends if it does so by itself."""
    text = show(mesh, operator_env, WITHHELD)

    assert "WITHHELD since 2026-05-28T20:26:40Z" in text
    assert "cool-down: after failover f-9 (until 2026-05-28T20:36:40Z)" in text
    assert "loss: eu-west: up to 30 s" in text
    assert "f-1 us-east -> eu-west, not acknowledged" in text


def test_a_group_without_the_policy_says_who_has_to_act(mesh: Mesh, operator_env: FakeApi) -> None:
    """So does nothing at all of a coordinator that knows nothing of it."""
    manual = SHOWN | {"mode": "manual", "standing": "manual"}

    assert "a person begins an emergency" in show(mesh, operator_env, manual)
    assert "Automatic" not in show(mesh, operator_env, None)


def test_an_acknowledgement_names_the_failover_that_was_shown(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    """A later one is not acknowledged by accident."""
    acknowledged = LAST | {"acknowledged_by": "operator/alice", "acknowledged_ms": 1}
    operator_env.on("GET /v1/groups/orders", samples.GROUP | {"automatic": WITHHELD})
    operator_env.on(ROUTE, {"changed": True, "automatic": SHOWN | {"last": acknowledged}})

    ran = mesh("groups", "acknowledge", "orders", "--reason", "looked")

    assert (ran.code, ran.out) == (
        0,
        "f-1 (us-east -> eu-west) is acknowledged by operator/alice\n",
    )
    assert operator_env.asked(ROUTE) == [{"reason": "looked", "failover": "f-1"}]


def test_where_there_was_none_nothing_is_acknowledged(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/groups/orders", samples.GROUP | {"automatic": SHOWN})
    operator_env.on(ROUTE, {"changed": False, "automatic": SHOWN})

    ran = mesh("groups", "acknowledge", "orders")

    assert (ran.code, ran.out) == (0, "no change: group orders never failed over by itself\n")


def test_one_that_still_runs_is_refused(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/groups/orders", samples.GROUP | {"automatic": WITHHELD})
    operator_env.on(ROUTE, refusal("refused", 409, 3, "automatic failover f-1 is still running"))

    ran = mesh("groups", "acknowledge", "orders", "--failover", "f-1")

    assert ran.code == 3
    assert "still running" in ran.err


# --- the policy in its file ----------------------------------------------------------------------

FILE = """\
name: orders
prefixes: [/orders/]
members: [us-east, eu-west]
policy:
  failover: automatic
"""


def test_a_file_says_the_policy_and_leaves_out_what_it_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "group.yaml"
    path.write_text(FILE + "  automatic_loss_seconds_max: 12\n")

    (spec,) = load_specs(GroupSpec, str(path))

    assert body_of(spec)["policy"] == {"failover": "automatic", "automatic_loss_seconds_max": 12}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("automatic_after_ms: 0", "automatic_after_ms: 0 is too small, at least 1"),
        ("automatic_loss_records_max: -1", "automatic_loss_records_max: -1 is too small"),
        ("automatic_loss_seconds_max: soon", "policy.automatic_loss_seconds_max: expected a whole"),
        ("automatic_afterms: 1", "did you mean 'automatic_after_ms'?"),
    ],
)
def test_what_a_file_cannot_mean_is_refused_with_its_place(
    tmp_path: Path, line: str, told: str
) -> None:
    path = tmp_path / "group.yaml"
    path.write_text(f"{FILE}  {line}\n")

    with pytest.raises(InvalidConfig) as refused:
        load_specs(GroupSpec, str(path))

    assert told in str(refused.value)
    assert f"{path}:" in str(refused.value)
