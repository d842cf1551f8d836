"""Every exit code of architecture section 8, and the sentences that come with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from cli.pki import CertificateAuthority, CertificateFiles, create_ca, issue
from cli.sandbox.ports import free_port
from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi, Reply, refusal, served

FAILOVERS = "POST /v1/groups/orders/failovers"
EVENTS = "GET /v1/failovers/f-1/events"
PROMOTE = ("clusters", "promote", "eu-west", "--group", "orders", "--yes")


def transition(failover: dict[str, object]) -> tuple[str, dict[str, object]]:
    return "transition", {"number": 1, "failover": failover}


def run_of(api: FakeApi, *states: dict[str, object], then_hang: bool = False) -> None:
    """Let the fake API run a failover through `states`."""
    begun = {"changed": True, "failover": samples.failover()}
    api.on(FAILOVERS, Reply(samples.preview()), Reply(begun, status=202))
    events = [transition(state) for state in states]
    end = [] if then_hang else [("end", {"phase": states[-1]["phase"], "exit_code": 0})]
    api.on(EVENTS, Reply(None, events=[*events, *end], then_hang=then_hang))
    api.on("GET /v1/failovers/f-1", states[-1])
    api.on("GET /v1/groups/orders", samples.GROUP)


def test_0_a_promotion_that_succeeds(mesh: Mesh, operator_env: FakeApi) -> None:
    run_of(operator_env, samples.failover(done=5), samples.failover("succeeded", done=10))

    ran = mesh(*PROMOTE)

    assert ran.code == 0
    assert " 5/10 drain      ok 0.012s (total 0.1s)" in ran.err
    assert "succeeded: eu-west accepts writes for orders (epoch 4); writes paused 150ms" in ran.err
    assert ran.out.startswith("CLUSTER")


def test_0_promoting_the_active_cluster_changes_nothing(mesh: Mesh, operator_env: FakeApi) -> None:
    message = "eu-west is already active for orders (epoch 3)"
    operator_env.on(FAILOVERS, {"changed": False, "failover": None, "message": message})

    ran = mesh(*PROMOTE)

    assert (ran.code, ran.out) == (0, f"no change: {message}\n")


def test_1_what_the_api_calls_a_bug(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/clusters", refusal("failed", 500, 1, "it broke"))

    ran = mesh("clusters", "list")

    assert (ran.code, ran.err) == (1, "Error: it broke\n")


def test_1_streams_that_do_not_stream_when_checked(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/replication", {"streams": [samples.stream("stalled")]})

    assert mesh("replication", "status").code == 0
    assert mesh("replication", "status", "--check").code == 1


def test_2_wrong_usage(mesh: Mesh) -> None:
    assert mesh("clusters", "promote").code == 2
    assert mesh("nothing").code == 2
    assert mesh("clusters", "list", "--timeout", "soon").code == 2


def test_2_no_terminal_to_ask_on(
    mesh: Mesh, operator_env: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123
    operator_env.on(FAILOVERS, samples.preview())

    ran = mesh("clusters", "promote", "eu-west", "--group", "orders")

    assert ran.code == 2
    assert "Next:  pass --yes" in ran.err
    assert len(operator_env.asked(FAILOVERS)) == 1


def test_3_a_failed_check(mesh: Mesh, operator_env: FakeApi) -> None:
    late = samples.check("lag", ok=False, detail="9000 ms behind, at most 5000 allowed")
    operator_env.on(FAILOVERS, samples.preview(late))

    ran = mesh(*PROMOTE)

    assert ran.code == 3
    assert "a check failed: lag: 9000 ms behind, at most 5000 allowed" in ran.err
    assert "--waive lag" in ran.err
    assert len(operator_env.asked(FAILOVERS)) == 1


def test_3_an_unknown_cluster(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(FAILOVERS, refusal("not_found", 404, 3, "there is no cluster mars"))

    assert mesh(*PROMOTE).code == 3


def test_3_abort_after_the_pivot(mesh: Mesh, operator_env: FakeApi) -> None:
    said = "authority has moved: it cannot be aborted"
    operator_env.on("POST /v1/failovers/f-1/abort", refusal("refused", 422, 3, said))

    ran = mesh("failovers", "abort", "f-1")

    assert ran.code == 3
    assert f"Error: {said}\nState: nothing was changed" in ran.err


def test_4_not_the_role(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(FAILOVERS, refusal("not_allowed", 403, 4, "reader/bob may not do this"))

    assert mesh(*PROMOTE).code == 4


def test_4_our_certificate_has_expired(
    mesh: Mesh, operator_env: FakeApi, authority: CertificateAuthority
) -> None:
    old = issue(authority, "operator", "old", valid_days=-1)

    ran = mesh("clusters", "list", "--cert", str(old.cert), "--key", str(old.key))

    assert ran.code == 4
    assert f"did not accept our certificate: {old.cert} expired at 20" in ran.err


def test_4_our_certificate_is_from_another_ca(
    mesh: Mesh, operator_env: FakeApi, tmp_path: Path
) -> None:
    other = issue(create_ca(tmp_path / "other"), "operator", "eve")

    ran = mesh("clusters", "list", "--cert", str(other.cert), "--key", str(other.key))

    assert ran.code == 4
    assert f"{other.cert} was not issued by the CA in" in ran.err


def test_5_still_running_after_the_timeout(mesh: Mesh, operator_env: FakeApi) -> None:
    run_of(operator_env, samples.failover(done=4), then_hang=True)

    ran = mesh(*PROMOTE, "--timeout", "300ms")

    assert ran.code == 5
    assert "reattach with: mesh failovers watch f-1" in ran.err


def test_6_the_epoch_moved(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(FAILOVERS, samples.preview(epoch=3))

    ran = mesh(*PROMOTE, "--expect-epoch", "2")

    assert ran.code == 6
    assert "the epoch of orders is 3, not 2" in ran.err


def test_6_another_failover_runs(mesh: Mesh, operator_env: FakeApi) -> None:
    hint = "mesh failovers watch f-9"
    operator_env.on(FAILOVERS, refusal("conflict", 409, 6, "another is running", hint=hint))

    ran = mesh(*PROMOTE)

    assert (ran.code, f"Next:  {hint}" in ran.err) == (6, True)


def test_7_nothing_listens(mesh: Mesh, operator_env: FakeApi) -> None:
    ran = mesh("clusters", "list", "--api", f"https://127.0.0.1:{free_port()}")

    assert ran.code == 7
    assert "cannot reach the automation API at https://127.0.0.1:" in ran.err
    assert "Next:  is a coordinator running there?" in ran.err


def test_7_the_api_cannot_reach_etcd(mesh: Mesh, operator_env: FakeApi) -> None:
    lost = refusal("unreachable", 503, 7, "the coordination etcd has no quorum")
    operator_env.on("GET /v1/clusters", lost)

    ran = mesh("clusters", "list")

    assert ran.code == 7
    assert "Next:  check the members of the coordination etcd and their quorum" in ran.err


def test_7_the_servers_certificate_has_expired(
    mesh: Mesh, operator_env: FakeApi, authority: CertificateAuthority
) -> None:
    with served(issue(authority, "coordinator", "old", valid_days=-1)) as old:
        ran = mesh("clusters", "list", "--api", old.url)

    assert ran.code == 7
    assert "has expired" in ran.err


def test_7_the_server_is_from_an_unknown_ca(
    mesh: Mesh, operator_env: FakeApi, tmp_path: Path
) -> None:
    with served(issue(create_ca(tmp_path / "other"), "coordinator", "x")) as other:
        ran = mesh("clusters", "list", "--api", other.url)

    assert ran.code == 7
    assert "is from an unknown CA" in ran.err


def test_8_rolled_back(mesh: Mesh, operator_env: FakeApi) -> None:
    problem = {
        "happened": "eu-west did not converge within 10 s",
        "state": "us-east serves again under epoch 3",
        "next": "mesh replication status",
    }
    run_of(operator_env, samples.failover("rolled_back", done=5, problem=problem))

    ran = mesh(*PROMOTE)

    assert ran.code == 8
    assert "rolled_back: eu-west did not converge within 10 s" in ran.err
    assert "State: us-east serves again under epoch 3\nNext:  mesh replication status" in ran.err


def test_9_a_change_whose_answer_was_lost(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("POST /v1/failovers/f-1/abort", Reply(None, drop=True))

    ran = mesh("failovers", "abort", "f-1")

    assert ran.code == 9
    assert "State: unknown: it may have happened" in ran.err


def test_9_an_outcome_the_api_does_not_know(mesh: Mesh, operator_env: FakeApi) -> None:
    said = refusal("outcome_unknown", 504, 9, "the reply of etcd was lost")
    operator_env.on(FAILOVERS, samples.preview(), said)

    ran = mesh(*PROMOTE)

    assert ran.code == 9
    request_id = operator_env.asked(FAILOVERS)[1]["request_id"]
    assert f"Next:  repeat it with --yes --request-id {request_id}" in ran.err


def test_a_preview_whose_answer_was_lost_has_changed_nothing(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    operator_env.on(FAILOVERS, Reply(None, drop=True))

    ran = mesh(*PROMOTE)

    assert ran.code == 7
    assert "State: nothing was changed" in ran.err


def test_10_waiting_for_approval(mesh: Mesh, operator_env: FakeApi) -> None:
    waiting = samples.failover("advancing", done=1, exit_code=10)
    run_of(operator_env, waiting, then_hang=True)

    assert mesh(*PROMOTE, "--timeout", "300ms").code == 10


def test_130_interrupted(mesh: Mesh, operator_env: FakeApi) -> None:
    run_of(operator_env, samples.failover(done=4), then_hang=True)
    interrupting = threading.Thread(target=_interrupt_once_followed, args=(operator_env,))
    interrupting.start()

    ran = mesh(*PROMOTE)

    interrupting.join()
    assert ran.code == 130
    assert "the failover goes on; reattach with: mesh failovers watch f-1" in ran.err


def _interrupt_once_followed(api: FakeApi) -> None:
    deadline = time.monotonic() + 10
    while not api.asked(EVENTS) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_dry_run_begins_nothing(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(FAILOVERS, samples.preview())

    ran = mesh(*PROMOTE, "--dry-run", "-o", "json")

    assert ran.code == 0
    assert json.loads(ran.out)["preview"]["epoch_after"] == 4
    assert [body["dry_run"] for body in operator_env.asked(FAILOVERS)] == [True]


def test_what_is_begun_is_what_was_shown(mesh: Mesh, operator_env: FakeApi) -> None:
    run_of(operator_env, samples.failover("succeeded", done=10))

    ran = mesh(*PROMOTE, "--reason", "INC-1", "-o", "json")

    begun = operator_env.asked(FAILOVERS)[-1]
    assert (begun["expect_epoch"], begun["reason"], begun["dry_run"]) == (3, "INC-1", False)
    assert begun["request_id"]
    assert json.loads(ran.out)["phase"] == "succeeded"


def test_a_repeat_with_a_request_id_is_sent_as_it_is(mesh: Mesh, operator_env: FakeApi) -> None:
    done = {"changed": False, "failover": samples.failover("succeeded", done=10)}
    operator_env.on(FAILOVERS, done)
    operator_env.on("GET /v1/groups/orders", samples.GROUP)

    assert mesh(*PROMOTE, "--request-id", "r-1").code == 0
    assert [b["request_id"] for b in operator_env.asked(FAILOVERS)] == ["r-1"]


def test_an_abort_that_rolls_back_is_done(mesh: Mesh, operator_env: FakeApi) -> None:
    rolled_back = samples.failover("rolled_back", done=5)
    operator_env.on("POST /v1/failovers/f-1/abort", {"changed": True, "failover": rolled_back})
    operator_env.on("GET /v1/groups/orders", samples.GROUP)

    assert mesh("failovers", "abort", "f-1").code == 0


def test_another_address_is_tried(
    mesh: Mesh, operator_env: FakeApi, server_files: CertificateFiles
) -> None:
    operator_env.on("GET /v1/clusters", {"clusters": [samples.CLUSTER]})
    dead = f"https://127.0.0.1:{free_port()}"

    assert mesh("clusters", "list", "--api", dead, "--api", operator_env.url).code == 0


def test_a_stopped_coordinator_costs_a_command_its_patience_once(
    mesh: Mesh, operator_env: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its system accepts connections and TLS is never spoken: nothing was sent, another is asked."""
    monkeypatch.setattr("cli.api.CONNECT_TIMEOUT_MS", 100)
    begun = {"changed": True, "failover": samples.failover("succeeded", done=10)}
    operator_env.on(FAILOVERS, samples.preview(), Reply(begun, status=202))
    operator_env.on("GET /v1/groups/orders", samples.GROUP)
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        stopped.setblocking(False)
        url = f"https://127.0.0.1:{stopped.getsockname()[1]}"
        ran = mesh(*PROMOTE, "--timeout", "300s", "--api", url, "--api", operator_env.url)
        connections = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                stopped.accept()[0].close()
                connections += 1

    assert (ran.code, connections) == (0, 1)


def test_errors_are_json_when_json_is_asked_for(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/groups/mars", refusal("not_found", 404, 3, "there is no group mars"))

    ran = mesh("groups", "show", "mars", "-o", "json")

    assert ran.out == ""
    assert json.loads(ran.err)["error"] == {
        "code": "not_found",
        "message": "there is no group mars",
        "state": "nothing was changed",
        "hint": "",
        "exit_code": 3,
    }


def test_an_unexpected_fault_is_one_line_without_a_traceback(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.session.resolve", lambda _flags: 1 / 0)

    ran = mesh("clusters", "list")

    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert "MESH_DEBUG=1" in ran.err


class TestQuestion:
    """On a terminal it shows what would happen and asks."""

    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cli.session.sys.stdin.isatty", lambda: True)

    def answer(self, monkeypatch: pytest.MonkeyPatch, *, yes: bool) -> list[str]:
        asked: list[str] = []

        def confirm(question: str, **_: object) -> bool:
            asked.append(question)
            return yes

        monkeypatch.setattr("cli.session.click.confirm", confirm)
        return asked

    def test_no_changes_nothing(
        self, mesh: Mesh, operator_env: FakeApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = self.answer(monkeypatch, yes=False)
        operator_env.on(FAILOVERS, samples.preview())

        ran = mesh("clusters", "promote", "eu-west", "--group", "orders")

        assert (ran.code, asked) == (3, ["Move writes of orders to eu-west?"])
        assert "From -> to    us-east -> eu-west" in ran.err
        assert "Writes pause  about 150ms (budget 10.0s)" in ran.err
        assert len(operator_env.asked(FAILOVERS)) == 1

    def test_yes_begins_it(
        self, mesh: Mesh, operator_env: FakeApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(monkeypatch, yes=True)
        run_of(operator_env, samples.failover("succeeded", done=10))

        assert mesh("clusters", "promote", "eu-west", "--group", "orders").code == 0

    def test_the_only_group_need_not_be_named(
        self, mesh: Mesh, operator_env: FakeApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(monkeypatch, yes=True)
        operator_env.on("GET /v1/groups", {"groups": [samples.GROUP]})
        run_of(operator_env, samples.failover("succeeded", done=10))

        assert mesh("clusters", "failback").code == 0
        assert [b["kind"] for b in operator_env.asked(FAILOVERS)] == ["failback", "failback"]

    def test_of_several_groups_one_must_be_named(self, mesh: Mesh, operator_env: FakeApi) -> None:
        both = [samples.GROUP, samples.GROUP | {"group": "carts"}]
        operator_env.on("GET /v1/groups", {"groups": both})

        ran = mesh("clusters", "promote", "eu-west")

        assert ran.code == 2
        assert "there are several groups: orders, carts" in ran.err


def test_watch_shows_again_and_again_until_interrupted(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/groups", {"groups": [samples.GROUP]})
    interrupting = threading.Thread(target=_interrupt_once_asked_thrice, args=(operator_env,))
    interrupting.start()

    ran = mesh("groups", "list", "--watch=10ms", "-o", "json")

    interrupting.join()
    assert ran.code == 130
    assert len([json.loads(line) for line in ran.out.splitlines()]) >= 2


def _interrupt_once_asked_thrice(api: FakeApi) -> None:
    deadline = time.monotonic() + 10
    while len(api.asked("GET /v1/groups")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_lost_event_stream_is_taken_up_again(mesh: Mesh, operator_env: FakeApi) -> None:
    """The API may go away while a failover is followed; it is found again by itself."""
    run_of(operator_env, samples.failover("succeeded", done=10))
    half = Reply(None, events=[transition(samples.failover(done=4))])
    whole = operator_env.replies[EVENTS]
    operator_env.replies[EVENTS] = [half, Reply(None, drop=True), *whole]

    ran = mesh(*PROMOTE)

    assert ran.code == 0
    assert ran.err.count("4/10 catch_up") == 1
