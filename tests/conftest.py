"""Real etcd processes for the tests that ask for them: one per installed version and session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from cli.sandbox.etcd import EtcdFlags, EtcdProcess
from meshkit.etcd_binary import EtcdBinary, all_etcds

settings.register_profile("mesh", deadline=None)
settings.load_profile("mesh")
"""What a test takes is not what it claims; a machine may be busy."""

FAST_FLAGS = EtcdFlags(heartbeat_ms=20, election_ms=200, is_fsync_off=True)
"""Elections take a fraction of a second and a lease may be as short as one."""

ETCDS = all_etcds()

EtcdStarter = Callable[..., EtcdProcess]


def etcd_params(*, newest_only: bool = False) -> list[object]:
    """One marked parameter per etcd version; a skipped one when there is no etcd."""
    if not ETCDS:
        skip = pytest.mark.skip(reason="no etcd is installed")
        return [pytest.param(None, id="no-etcd", marks=[pytest.mark.etcd, skip])]
    chosen = ETCDS[-1:] if newest_only else ETCDS
    return [pytest.param(b, id=f"etcd-{b.version}", marks=pytest.mark.etcd) for b in chosen]


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Let no test log into a stream of the one before: commands send their log where they ran."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def etcd_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EtcdProcess]]:
    """Give the session's shared process for a binary, started when first asked for."""
    running: dict[str, EtcdProcess] = {}

    def process_for(binary: EtcdBinary) -> EtcdProcess:
        if binary.version not in running:
            directory = tmp_path_factory.mktemp(f"etcd-{binary.version}")
            process = EtcdProcess(binary=binary, directory=directory, flags=FAST_FLAGS)
            running[binary.version] = process
            process.start()
            process.wait_ready()
        return running[binary.version]

    yield process_for
    for process in running.values():
        process.stop(timeout_s=3.0)


@pytest.fixture(params=etcd_params())
def etcd_binary(request: pytest.FixtureRequest) -> EtcdBinary:
    """Each installed etcd in turn."""
    return request.param


@pytest.fixture
def shared_etcd(etcd_binary: EtcdBinary, etcd_pool: EtcdStarter) -> EtcdProcess:
    """A running member that other tests use too: keep to keys of your own, do not stop it."""
    return etcd_pool(etcd_binary)


@pytest.fixture
def start_etcd(tmp_path: Path) -> Iterator[EtcdStarter]:
    """Start a member of the test's own with `(binary, flags=..., **fields)`."""
    started: list[EtcdProcess] = []

    def start(
        binary: EtcdBinary, *, flags: EtcdFlags = FAST_FLAGS, **fields: object
    ) -> EtcdProcess:
        directory = tmp_path / f"etcd-{len(started)}"
        process = EtcdProcess(binary=binary, directory=directory, flags=flags, **fields)
        started.append(process)
        process.start()
        process.wait_ready()
        return process

    yield start
    for process in started:
        process.resume()
        process.kill()


@pytest.fixture
def fresh_etcd(etcd_binary: EtcdBinary, start_etcd: EtcdStarter) -> EtcdProcess:
    """A running member of the test's own, for it to kill, pause and restart."""
    return start_etcd(etcd_binary)
