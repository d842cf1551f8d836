"""Who dialled: which process of this machine is at the other end of a loopback connection.

TLS hides from a proxy who its clients are, but on one machine the kernel knows: `/proc/net/tcp` has
the socket of each connection (proc(5)), and `/proc/PID/fd` the process that has it open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""gRPC dials from sockets that speak both families, so one connection may be in either."""
_LOCAL, _REMOTE, _INODE = 1, 2, 9
"""Columns of the tables."""


def process_of(port: int, *, dialled: int, among: Iterable[int]) -> int | None:
    """Return which of the processes `among` has connected from `port` to `dialled`, or None."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port, dialled)}
    return next((pid for pid in among if sockets & set(_open_in(pid))), None)


def _inodes(port: int, dialled: int) -> Iterator[str]:
    for table in _TABLES:
        with contextlib.suppress(FileNotFoundError):
            for line in table.read_text().splitlines()[1:]:
                columns = line.split()
                if (_port(columns[_LOCAL]), _port(columns[_REMOTE])) == (port, dialled):
                    yield columns[_INODE]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _open_in(pid: int) -> Iterator[str]:
    """Yield what a process has open; nothing if it has ended meanwhile."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(entry.readlink())
