"""Runs etcd members on this machine's loopback: for the sandbox, the tests and the chaos runs.

A member is started in a session of its own and outlives whoever started it, unless stopped. It is
found again by the pid file in its directory, and no process is ever signalled that was not started
from that directory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import attrs

from cli.sandbox.ports import free_port
from cli.sandbox.process import wait_stopped
from meshkit.errors import Unreachable
from meshkit.etcd_binary import EtcdBinary

_LOOPBACK = "127.0.0.1"
_POLL_S = 0.02
_HEALTH_TIMEOUT_S = 1.0
_KILL_TIMEOUT_S = 10.0
_NO_FSYNC_SINCE = (3, 5)


@attrs.frozen(kw_only=True)
class EtcdServerTls:
    """What a member shows to its clients, and whom it accepts."""

    cert: Path
    key: Path
    trusted_ca: Path | None = None
    demands_client_cert: bool = False


@attrs.frozen(kw_only=True)
class EtcdFlags:
    """The settings of a member that differ between sandbox, tests and chaos."""

    heartbeat_ms: int = 100
    election_ms: int = 1000
    snapshot_count: int | None = None
    quota_bytes: int | None = None
    is_fsync_off: bool = False
    tls: EtcdServerTls | None = None
    extra: tuple[str, ...] = ()


@attrs.define(kw_only=True, eq=False)
class EtcdProcess:
    """One etcd member: its directory, its ports and, while it runs, its process.

    Ports stay the same over restarts. Methods block; call them in a thread from async code.
    """

    binary: EtcdBinary
    directory: Path
    name: str = "etcd"
    flags: EtcdFlags = EtcdFlags()
    client_port: int = attrs.field(factory=free_port)
    peer_port: int = attrs.field(factory=free_port)
    metrics_port: int = attrs.field(factory=free_port)
    initial_cluster: str = ""
    cluster_token: str = ""
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    @property
    def endpoint(self) -> str:
        """Where clients connect: host and port."""
        return f"{_LOOPBACK}:{self.client_port}"

    @property
    def client_url(self) -> str:
        """The same as a URL, as etcdctl wants it."""
        scheme = "http" if self.flags.tls is None else "https"
        return f"{scheme}://{self.endpoint}"

    @property
    def peer_url(self) -> str:
        """Where other members connect."""
        return f"http://{_LOOPBACK}:{self.peer_port}"

    @property
    def metrics_url(self) -> str:
        """Where `/metrics` and `/health` are served without TLS."""
        return f"http://{_LOOPBACK}:{self.metrics_port}"

    @property
    def data_dir(self) -> Path:
        """Where etcd keeps its data."""
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        """What etcd printed, over all its runs."""
        return self.directory / "etcd.log"

    @property
    def pid_file(self) -> Path:
        """Where the process id of the running member is kept."""
        return self.directory / "etcd.pid"

    @property
    def pid(self) -> int | None:
        """The process id, while the member runs; a paused member runs."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid = int(self.pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.data_dir).encode() in command.split(b"\0") else None

    @property
    def is_running(self) -> bool:
        """Whether the member's process exists."""
        return self.pid is not None

    def arguments(self) -> list[str]:
        """Return the command line."""
        flags = self.flags
        arguments = [
            *(str(self.binary.etcd), "--name", self.name),
            *("--data-dir", str(self.data_dir)),
            *("--listen-client-urls", self.client_url),
            *("--advertise-client-urls", self.client_url),
            *("--listen-peer-urls", self.peer_url),
            *("--initial-advertise-peer-urls", self.peer_url),
            *("--listen-metrics-urls", self.metrics_url),
            *("--initial-cluster", self.initial_cluster or f"{self.name}={self.peer_url}"),
            *("--initial-cluster-token", self.cluster_token or f"{self.name}-{self.peer_port}"),
            *("--heartbeat-interval", str(flags.heartbeat_ms)),
            *("--election-timeout", str(flags.election_ms)),
            *("--logger", "zap", "--enable-grpc-gateway=false"),
        ]
        if flags.snapshot_count is not None:
            arguments += ["--snapshot-count", str(flags.snapshot_count)]
        if flags.quota_bytes is not None:
            arguments += ["--quota-backend-bytes", str(flags.quota_bytes)]
        if flags.is_fsync_off and self.binary.version_parts >= _NO_FSYNC_SINCE:
            arguments.append("--unsafe-no-fsync")
        if flags.tls is not None:
            arguments += _tls_arguments(flags.tls)
        return [*arguments, *flags.extra]

    def start(self) -> None:
        """Start the member; it is not ready yet when this returns."""
        assert not self.is_running, "a member runs once"
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.arguments(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("ETCD")},
            )
        self.pid_file.write_text(str(self._process.pid))

    def wait_ready(self, *, timeout_s: float = 20.0) -> None:
        """Wait until the member answers linearizable reads.

        Raises:
            Unreachable: it ended, or did not get so far in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_healthy() or not self.is_running:
            if not self.is_running:
                raise Unreachable(f"etcd {self.name} ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise Unreachable(f"etcd {self.name} is not ready after {timeout_s:g} s")
            time.sleep(_POLL_S)

    def is_healthy(self) -> bool:
        """Ask the member whether it is healthy; that takes a quorum."""
        url = f"{self.metrics_url}/health"
        try:
            with urllib.request.urlopen(url, timeout=_HEALTH_TIMEOUT_S) as answer:  # noqa: S310 http
                return b'"true"' in answer.read()
        except (OSError, urllib.error.URLError):
            return False

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the member in an orderly way, or by force after `timeout_s`."""
        if not self._signal(signal.SIGTERM):
            return
        self._signal(signal.SIGCONT)
        if not self._wait_gone(timeout_s):
            self.kill()

    def kill(self) -> None:
        """End the member at once (SIGKILL), as a crash would."""
        if self._signal(signal.SIGKILL):
            self._wait_gone(_KILL_TIMEOUT_S)

    def pause(self) -> None:
        """Freeze the member (SIGSTOP) and wait until it stands; its sockets stay open."""
        pid = self.pid
        if pid is not None and self._signal(signal.SIGSTOP):
            wait_stopped(pid)

    def resume(self) -> None:
        """Let a paused member go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def restart(self, *, timeout_s: float = 20.0) -> None:
        """Stop the member if it runs, start it on the same data, and wait until it is ready."""
        self.stop()
        self.start()
        self.wait_ready(timeout_s=timeout_s)

    def _signal(self, number: signal.Signals) -> bool:
        pid = self.pid
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def _wait_gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.is_running:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        self._process = None
        self.pid_file.unlink(missing_ok=True)
        return True

    def _last_words(self) -> str:
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        return lines[-1] if lines else "it printed nothing"


@attrs.define(kw_only=True, eq=False)
class EtcdCluster:
    """Members of one etcd cluster on this machine."""

    members: list[EtcdProcess]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients connect, in the order of the members."""
        return tuple(member.endpoint for member in self.members)

    def start(self, *, timeout_s: float = 30.0) -> None:
        """Start every member and wait until all are ready."""
        for member in self.members:
            member.start()
        for member in self.members:
            member.wait_ready(timeout_s=timeout_s)

    def stop(self) -> None:
        """End every member."""
        for member in self.members:
            member.stop(timeout_s=3.0)


def plan_cluster(
    *,
    binary: EtcdBinary,
    directory: Path,
    name: str = "etcd",
    size: int = 3,
    flags: EtcdFlags | None = None,
) -> EtcdCluster:
    """Return a cluster of `size` members that is not started yet."""
    members = [
        EtcdProcess(
            binary=binary,
            directory=directory / f"{name}-{index}",
            name=f"{name}-{index}",
            flags=flags or EtcdFlags(),
        )
        for index in range(1, size + 1)
    ]
    initial_cluster = ",".join(f"{m.name}={m.peer_url}" for m in members)
    for member in members:
        member.initial_cluster = initial_cluster
        member.cluster_token = f"{name}-{members[0].peer_port}"
    return EtcdCluster(members=members)


def _tls_arguments(tls: EtcdServerTls) -> Sequence[str]:
    arguments = ["--cert-file", str(tls.cert), "--key-file", str(tls.key)]
    if tls.trusted_ca is not None:
        arguments += ["--trusted-ca-file", str(tls.trusted_ca)]
    if tls.demands_client_cert:
        arguments.append("--client-cert-auth")
    return arguments
