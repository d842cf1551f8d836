"""A whole sandbox through the command line: up, promote, refusals, failback, down, up again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.sandbox.sandbox import Sandbox
from fencing.write_gate import WriteGate
from meshkit.names import ClusterName, group_name
from meshkit.store.txn import Put

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

KEY = b"/orders/1"


class Shell:
    """Runs `mesh` as an operator of one sandbox would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run one command line, demand its exit code, return what it printed to stdout."""
        config = ("--config", str(self.directory / "config.yaml"))
        ran = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments, *config],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == code, f"{arguments}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "-o", "json", code=code))

    def sandbox(self, *arguments: str, code: int = 0) -> str:
        # Not through __call__: the contexts file is not there before the first `up`.
        ran = subprocess.run(
            [sys.executable, "-m", "cli.main", "sandbox", *arguments, "--dir", str(self.directory)],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert ran.returncode == code, f"{arguments}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout


def processes_in(directory: Path) -> list[str]:
    """Every process whose command line names the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in command and "pytest" not in command:
            found.append(command)
    return found


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path / "sandbox")
    yield made
    if (made.directory / "state.json").exists():
        asyncio.run(Sandbox.load(made.directory).stop())


async def write(sandbox: Sandbox, value: bytes) -> str:
    """Write through the SDK and return the cluster that accepted it."""
    stores = {ClusterName(c): sandbox.store(c) for c in sandbox.spec.clusters}
    try:
        async with WriteGate(group_name("orders"), members=stores) as gate:
            return str((await gate.write((Put(KEY, value),), deadline_ms=20_000)).cluster)
    finally:
        for store in stores.values():
            await store.close()


async def read_all(sandbox: Sandbox) -> set[bytes]:
    values = set()
    for cluster in sandbox.spec.clusters:
        store = sandbox.store(cluster)
        try:
            item = await store.get(KEY)
            values.add(item.value if item else b"")
        finally:
            await store.close()
    return values


def test_a_newcomers_hour(shell: Shell) -> None:
    """Everything the README shows, on one sandbox, because starting one takes seconds."""
    shell.sandbox("up", "--clusters", "us-east,eu-west", "--group", "orders=/orders/", "--detach")
    sandbox = Sandbox.load(shell.directory)
    shell.sandbox("status")
    assert asyncio.run(write(sandbox, b"before")) == "us-east"

    names = [c["name"] for c in shell.json("clusters", "list")["clusters"]]
    assert sorted(names) == ["eu-west", "us-east"]
    shell("replication", "status")
    preview = shell.json("clusters", "promote", "eu-west", "-g", "orders", "--dry-run")["preview"]
    assert (preview["source"], preview["target"]) == ("us-east", "eu-west")

    done = shell.json("clusters", "promote", "eu-west", "-g", "orders", "--yes")
    assert (done["phase"], done["target"]) == ("succeeded", "eu-west")
    assert asyncio.run(write(sandbox, b"after")) == "eu-west"

    again = shell.json("clusters", "promote", "eu-west", "-g", "orders", "--yes")
    assert (again["changed"], again["failover"]) == (False, None)
    promote = ("clusters", "promote", "us-east", "-g", "orders", "--yes")
    shell(*promote, "--expect-epoch", str(done["epoch_before"]), code=6)
    shell("clusters", "promote", "mars", "-g", "orders", "--yes", code=3)
    shell("clusters", "promote", "eu-west", "-g", "nothing", "--yes", code=3)
    shell("failovers", "abort", done["id"], code=3)

    back = shell.json("clusters", "failback", "-g", "orders", "--yes")
    assert (back["phase"], back["target"]) == ("succeeded", "us-east")
    assert len(shell.json("failovers", "list")["failovers"]) == 2

    shell.sandbox("down")
    assert processes_in(shell.directory) == []
    shell("clusters", "list", code=7)

    shell.sandbox("up", "--detach")
    group = shell.json("groups", "show", "orders")
    assert (group["active"], group["epoch"]) == ("us-east", back["epoch_after"])
    assert asyncio.run(write(sandbox, b"later")) == "us-east"
    shell.sandbox("down", "--purge")
    assert not shell.directory.exists()
    assert processes_in(shell.directory) == []


async def test_the_python_interface_kills_and_restarts_single_processes(tmp_path: Path) -> None:
    """What the chaos runs do: any process by name, and the mesh goes on."""
    sandbox = Sandbox.create(tmp_path / "s", clusters=("us-east", "eu-west"), is_fsync_off=True)
    try:
        await sandbox.start()
        await asyncio.to_thread(sandbox.replicator("us-east", 1).kill)
        await asyncio.to_thread(sandbox.coordinator(1).kill)
        assert await write(sandbox, b"without them") == "us-east"

        sandbox.replicator("us-east", 1).start()
        sandbox.coordinator(1).start()
        await asyncio.to_thread(sandbox.etcd("eu-west").restart)
        async with asyncio.timeout(30):
            while await read_all(sandbox) != {b"without them"}:
                await asyncio.sleep(0.1)
    finally:
        await sandbox.stop()
    assert processes_in(sandbox.directory) == []


@pytest.mark.chaos
def test_the_demo_proves_what_it_claims(tmp_path: Path) -> None:
    """The whole demo in under a minute, leaving nothing behind."""
    ran = subprocess.run(
        [sys.executable, "-m", "cli.main", "demo", "--duration", "2s", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr + ran.stdout
    report = json.loads(ran.stdout)
    assert report["ok"] is True
    assert report["elapsed_s"] < 60
    assert len(report["failovers"]) == 4
