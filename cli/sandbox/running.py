"""What `mesh sandbox` does to a sandbox: find it, start it with progress, stay with it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from cli.processes import run_interruptible
from cli.render import Output
from cli.sandbox import plan
from cli.sandbox.sandbox import START_TIMEOUT_MS, Sandbox
from cli.session import Session
from cli.settings import state_home
from meshkit.errors import Conflict, MeshError

_DEFAULT_CLUSTERS = "us-east,eu-west,ap-south"
_DEFAULT_GROUPS = ("orders=/orders/",)
_LOOK_S = 1.0


def described(directory: Path | None, options: Mapping[str, Any]) -> Sandbox:
    """Return the sandbox that `up` was asked for; what is not said is as it was, or the default.

    Raises:
        InvalidInput, InvalidConfig, Conflict, NotFound: as `Sandbox.create`.
    """
    folder = directory or default_directory()
    saved = plan.load_state(folder)
    fields: dict[str, Any] = attrs.asdict(saved[0]) if saved else {}
    if options.get("clusters") or not saved:
        fields["clusters"] = plan.parse_clusters(options.get("clusters") or _DEFAULT_CLUSTERS)
    if options.get("groups") or not saved:
        fields["groups"] = plan.parse_groups(options.get("groups") or _DEFAULT_GROUPS)
    for name in ("timing", "coordination_members", "replicators", "coordinators"):
        if options.get(name):
            fields[name] = options[name] if name == "timing" else int(options[name])
    return Sandbox.create(folder, **fields)


def found(directory: Path | None) -> Sandbox:
    """Return the sandbox in `directory`, or in the default one.

    Raises:
        NotFound: there is none.
    """
    return Sandbox.load(directory or default_directory())


def default_directory() -> Path:
    """Return where the sandbox lives unless told otherwise."""
    return state_home(os.environ) / "sandbox"


def start(session: Session, made: Sandbox) -> None:
    """Start a sandbox, telling each step; end what was started if it does not get ready.

    Raises:
        Unreachable: something did not get ready.
        Conflict: another `up` is at work in the directory.
    """
    timeout_ms = session.settings.timeout_ms(START_TIMEOUT_MS)
    steps = StepLines(session.output)
    with _locked(made.directory):
        were_running = bool(made.running())
        try:
            run_interruptible(made.start(report=steps.begin, timeout_ms=timeout_ms))
        except BaseException:
            if not were_running:
                asyncio.run(made.stop())
                session.output.note("everything that had been started was ended again")
            raise
        steps.end()


def stay(session: Session, made: Sandbox) -> int:
    """Wait for Ctrl-C or SIGTERM and end everything; or until something else has ended it all."""
    ended = signal.sigtimedwait
    numbers = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        while ended(numbers, _LOOK_S) is None:
            if not made.running():
                session.output.note("everything has been ended from elsewhere")
                return 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    session.output.note("ending everything")
    asyncio.run(made.stop())
    return 0


def stop(made: Sandbox) -> list[str]:
    """End every process; return the names of those that ran."""
    running = made.running()
    asyncio.run(made.stop())
    return running


def status(made: Sandbox) -> dict[str, Any]:
    """Return which processes run, and what is wrong with the API (nothing: it is ready)."""
    processes = {member.name: member.pid for member in made.etcd_processes()}
    processes |= {process.name: process.pid for process in made.mesh_processes()}
    problem = asyncio.run(_api_problem(made))
    return {
        "ok": all(processes.values()) and not problem,
        "processes": processes,
        "api": problem,
    }


async def _api_problem(made: Sandbox) -> str:
    try:
        async with made.api(timeout_ms=2_000) as api:
            body = await api.get("/readyz")
    except MeshError as error:
        return str(error)
    return "; ".join(body.get("problems", ()))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another mesh sandbox up is at work in {directory}") from error
        yield


@attrs.define
class StepLines:
    """Tells numbered steps on stderr, each with the time it took, when it has ended."""

    output: Output
    _began: float = attrs.field(factory=time.monotonic)
    _step_began: float = 0.0
    _current: tuple[int, int, str] | None = None

    def begin(self, number: int, total: int, name: str) -> None:
        """Note that a step begins, and tell of the one before."""
        self.end()
        self._current = (number, total, name)
        self._step_began = time.monotonic()

    def end(self) -> None:
        """Tell of the step under way, which has ended."""
        if self._current is None:
            return
        number, total, name = self._current
        now = time.monotonic()
        self.output.note(
            f"{number:>2}/{total} {name:<30} ok {now - self._step_began:.1f}s"
            f" (total {now - self._began:.1f}s)"
        )
        self._current = None
