"""Claims about `mesh clusters evacuate`: what it asks, shows and exits with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.conftest import Mesh, Types
from tests.cli.fake_api import FakeApi, Reply
from tests.cli.test_emergency import loss

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


# --- emergencies --------------------------------------------------------------------------------

EMERGENCY = (*EVACUATE, "--emergency", "--reason", "region lost")
SUM = {"groups": 2, "unbounded": 0, "seconds": 9, "records_known": 11}
SMALL = loss()
BIG = loss(seconds=9, target={**loss()["target"], "records_known": 4}, text="certain: the big one")
UNKNOWN = loss(seconds=None, target={**loss()["target"], "records_known": None}, text="who knows")


def foreseen(*rows: dict[str, Any], total: dict[str, Any] | None = None) -> Reply:
    reply = answer(*rows)
    reply.body |= {"kind": "emergency", "dry_run": True, "loss": total or SUM}
    return reply


def losing(group: str, what: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**row(group, "would_move"), "loss": what, "running": None, **more}


def waits(group: str, what: dict[str, Any]) -> dict[str, Any]:
    state = stands(group, moved=False, under_way=True, phase="advancing")
    return {**state, "waits_for_consent": True, "target": "eu-west", "loss": what}


def waiting(*rows: dict[str, Any], total: dict[str, Any] | None = None) -> Reply:
    reply = progress(*rows)
    reply.body |= {
        "waiting": sum(bool(r.get("waits_for_consent")) for r in rows),
        "loss": total or SUM,
    }
    return reply


def dead(api: FakeApi, *stands_then: Reply) -> None:
    plan = foreseen(losing("orders", SMALL), losing("users", BIG))
    api.on(f"POST {PATH}", plan, answer(row("orders", "begun"), row("users", "begun")))
    api.on(f"GET {PATH}", *stands_then)


def test_an_emergency_shows_each_loss_and_what_it_means_and_begins_nothing_in_a_dry_run(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    dead(operator_env)

    ran = mesh(*EMERGENCY, "--dry-run")

    assert ran.code == 0
    assert SMALL["text"] in ran.out
    assert BIG["text"] in ran.out
    assert "in sum: up to 9 s of writes in 2 groups, 11 of their records known" in ran.out
    assert "This moves writes without the help of us-east" in " ".join(ran.out.split())
    assert [body["dry_run"] for body in operator_env.asked(f"POST {PATH}")] == [True]


def test_10_when_every_group_that_is_left_waits_and_how_to_go_on(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    """Whoever is on call at night gets the commands, not a riddle."""
    moving = stands("carts", moved=False, under_way=True, phase="advancing")
    both = (waits("orders", SMALL), waits("users", BIG))
    moved = stands("carts", moved=True)
    dead(operator_env, waiting(moving, *both), waiting(moved, *both))

    ran = mesh(*EMERGENCY, "--yes", "--timeout", "20s")

    assert ran.code == 10
    assert "waits for consent" in ran.out
    assert BIG["text"] in ran.out
    assert "in sum: up to 9 s of writes in 2 groups, 11 of their records known" in ran.err
    request = operator_env.asked(f"POST {PATH}")[-1]["request_id"]
    assert (
        "mesh clusters evacuate us-east --emergency --reason 'region lost' --yes"
        f" --request-id {request} --accept-loss records=7,seconds=9"
    ) in ran.err
    assert "mesh failovers approve f-orders --accept-loss records=7,seconds=5" in ran.err
    assert "mesh failovers approve f-users --accept-loss records=4,seconds=9" in ran.err


def test_what_nobody_can_bound_is_never_hidden_in_a_bound_for_all(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    total = {"groups": 2, "unbounded": 1, "seconds": None, "records_known": None}
    dead(operator_env, waiting(waits("orders", SMALL), waits("users", UNKNOWN), total=total))

    ran = mesh(*EMERGENCY, "--yes")

    assert ran.code == 10
    assert "nobody can say for 1 of 2 groups" in ran.err
    assert "to accept for 1 group:" in ran.err
    assert "--accept-loss records=7,seconds=5" in ran.err
    assert "mesh failovers approve f-users --accept-loss unknown" in ran.err


def test_of_many_groups_the_state_is_asked_for_once_nothing_moves(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    brief = waiting(waits("orders", SMALL), waits("users", BIG))
    brief.body |= {"waiting": None, "loss": None}
    for each in brief.body["groups"]:
        each |= {"waits_for_consent": False, "loss": None}
    full = waiting(waits("orders", SMALL), waits("users", BIG))
    dead(operator_env, brief, brief, full)

    ran = mesh(*EMERGENCY, "--yes", "--timeout", "20s")

    assert ran.code == 10
    asked = [q.get("full") for q in operator_env.queries if "request_id" in q]
    assert asked == [None, None, "true"]


def test_the_same_command_again_goes_on_with_what_waits_and_carries_the_consent(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    running = {
        "failover": "f-orders", "kind": "emergency", "request_id": "r-1", "waits_for_consent": True,
    }  # fmt: skip
    operator_env.on(
        f"POST {PATH}",
        foreseen(losing("orders", SMALL, running=running)),
        answer(row("orders", "under_way")),
    )
    operator_env.on(f"GET {PATH}", progress(stands("orders", moved=True)))

    ran = mesh(*EMERGENCY, "--yes", "--accept-loss", "records=7,seconds=9")

    assert ran.code == 0
    _, real = operator_env.asked(f"POST {PATH}")
    assert real["request_id"] == "r-1"
    assert real["accept_loss"] == {"records": 7, "seconds": 9}


def test_an_emergency_is_confirmed_by_typing_the_clusters_name(
    mesh: Mesh, operator_env: FakeApi, types: Types
) -> None:
    dead(operator_env)
    types("y")

    ran = mesh(*EMERGENCY)

    assert ran.code == 3
    assert "Type us-east" in ran.err
    assert "nothing was changed" in ran.err
    assert [body["dry_run"] for body in operator_env.asked(f"POST {PATH}")] == [True]


def test_on_a_terminal_each_group_gets_consent_to_exactly_its_own_loss(
    mesh: Mesh, operator_env: FakeApi, types: Types
) -> None:
    moved = progress(stands("orders", moved=True), stands("users", moved=True))
    dead(operator_env, waiting(waits("orders", SMALL), waits("users", UNKNOWN)), moved)
    for name in ("f-orders", "f-users"):
        operator_env.on(f"POST /v1/failovers/{name}/consent", {"changed": True, "failover": {}})
    types("us-east", "us-east")

    ran = mesh(*EMERGENCY)

    assert ran.code == 0
    (orders,) = operator_env.asked("POST /v1/failovers/f-orders/consent")
    (users,) = operator_env.asked("POST /v1/failovers/f-users/consent")
    assert orders == {"accept_loss": {"records": 7, "seconds": 5}}
    assert users == {"accept_loss": {"unknown": True}}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--emergency",), "--reason"),
        (("--accept-loss", "unknown"), "--emergency"),
        (("--no-fence-wait",), "--emergency"),
    ],
)
def test_2_what_an_emergency_lacks_is_named_with_what_to_do(
    mesh: Mesh, operator_env: FakeApi, flags: tuple[str, ...], words: str
) -> None:
    ran = mesh(*EVACUATE, "--yes", *flags)

    assert ran.code == 2
    assert words in ran.err
    assert "Next" in ran.err
    assert operator_env.requests == []


def test_a_bound_that_cannot_be_read_is_refused(mesh: Mesh, operator_env: FakeApi) -> None:
    ran = mesh(*EVACUATE, "--emergency", "--reason", "lost", "--accept-loss", "much")

    assert ran.code == 2
    assert operator_env.requests == []
