"""Runs the mesh's own processes on this machine: replicators and coordinators.

Like `etcd.py`: a process is started in a session of its own, outlives whoever started it, and is
found again by a pid file. It is signalled only when pid, start time and command line all say that
it is the one that was started from here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import attrs

_POLL_S = 0.02
_STOP_POLL_S = 0.001
_KILL_TIMEOUT_S = 10.0
_STANDING = frozenset("TtZXx")
"""States of a thread that runs no more: stopped, traced, or dead (proc(5))."""


@attrs.define(kw_only=True, eq=False)
class MeshProcess:
    """One `mesh replicator run` or `mesh coordinator run`. Methods block."""

    name: str
    command: tuple[str, ...]
    """Arguments after `mesh`."""
    directory: Path
    environ: Mapping[str, str] = attrs.field(factory=dict)
    """Added to this process's own environment, on every start."""
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    @property
    def log_file(self) -> Path:
        """What the process logged, over all its runs."""
        return self.directory / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """Where the process id and the start time of the running process are kept."""
        return self.directory / f"{self.name}.pid"

    @property
    def pid(self) -> int | None:
        """The process id, while it runs; a paused process runs."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid_text, started = self.pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        pid = int(pid_text)
        if start_time(pid) != started or not self._is_ours(pid):
            return None
        return pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists."""
        return self.pid is not None

    def arguments(self) -> list[str]:
        """Return the whole command line."""
        return [sys.executable, "-m", "cli.main", *self.command]

    def start(self) -> None:
        """Start the process; it is not ready yet when this returns."""
        assert not self.is_running, "a process runs once"
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.arguments(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environ},
            )
        pid = self._process.pid
        self.pid_file.write_text(f"{pid} {start_time(pid)}")

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM); a paused one is woken to hear it."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the process in an orderly way, or by force after `timeout_s`."""
        self.terminate()
        if not self.wait_gone(timeout_s):
            self.kill()

    def kill(self) -> None:
        """End the process at once (SIGKILL), as a crash would."""
        self._signal(signal.SIGKILL)
        self.wait_gone(_KILL_TIMEOUT_S)

    def pause(self) -> None:
        """Freeze the process (SIGSTOP) and wait until it stands; its sockets stay open."""
        pid = self.pid
        if pid is not None and self._signal(signal.SIGSTOP):
            wait_stopped(pid)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop the process if it runs, and start it again."""
        self.stop()
        self.start()

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until the process has ended; return whether it has."""
        deadline = time.monotonic() + timeout_s
        while self.is_running:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        self._process = None
        self.pid_file.unlink(missing_ok=True)
        return True

    def last_words(self) -> str:
        """Return the last error in the log, or else its last line."""
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        errors = [line for line in lines if line.startswith("Error: ")]
        return (errors or lines or ["it printed nothing"])[-1]

    def _is_ours(self, pid: int) -> bool:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return [part.encode() for part in self.command] == command[-len(self.command) - 1 : -1]

    def _signal(self, number: signal.Signals) -> bool:
        pid = self.pid
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True


def wait_stopped(pid: int, *, timeout_s: float = 10.0) -> None:
    """Wait until every thread of a process that was sent SIGSTOP stands still, or it has ended.

    The signal is taken by one thread; the others run on until each is told, on a busy machine long
    enough to answer a request (signal(7), "stop").
    """
    deadline = time.monotonic() + timeout_s
    while _moves(pid):
        if time.monotonic() > deadline:
            msg = f"process {pid} did not stop within {timeout_s:g} s of SIGSTOP"
            raise TimeoutError(msg)
        time.sleep(_STOP_POLL_S)


def _moves(pid: int) -> bool:
    try:
        stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return Path(f"/proc/{pid}").exists()
    return any(stat.rpartition(")")[2].split()[0] not in _STANDING for stat in stats)


def start_time(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The second field is the program's name in parentheses, and may hold spaces (proc(5)).
    return stat.rpartition(")")[2].split()[19]
