"""A whole sandbox of real processes for a module of tests, with failpoints that can be armed."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from cli.sandbox.process import MeshProcess
from cli.sandbox.sandbox import Sandbox
from meshkit import failpoints

CLUSTERS = ("us-east", "eu-west", "ap-south")


@attrs.frozen
class Rig:
    """A started sandbox and the folder in which its failpoints are armed."""

    sandbox: Sandbox
    armed: Path

    pids: dict[int, MeshProcess] = attrs.field(factory=dict)

    def arm(self, name: str, action: str = "kill") -> None:
        for process in self.sandbox.mesh_processes():
            if process.pid is not None:
                self.pids[process.pid] = process
        failpoints.arm(self.armed, name, action)

    def disarm(self) -> None:
        for path in self.armed.iterdir():
            path.unlink()

    def hit(self, name: str) -> MeshProcess | None:
        """Return the process in which the failpoint fired, or None."""
        pid = failpoints.taken_by(self.armed, name)
        return self.pids[pid] if pid is not None else None

    def siblings(self, process: MeshProcess) -> list[MeshProcess]:
        """Return every process that does the same job, itself included."""
        for replicators in self.sandbox.replicators.values():
            if process in replicators:
                return list(replicators)
        return list(self.sandbox.coordinators)

    def revive(self) -> None:
        """Start again whatever is not running."""
        for process in self.sandbox.mesh_processes():
            if not process.is_running:
                process.start()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("mesh")
    armed = directory / "failpoints"
    armed.mkdir()
    sandbox = Sandbox.create(
        directory / "sandbox",
        clusters=CLUSTERS,
        timing="fast",
        environ={failpoints.VARIABLE: str(armed)},
    )
    try:
        asyncio.run(sandbox.start())
        yield Rig(sandbox, armed)
    finally:
        asyncio.run(sandbox.stop())
        if not os.environ.get("MESH_E2E_KEEP"):
            sandbox.purge()


@pytest.fixture(autouse=True)
def restored(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave no process stopped or dead and no failpoint armed for the test after this one."""
    yield
    if "rig" in request.fixturenames:
        rig: Rig = request.getfixturevalue("rig")
        for member in rig.sandbox.etcd_processes():
            if not member.is_running:
                member.start()
                member.wait_ready()
        for process in rig.sandbox.mesh_processes():
            process.resume()
        rig.revive()
        rig.disarm()
