"""Named places at which a test may have this process killed or stopped, exactly once.

Off unless `MESH_FAILPOINTS` names a folder when the process starts. A failpoint is armed by a file
of its name in that folder, holding the action: `kill`, `stop` or `exit`. The first process that
reaches it takes the file away and acts, so a failpoint fires once however many processes pass it
and whoever is restarted afterwards runs on. (The idea is etcd's gofail.)
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

VARIABLE = "MESH_FAILPOINTS"

_folder = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "exit": signal.SIGTERM}


def reach(name: str) -> None:
    """Act if the failpoint is armed; otherwise, and in production, do nothing."""
    if _folder is None:
        return
    armed = _folder / name
    taken = _folder / f"{name}.taken-by-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        armed.rename(taken)
        os.kill(os.getpid(), _SIGNALS[taken.read_text().strip()])


def arm(folder: Path, name: str, action: str = "kill") -> None:
    """Arm a failpoint for whichever process reaches it first."""
    assert action in _SIGNALS, f"an action is one of {', '.join(_SIGNALS)}"
    staged = folder / f".{name}"
    staged.write_text(action)
    staged.rename(folder / name)


def taken_by(folder: Path, name: str) -> int | None:
    """Return the pid of the process in which the failpoint fired, or None."""
    for path in folder.glob(f"{name}.taken-by-*"):
        return int(path.name.rpartition("-")[2])
    return None
