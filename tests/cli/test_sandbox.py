"""The sandbox's plan, its process handles, and its commands without the mesh's processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.sandbox import plan, readiness
from cli.sandbox.ports import free_ports, is_free
from cli.sandbox.process import MeshProcess, start_time
from cli.sandbox.sandbox import Sandbox
from meshkit.config import check_private, load_coordinator_config, load_replicator_config
from meshkit.errors import Conflict, InvalidConfig, InvalidInput, NotFound
from meshkit.etcd_binary import EtcdBinary
from tests.cli import samples
from tests.cli.conftest import Mesh

BINARY = EtcdBinary(etcd=Path("etcd"), etcdctl=None, etcdutl=None, version="3.5.1")


def make(directory: Path, **options: object) -> Sandbox:
    return Sandbox.create(directory, binary=BINARY, **options)  # type: ignore[arg-type]


def prepared(directory: Path, **options: object) -> Sandbox:
    sandbox = make(directory, **options)
    sandbox._prepare()
    return sandbox


class TestPlan:
    def test_groups_are_read_from_the_command_line(self) -> None:
        assert plan.parse_groups(["orders=/orders/,/carts/", "demo=/registry/"]) == {
            "orders": ("/orders/", "/carts/"),
            "demo": ("/registry/",),
        }

    @pytest.mark.parametrize("text", ["orders", "orders=", "ORDERS=/o/", "=/o/"])
    def test_what_is_no_group_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidInput):
            plan.parse_groups([text])

    def test_the_configurations_written_are_those_the_processes_read(self, tmp_path: Path) -> None:
        made = prepared(tmp_path, clusters=("us-east", "eu-west"))

        folder = made.layout.cluster_dir("eu-west")
        replicator = load_replicator_config(folder / "eu-west-replicator-2.yaml")
        coordinator = load_coordinator_config(made.layout.coordinators_dir / "coordinator-1.yaml")

        assert (replicator.cluster, replicator.name) == ("eu-west", "eu-west-replicator-2")
        assert replicator.regional_etcd.endpoints == made.etcd_config("eu-west").endpoints
        assert coordinator.coordination_etcd.endpoints == made.etcd_config().endpoints
        assert coordinator.listen.port == made.ports["coordinator-1:api"]

    def test_behind_proxies_all_that_lies_elsewhere_is_reached_through_them(
        self, tmp_path: Path
    ) -> None:
        """Its own etcd a replicator reaches directly: that link no fault between regions breaks."""
        made = prepared(tmp_path, clusters=("us-east", "eu-west"), is_behind_proxies=True)

        folder = made.layout.cluster_dir("eu-west")
        replicator = load_replicator_config(folder / "eu-west-replicator-2.yaml")
        coordinator = load_coordinator_config(made.layout.coordinators_dir / "coordinator-1.yaml")
        told = plan.cluster_bodies(made.layout, made.ports)[1]["replication_endpoints"]

        for config, place in ((replicator, "eu-west"), (coordinator, "us-east")):
            proxied = made.ports[plan.proxy_of("coordination-1:client", seen_from=place)]
            assert config.coordination_etcd.endpoints == (f"https://127.0.0.1:{proxied}",)
        assert replicator.regional_etcd.endpoints == made.etcd_config("eu-west").endpoints
        front = made.ports[plan.proxy_of("eu-west-replicator-2:replication")]
        assert told[1] == f"127.0.0.1:{front}"
        assert replicator.listen.port != front

    def test_ports_are_kept_and_only_a_taken_one_is_replaced(self, tmp_path: Path) -> None:
        first = prepared(tmp_path).ports
        with socket.socket() as other:
            other.bind(("127.0.0.1", first["us-east-etcd:client"]))
            other.listen()
            second = prepared(tmp_path).ports

        changed = {name for name in first if first[name] != second[name]}

        assert changed == {"us-east-etcd:client"}

    def test_members_of_a_larger_coordination_etcd_do_not_move(self, tmp_path: Path) -> None:
        made = prepared(tmp_path, coordination_members=3)
        with socket.socket() as other:
            other.bind(("127.0.0.1", made.ports["coordination-2:peer"]))
            other.listen()
            with pytest.raises(Conflict, match="coordination-2:peer is in use"):
                prepared(tmp_path, coordination_members=3)

    def test_certificates_are_made_once(self, tmp_path: Path) -> None:
        made = prepared(tmp_path)
        before = made.certificate("cluster", "us-east").cert.read_bytes()

        assert prepared(tmp_path).certificate("cluster", "us-east").cert.read_bytes() == before
        check_private(made.certificate("operator", "sandbox").key)

    def test_another_shape_in_the_same_directory_is_refused(self, tmp_path: Path) -> None:
        prepared(tmp_path, clusters=("us-east", "eu-west"))

        with pytest.raises(Conflict, match="there is another sandbox in"):
            make(tmp_path, clusters=("us-east",))

    def test_a_damaged_state_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "state.json").write_text("{")

        with pytest.raises(InvalidConfig, match="is damaged"):
            Sandbox.load(tmp_path)

    def test_no_sandbox_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            Sandbox.load(tmp_path)

    def test_ports_are_different(self) -> None:
        ports = free_ports(50)

        assert len(set(ports)) == 50
        assert is_free(ports[0])

    def test_a_port_that_was_taken_is_taken_until_its_process_ends(self) -> None:
        port = free_ports(1)[0]
        asking = f"from cli.sandbox.ports import hold; print(hold({port}))"

        asked = subprocess.run(
            [sys.executable, "-c", asking], check=True, capture_output=True, text=True
        )

        assert is_free(port)
        assert asked.stdout == "False\n", asked.stderr


SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"


class Sleeper(MeshProcess):
    """A stand-in for a process of the mesh that only waits."""

    def arguments(self) -> list[str]:
        return [sys.executable, "-c", SLEEPER, *self.command]


def until_it_runs(process: Sleeper) -> None:
    deadline = time.monotonic() + 60
    while "ready" not in process.log_file.read_text():
        assert time.monotonic() < deadline, "it never ran"
        time.sleep(0.01)


@pytest.fixture
def sleeper(tmp_path: Path):
    process = Sleeper(name="s", command=("replicator", "run", "-f", "x"), directory=tmp_path)
    yield process
    process.kill()


class TestMeshProcess:
    def test_it_is_found_again_by_its_pid_file(self, sleeper: Sleeper) -> None:
        """By its command line too, which shows only some time after the program was replaced."""
        sleeper.start()
        until_it_runs(sleeper)
        again = Sleeper(name="s", command=sleeper.command, directory=sleeper.directory)

        assert again.pid == sleeper.pid

    def test_it_is_stopped_even_when_paused(self, sleeper: Sleeper) -> None:
        sleeper.start()
        sleeper.pause()

        sleeper.stop()

        assert not sleeper.is_running
        assert not sleeper.pid_file.exists()

    def test_a_pid_that_now_belongs_to_another_is_left_alone(self, sleeper: Sleeper) -> None:
        other = subprocess.Popen([sys.executable, "-c", SLEEPER])
        try:
            sleeper.pid_file.write_text(f"{other.pid} {start_time(other.pid)}")
            assert sleeper.pid is None

            sleeper.pid_file.write_text(f"{other.pid} 1")
            sleeper.kill()
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()

    def test_the_last_error_is_what_it_said_last(self, sleeper: Sleeper) -> None:
        sleeper.log_file.write_text("Error: no such file\nNext:  look\n")

        assert sleeper.last_words() == "Error: no such file"

    def test_start_time_of_nobody_is_empty(self) -> None:
        assert start_time(2**22 + 1) == ""
        assert start_time(os.getpid()).isdigit()


class TestReadiness:
    def test_a_group_without_permit_is_not_ready(self) -> None:
        group = samples.GROUP
        bare = group | {"clusters": [group["clusters"][0] | {"permit": False}]}

        assert readiness._permit_problem(group) == ""
        assert readiness._permit_problem(bare) == "us-east has no permit for orders yet"
        assert "not been opened" in readiness._permit_problem(group | {"active": None})

    def test_a_member_that_does_not_stream_is_not_ready(self) -> None:
        group = samples.GROUP
        streaming = group["clusters"][1] | {"stream": "streaming"}
        ready = group | {"clusters": [group["clusters"][0], streaming]}

        assert readiness._stream_problem(group) == "eu-west does not follow yet: unknown"
        assert readiness._stream_problem(ready) == ""


class TestCommands:
    def test_show_gives_endpoints_certificates_and_logs(self, mesh: Mesh, tmp_path: Path) -> None:
        made = prepared(tmp_path / "sandbox")

        ran = mesh("sandbox", "show", "--dir", str(made.directory), "-o", "json")

        shown = json.loads(ran.out)
        assert shown["clusters"]["us-east"]["endpoints"] == list(
            made.etcd_config("us-east").endpoints
        )
        assert shown["clusters"]["us-east"]["etcd"]["pid"] is None
        assert Path(shown["operator"]["key"]).is_file()

    def test_status_of_what_is_down_fails(self, mesh: Mesh, tmp_path: Path) -> None:
        made = prepared(tmp_path / "sandbox")

        ran = mesh("sandbox", "status", "--dir", str(made.directory), "-o", "json")

        assert ran.code == 1
        assert json.loads(ran.out)["ok"] is False

    def test_down_keeps_the_data_unless_purged(self, mesh: Mesh, tmp_path: Path) -> None:
        folder = prepared(tmp_path / "sandbox").directory

        assert mesh("sandbox", "down", "--dir", str(folder)).code == 0
        assert folder.is_dir()
        assert mesh("sandbox", "down", "--dir", str(folder), "--purge").code == 0
        assert not folder.exists()

    def test_no_sandbox_says_what_to_do(self, mesh: Mesh) -> None:
        ran = mesh("sandbox", "show")

        assert ran.code == 3
        assert "Next:  mesh sandbox up" in ran.err

    def test_the_default_sandbox_is_the_default_context(self, mesh: Mesh, tmp_path: Path) -> None:
        made = prepared(tmp_path / "state" / "meshkit" / "sandbox")

        ran = mesh("config", "show", "-o", "json")

        assert json.loads(ran.out)["api"] == list(made.context().api)
