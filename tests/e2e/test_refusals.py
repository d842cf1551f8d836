"""What goes wrong around a command: the exit code, a sentence that helps, and nothing changed.

Every command is a real process against a real sandbox. A refusal says what happened, in which
state things are, and what to do next.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from chaos.planned import loaded
from cli.pki import CertificateFiles, create_ca, issue
from cli.sandbox.ports import free_ports
from tests.e2e.conftest import CLUSTERS, Rig
from tests.e2e.test_kills import DEADLINE_S, judged, ready, writes_go_on

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

NOTHING_CHANGED = "State: nothing was changed"


@attrs.frozen
class Ran:
    """One command line that has ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *, says: str, then: str) -> None:
        """Demand a refusal: its exit code and its three sentences."""
        said = f"exit code {self.code}:\n{self.err}"
        assert self.code == code, said
        _, found, sentences = self.err.rpartition("Error: ")
        assert found, said
        assert says in sentences, said
        assert NOTHING_CHANGED in sentences, said
        assert "Next:  " in sentences, said
        assert then in sentences.partition("Next:  ")[2], said


@attrs.frozen
class Command:
    """`mesh` as an operator runs it from a script: no terminal, a context, clean folders."""

    config: Path
    home: Path

    def __call__(self, *arguments: str) -> Ran:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("MESH_")}
        environ |= {
            "MESH_CONFIG": str(self.config),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_STATE_HOME": str(self.home / "state"),
        }
        ended = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env=environ,
            check=False,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        assert "this is a bug" not in ended.stderr, ended.stderr
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    def promote(self, target: str, *more: str) -> Ran:
        """Ask for the move of group orders to `target` without being asked."""
        return self("clusters", "promote", target, "--group", "orders", "--yes", *more)


@pytest.fixture
def mesh(rig: Rig, tmp_path: Path) -> Command:
    return Command(rig.sandbox.layout.context_file, tmp_path)


def asked(rig: Rig, path: str) -> dict[str, Any]:
    """Return what the API says."""

    async def ask() -> dict[str, Any]:
        async with rig.sandbox.api() as api:
            return await api.get(path)

    return asyncio.run(ask())


def standing(rig: Rig) -> tuple[str, int]:
    """Return where group orders is active, and in which epoch."""
    group = asked(rig, "/v1/groups/orders")
    return group["active"], group["epoch"]


def passive(rig: Rig) -> str:
    """Return a cluster that group orders could move to."""
    active, _ = standing(rig)
    return CLUSTERS[(CLUSTERS.index(active) + 1) % len(CLUSTERS)]


def everything(rig: Rig) -> object:
    """Return all that a command could have changed."""
    groups = asked(rig, "/v1/groups")["groups"]
    kept = ("group", "active", "epoch", "prefixes", "members", "failover")
    specs = asked(rig, "/v1/clusters")["clusters"]
    failovers = asked(rig, "/v1/failovers")["failovers"]
    return (
        [{name: group[name] for name in kept} for group in groups],
        [(cluster["name"], cluster["intent"], cluster["state"]) for cluster in specs],
        [(failover["id"], failover["phase"]) for failover in failovers],
    )


@contextlib.contextmanager
def nothing_changes(rig: Rig) -> Iterator[None]:
    """Demand that clusters, groups, epochs and failovers are after the block as before it."""
    before = everything(rig)
    yield
    assert everything(rig) == before


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def blockers(rig: Rig, target: str) -> list[str]:
    """Return the checks that stand in the way of a move to `target`."""
    members = asked(rig, "/v1/groups/orders")["clusters"]
    found: list[str] = next(m["if_promoted"]["blockers"] for m in members if m["cluster"] == target)
    return found


def is_movable(rig: Rig, target: str) -> Callable[[], bool]:
    return lambda: not blockers(rig, target)


# --- what was asked for ---------------------------------------------------------------------------

PROMOTE = ("clusters", "promote", "{passive}", "--group", "orders")
UNKNOWN_FAILOVER = "f-0123456789abcdef"


@pytest.mark.parametrize(
    ("arguments", "code", "says", "then"),
    [
        pytest.param(
            ("clusters", "promote", "mars", "--group", "orders", "--yes"),
            3,
            "there is no cluster 'mars'",
            "clusters there are: ap-south, eu-west, us-east",
            id="unknown cluster",
        ),
        pytest.param(
            ("clusters", "promote", "{passive}", "--group", "carts", "--yes"),
            3,
            "there is no group 'carts'",
            "groups there are: orders",
            id="unknown group",
        ),
        pytest.param(
            (*PROMOTE, "--yes", "--expect-epoch", "99"),
            6,
            "not in epoch 99 as you expected",
            "mesh groups show orders",
            id="stale epoch",
        ),
        pytest.param(
            (*PROMOTE, "--yes", "--waive", "weather"),
            2,
            "there is no check weather",
            "checks are: automation, cool_down,",
            id="unknown check",
        ),
        pytest.param(
            PROMOTE,
            2,
            "this needs a confirmation and there is no terminal to ask on",
            "pass --yes",
            id="no terminal",
        ),
        pytest.param(
            (*PROMOTE, "--yes", "--api", "https://127.0.0.1:{free_port}"),
            7,
            "cannot reach the automation API at https://127.0.0.1:{free_port}: connection refused",
            "is a coordinator running there?",
            id="unreachable API",
        ),
        pytest.param(
            ("failovers", "abort", UNKNOWN_FAILOVER),
            3,
            f"there is no failover '{UNKNOWN_FAILOVER}'",
            "mesh failovers list",
            id="abort of an unknown failover",
        ),
        pytest.param(
            ("failovers", "resume", UNKNOWN_FAILOVER),
            3,
            f"there is no failover '{UNKNOWN_FAILOVER}'",
            "mesh failovers list",
            id="resume of an unknown failover",
        ),
    ],
)
def test_a_wrong_request_is_refused(
    rig: Rig, mesh: Command, arguments: tuple[str, ...], code: int, says: str, then: str
) -> None:
    facts = {"passive": passive(rig), "free_port": free_ports(1)[0]}
    with nothing_changes(rig):
        ran = mesh(*(argument.format(**facts) for argument in arguments))

    ran.refused(code, says=says.format(**facts), then=then)
    assert ran.out == ""


def test_the_active_cluster_is_promoted_without_a_change(rig: Rig, mesh: Command) -> None:
    active, epoch = standing(rig)
    with nothing_changes(rig):
        ran = mesh.promote(active)

    said = f"no change: {active} is already active for orders (epoch {epoch})\n"
    assert (ran.code, ran.out) == (0, said)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefixes", "says"),
    [
        (
            "[/orders/eu/]",
            "prefix '/orders/eu/' of group carts overlaps '/orders/' of group orders",
        ),
        ("[/]", "of group carts overlaps"),
        ("[/mesh/carts/]", "overlaps '/mesh/' of MeshKit itself"),
        ("[/carts/, /carts/eu/]", "overlaps '/carts/' of the same group carts"),
    ],
)
def test_a_group_whose_prefixes_overlap_is_refused(
    rig: Rig, mesh: Command, tmp_path: Path, prefixes: str, says: str
) -> None:
    file = tmp_path / "carts.yaml"
    file.write_text(f"name: carts\nprefixes: {prefixes}\nmembers: [us-east, eu-west]\n")
    with nothing_changes(rig):
        ran = mesh("groups", "apply", "-f", str(file))

    ran.refused(2, says=says, then="choose prefixes that share no key with another's")


def test_what_was_applied_before_a_refusal_is_told(rig: Rig, mesh: Command, tmp_path: Path) -> None:
    """One file, two groups: the first is made, and the refusal of the second does not hide it."""
    members = "members: [us-east, eu-west]\n"
    file = tmp_path / "groups.yaml"
    file.write_text(
        f"name: parcels\nprefixes: [/parcels/]\n{members}"
        f"---\nname: carts\nprefixes: [/orders/eu/]\n{members}"
    )

    ran = mesh("groups", "apply", "-f", str(file))

    assert ran.code == 2
    assert "State: applied before it: parcels created; nothing after it was" in ran.err
    assert NOTHING_CHANGED not in ran.err
    names = {group["group"] for group in asked(rig, "/v1/groups")["groups"]}
    assert "parcels" in names
    assert "carts" not in names


@pytest.mark.parametrize(
    "arguments",
    [("config", "validate"), ("groups", "apply", "-f"), ("replicator", "run", "-f")],
    ids=" ".join,
)
def test_broken_yaml_is_refused_with_its_place(
    rig: Rig, mesh: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("name: carts\nprefixes: [/carts/\nmembers: us-east: 1\n")
    with nothing_changes(rig):
        ran = mesh(*arguments, str(file))

    ran.refused(2, says=f"{file}:3:8: not valid YAML", then="correct the file")


@pytest.mark.parametrize(
    "arguments", [("config", "validate"), ("replicator", "run", "-f")], ids=" ".join
)
def test_lease_times_that_are_not_safe_are_refused(
    rig: Rig, mesh: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """A regional lease as long as that of coordination could outlive its permission."""
    original = rig.sandbox.layout.cluster_dir("us-east") / "us-east-replicator-1.yaml"
    timing = "profile: fast\n  coordination_ttl_ms: 5000\n  regional_ttl_ms: 5000\n"
    file = tmp_path / "replicator.yaml"
    file.write_text(original.read_text().replace("profile: fast\n", timing))
    with nothing_changes(rig):
        ran = mesh(*arguments, str(file))

    ran.refused(2, says="the lease times do not fit each other: safe: 2*Tr", then="profile")


# --- who asks -------------------------------------------------------------------------------------


def identity(files: CertificateFiles) -> tuple[str, ...]:
    return "--cert", str(files.cert), "--key", str(files.key)


@pytest.mark.parametrize(
    "arguments",
    [
        ("clusters", "list"),
        (*PROMOTE, "--yes"),
        ("failovers", "abort", UNKNOWN_FAILOVER),
    ],
    ids=["read", "promote", "abort"],
)
@pytest.mark.parametrize("wrong", ["expired", "foreign"])
def test_a_certificate_that_is_not_accepted_is_named(
    rig: Rig, mesh: Command, tmp_path: Path, wrong: str, arguments: tuple[str, ...]
) -> None:
    """The server hangs up without a word; nothing is in doubt all the same."""
    authority = create_ca(rig.sandbox.layout.pki if wrong == "expired" else tmp_path / "their-pki")
    days = -1 if wrong == "expired" else 1
    files = issue(authority, "operator", "mallory", valid_days=days, directory=tmp_path / "certs")
    facts = {"passive": passive(rig)}
    with nothing_changes(rig):
        ran = mesh(*(argument.format(**facts) for argument in arguments), *identity(files))

    why = {"expired": "expired at 2", "foreign": "was not issued by the CA in"}[wrong]
    ran.refused(
        4,
        says=f"did not accept our certificate: {files.cert} {why}",
        then="issue a new certificate, or name another with --cert and --key",
    )


def test_a_reader_may_look_and_not_move(rig: Rig, mesh: Command, tmp_path: Path) -> None:
    authority = create_ca(rig.sandbox.layout.pki)
    rita = identity(issue(authority, "reader", "rita", directory=tmp_path / "certs"))

    assert mesh("groups", "list", *rita).code == 0
    with nothing_changes(rig):
        ran = mesh.promote(passive(rig), *rita)

    ran.refused(4, says="reader/rita may not POST", then="a certificate of role operator")


# --- failovers under way --------------------------------------------------------------------------


def watched(mesh: Command, rig: Rig, failover: str) -> str:
    """Follow a failover to its end and return its phase; the exit code must be its own."""
    ran = mesh("failovers", "watch", failover)
    phase = asked(rig, f"/v1/failovers/{failover}")["phase"]
    assert {"succeeded": 0, "rolled_back": 8}.get(phase) == ran.code, ran.err
    return str(phase)


def test_a_detached_promotion_prints_its_id_and_goes_on(rig: Rig, mesh: Command) -> None:
    target = passive(rig)
    _, epoch = standing(rig)
    until(is_movable(rig, target), f"{target} does not get ready")

    ran = mesh.promote(target, "--detach")

    assert ran.code == 0, ran.err
    assert watched(mesh, rig, ran.out.strip()) == "succeeded"
    assert standing(rig) == (target, epoch + 1)


def test_after_the_pivot_there_is_no_abort_and_nothing_to_resume(rig: Rig, mesh: Command) -> None:
    target = passive(rig)
    source, epoch = standing(rig)
    until(is_movable(rig, target), f"{target} does not get ready")
    rig.arm("agent.open.received", "stop")
    failover = mesh.promote(target, "--detach").out.strip()
    until(lambda: rig.hit("agent.open.received"), "nobody was asked to open")

    aborted = mesh("failovers", "abort", failover)
    resumed = mesh("failovers", "resume", failover)

    aborted.refused(
        3,
        says=f"has moved authority to {target} (epoch {epoch + 1}); it can only go forward",
        then=f"mesh clusters failback {source}",
    )
    resumed.refused(3, says="is not held but ", then=f"mesh failovers show {failover}")
    opener = rig.hit("agent.open.received")
    assert opener is not None
    opener.resume()
    assert watched(mesh, rig, failover) == "succeeded"
    with nothing_changes(rig):
        ended = mesh("failovers", "abort", failover)
    ended.refused(3, says="has already ended: succeeded", then="mesh groups show orders")


def test_a_timeout_ends_the_watching_and_not_the_failover(rig: Rig, mesh: Command) -> None:
    target = passive(rig)
    _, epoch = standing(rig)
    until(is_movable(rig, target), f"{target} does not get ready")
    rig.arm("agent.drain.received", "stop")

    ran = mesh.promote(target, "--wait", "--timeout", "2s")

    failover = asked(rig, "/v1/groups/orders")["last_failover"]["id"]
    assert ran.code == 5, ran.err
    assert f"still going on after 2.0s\nreattach with: mesh failovers watch {failover}" in ran.err
    assert f"{failover} is advancing at drain" in ran.err
    drainer = rig.hit("agent.drain.received")
    assert drainer is not None
    drainer.resume()
    phase = watched(mesh, rig, failover)
    assert standing(rig)[1] == (epoch + 1 if phase == "succeeded" else epoch)


# --- etcds that are gone --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill", pytest.param("pause", marks=pytest.mark.chaos)])
async def test_a_coordination_etcd_without_quorum_is_said_and_survived(
    rig: Rig, mesh: Command, fault: str
) -> None:
    """Writes stop when the permits run out, within `Tr`, and go on by themselves."""
    etcd = rig.sandbox.coordination.members[0]
    async with loaded(rig.sandbox, guarded=2, bare=1) as load:
        await ready(load)
        before = await asyncio.to_thread(standing, rig)
        target = await asyncio.to_thread(passive, rig)
        await writes_go_on(load)
        try:
            getattr(etcd, fault)()
            refusals = await asyncio.gather(
                asyncio.to_thread(mesh.promote, target),
                asyncio.to_thread(mesh, "groups", "list"),
            )
            async with asyncio.timeout(DEADLINE_S):
                while load.gates[0].active is not None:
                    await asyncio.sleep(0.02)
        finally:
            etcd.resume()
            if not etcd.is_running:
                etcd.start()
        await asyncio.to_thread(etcd.wait_ready)

        for ran in refusals:
            ran.refused(
                7,
                says="the coordination etcd does not answer: ",
                then="check its members and their quorum",
            )
        await writes_go_on(load)
        assert await asyncio.to_thread(standing, rig) == before
        await ready(load)
        assert (await asyncio.to_thread(mesh.promote, target)).code == 0
        assert await asyncio.to_thread(standing, rig) == (target, before[1] + 1)
        await writes_go_on(load)
        assert await judged(load) == []


def test_a_region_without_its_etcd_is_not_promoted(rig: Rig, mesh: Command) -> None:
    """The preflight names the check; when the etcd is back, nothing stands in the way."""
    target = passive(rig)
    etcd = rig.sandbox.etcd(target)
    until(is_movable(rig, target), f"{target} does not get ready")
    with nothing_changes(rig):
        etcd.kill()
        try:
            until(lambda: "target_healthy" in blockers(rig, target), "nobody noticed")
            ran = mesh.promote(target)
        finally:
            etcd.start()
        etcd.wait_ready()
        until(is_movable(rig, target), f"{target} did not come back")

    ran.refused(
        3,
        says=f"target_healthy: {target} does not report: no replicator of it leads",
        then="mend what failed",
    )
    assert mesh.promote(target, "--dry-run").code == 0
