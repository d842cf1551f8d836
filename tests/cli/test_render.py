"""What people see. The expected texts are snapshots: change them with the views, deliberately."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from rich.console import Console

from cli.render import Output, shown_bytes, shown_lag, shown_ms, shown_time
from cli.settings import OutputForm
from cli.stream_views import streams_table
from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi


def trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (None, "-"),
        (0, "0ms"),
        (999, "999ms"),
        (1500, "1.5s"),
        (61_000, "1m01s"),
        (7_260_000, "2h01m"),
        (47 * 3_600_000, "47h00m"),
        (295 * 3_600_000, "12d07h"),
    ],
)
def test_durations(ms: int | None, words: str) -> None:
    assert shown_ms(ms) == words


def test_a_lag_that_nobody_knows_is_never_zero() -> None:
    assert shown_lag(None, None) == "unknown"
    assert shown_lag(0, 5) == "0ms ±5ms"


def test_sizes_and_times() -> None:
    assert [shown_bytes(n) for n in (None, 12, 20480, 5 << 30)] == ["-", "12B", "20.0KiB", "5.0GiB"]
    assert shown_time(1_780_000_000_000, now_ms=1_780_000_065_000) == (
        "2026-05-28T20:26:40Z (1m05s ago)"
    )


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_cell_but_the_last_is_ever_cut_or_folded(width: int) -> None:
    """On a narrow terminal too: a name that is cut short cannot be pasted back."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, no_color=True)
    output = Output(form=OutputForm.TABLE, out=console, err=console)

    output.table(streams_table([samples.stream(problem="slow")]))

    assert "us-east -> eu-west  orders  streaming      3  1000" in file.getvalue()


def test_clusters_list(mesh: Mesh, operator_env: FakeApi) -> None:
    body = {"clusters": [samples.LOST_CLUSTER, samples.CLUSTER]}
    operator_env.on("GET /v1/clusters", body)

    assert trimmed(mesh("clusters", "list").out) == (
        "CLUSTER  REGION     STATE    ACTIVE FOR  PRIORITY  REPLICATOR  ETCD   PROBLEM\n"
        "us-east  eu-west-1  active   -                100  unknown     -"
        "      no replicator reports from here\n"
        "eu-west  eu-west-1  passive  -                100  eu-west-1   3.5.1  -"
    )
    assert json.loads(mesh("clusters", "list", "-o", "json").out) == body
    assert yaml.safe_load(mesh("clusters", "list", "-o", "yaml").out) == body


def test_clusters_show(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/clusters/eu-west", samples.CLUSTER)

    assert "Leading replicator     eu-west-1" in mesh("clusters", "show", "eu-west").out


def test_groups_show_is_the_one_screen(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/groups/orders", samples.GROUP)

    assert trimmed(mesh("groups", "show", "orders").out) == (
        "Group          orders\n"
        "Writes go to   us-east (epoch 3, token 1.42)\n"
        "Prefixes       /orders/\n"
        "Sealed         no\n"
        "Failover       none running\n"
        "Last failover  none\n"
        "Problem        -\n"
        "\n"
        "CLUSTER  ROLE     FENCE       EPOCH  PERMIT  IN STEP  STREAM       LAG  PROBLEM\n"
        "us-east  active   open            3  yes     yes      -              -  -\n"
        "eu-west  passive  superseded      3  no      yes      unknown  unknown  -\n"
        "\n"
        "IF PROMOTED NOW  PAUSE  LOSS  BLOCKERS\n"
        "eu-west          150ms  none  lag"
    )


def test_groups_list(mesh: Mesh, operator_env: FakeApi) -> None:
    running = {"id": "f-1", "phase": "advancing", "step": "drain"}
    operator_env.on("GET /v1/groups", {"groups": [samples.GROUP | {"failover": running}]})

    assert trimmed(mesh("groups", "list").out) == (
        "GROUP   ACTIVE   EPOCH  PREFIXES  MEMBERS          FAILOVER                PROBLEM\n"
        "orders  us-east      3  /orders/  us-east,eu-west  f-1 advancing at drain  -"
    )


def test_replication_status(mesh: Mesh, operator_env: FakeApi) -> None:
    lost = samples.stream(
        "unknown", lag_ms=None, lag_error_ms=None, records=None, head=None, applied=None,
        bytes=None, records_per_second=None, headroom_ms=None, problem="no status",
    )  # fmt: skip
    operator_env.on("GET /v1/replication", {"streams": [samples.stream(), lost]})

    assert trimmed(mesh("replication", "status").out) == (
        "STREAM              GROUPS  STATE      EPOCH     HEAD  APPLIED       LAG  RECORDS    BYTES"
        "     RATE  HISTORY  OUT OF STEP  LAST VERIFY  PROBLEM\n"
        "us-east -> eu-west  orders  streaming      3     1000     1000  3ms ±5ms        0       0B"
        "    120/s    4m40s  -            never        -\n"
        "us-east -> eu-west  orders  unknown        3  unknown  unknown   unknown  unknown  unknown"
        "  unknown  unknown  -            never        no status"
    )


def test_failovers_show(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/failovers/f-1", samples.failover("succeeded", done=10))

    shown = trimmed(mesh("failovers", "show", "f-1").out)

    assert "Writes paused    150ms" in shown
    assert " #  STEP      STATUS  TOOK  DETAIL\n 1  check     done    12ms  -" in shown


def test_failovers_list(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/failovers", {"failovers": [samples.failover(done=4)]})

    assert "f-1  orders  promote  us-east  eu-west      4  advancing  5/10 drain" in (
        mesh("failovers", "list", "--group", "orders").out
    )


def test_apply_says_what_changed(mesh: Mesh, operator_env: FakeApi, tmp_path: object) -> None:
    spec = f"{tmp_path}/clusters.yaml"
    with open(spec, "w") as file:  # noqa: PTH123
        file.write("name: eu-west\npriority: 10\n---\n- {name: ap-south, region: ap}\n")
    operator_env.on("GET /v1/clusters/eu-west", samples.CLUSTER)
    operator_env.on("PUT /v1/clusters/eu-west", {"changed": True, "cluster": samples.CLUSTER})
    operator_env.on("PUT /v1/clusters/ap-south", {"changed": True, "cluster": samples.CLUSTER})

    ran = mesh("clusters", "apply", "-f", spec)

    assert trimmed(ran.out) == "CLUSTER   RESULT\neu-west   changed\nap-south  created"
    assert "cluster eu-west changed\n  priority: 100 -> 10\n" in ran.err
    assert operator_env.asked("PUT /v1/clusters/eu-west") == [{"priority": 10}]


def test_apply_dry_run_has_everything_checked_and_stores_nothing(
    mesh: Mesh, operator_env: FakeApi, tmp_path: object
) -> None:
    spec = f"{tmp_path}/groups.yaml"
    with open(spec, "w") as file:  # noqa: PTH123
        file.write("name: orders\nprefixes: [/orders/]\nmembers: [us-east, eu-west]\n")
    operator_env.on("GET /v1/groups/orders", samples.GROUP)
    operator_env.on("PUT /v1/groups/orders", {"changed": False, "dry_run": True})

    ran = mesh("groups", "apply", "-f", spec, "--dry-run", "-o", "json")

    assert json.loads(ran.out)["results"][0]["became"] == "unchanged"
    assert operator_env.queries[-1] == {"dry_run": "true"}


def test_apply_refuses_a_file_with_every_place_that_is_wrong(mesh: Mesh, tmp_path: object) -> None:
    spec = f"{tmp_path}/clusters.yaml"
    with open(spec, "w") as file:  # noqa: PTH123
        file.write("name: EU\n---\nname: us\nintent: gone\n")

    ran = mesh("clusters", "apply", "-f", spec)

    assert ran.code == 2
    assert "clusters.yaml:1: name: 'EU' is not a cluster name" in ran.err
    assert "clusters.yaml:4: intent: expected one of in-service, draining" in ran.err


COPY = {
    "group": "orders",
    "keys_done": 3_750,
    "keys_total": 10_000,
    "keys_sent": 12,
    "bytes_done": 1_000_000,
    "bytes_total": 2_700_000,
    "bytes_sent": 3_400,
}


def test_a_copy_under_way_says_how_far_it_is(mesh: Mesh, operator_env: FakeApi) -> None:
    """`out of step` alone does not tell whether to wait for a minute or for an hour."""
    stream = samples.stream(groups_out_of_step=["orders", "users"], copies=[COPY])
    operator_env.on("GET /v1/replication", {"streams": [stream]})
    active, passive = samples.GROUP["clusters"]
    clusters = [active, passive | {"in_step": False, "copy": COPY}]
    operator_env.on("GET /v1/groups/orders", samples.GROUP | {"clusters": clusters})

    told = "37% of 10,000 keys copied, 3.3KiB sent"
    assert f"orders: {told},users" in mesh("replication", "status").out.replace("\n", " ")
    assert f"no: {told}" in mesh("groups", "show", "orders").out


def behind(group: str = "orders", why: str = "paused", **more: object) -> dict[str, object]:
    told = {"group": group, "why": why, "text": f"{why} by alice", "position": 900}
    lag = {"state": why, "lag_ms": 3_200, "lag_error_ms": 40, "records": 12, "bytes": 900}
    return told | lag | more


def test_a_group_out_of_step_says_why_and_how_far_behind_it_is(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    """A paused group is not a copy under way: waiting does not help."""
    groups = [behind(), behind("users", "parked", lag_error_ms=None, records=None)]
    stream = samples.stream("paused", groups_out_of_step=["orders", "users"], behind=groups)
    operator_env.on("GET /v1/replication", {"streams": [stream]})
    active, passive = samples.GROUP["clusters"]
    member = passive | {"in_step": False, "out_of_step": "parked", "stream": "stalled"}
    operator_env.on("GET /v1/groups/orders", samples.GROUP | {"clusters": [active, member]})

    out = mesh("replication", "status").out.replace("\n", " ")

    assert "orders: paused, lag 3.2s ±40ms, 12 records" in out
    assert "users: parked, lag at least 3.2s" in out
    assert "no: parked" in mesh("groups", "show", "orders").out


def test_the_status_says_what_is_paused_and_by_whom(mesh: Mesh, operator_env: FakeApi) -> None:
    """Also before any copy has noticed, and after the one who did it has gone home."""
    pause = {"what": "group orders", "by": "operator/alice", "reason": "why", "since_ms": 0}
    operator_env.on("GET /v1/replication", {"streams": [samples.stream()], "pauses": [pause]})

    out = mesh("replication", "status").out

    assert "group orders is paused by operator/alice since 1970-01-01T00:00:00Z: why" in out


@pytest.mark.parametrize(("group", "fails"), [(None, True), ("orders", True), ("users", False)])
def test_the_check_fails_for_a_paused_group_and_not_for_the_others(
    mesh: Mesh, operator_env: FakeApi, group: str | None, *, fails: bool
) -> None:
    """A monitor of one group must not be woken for another one."""
    stream = samples.stream("paused", groups_out_of_step=["orders"], behind=[behind()])
    operator_env.on("GET /v1/replication", {"streams": [stream]})

    ran = mesh("replication", "status", "--check", *(["--group", group] if group else []))

    assert ran.code == (1 if fails else 0)
    assert ("orders: paused" in ran.err) is fails
