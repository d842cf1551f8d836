"""Which loopback ports may be listened on, without getting into each other's way.

A port that nothing listens on may belong to somebody all the same: to an etcd that was killed and
is about to come back. So whoever takes ports also holds a name for each in Linux's abstract
socket namespace until its process ends, and nobody takes a port whose name is held.
"""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterable

_LOOPBACK = "127.0.0.1"
_PORTS = range(15_000, 32_000)
"""Below the ports that Linux gives to outgoing connections, so that none of those takes one."""

_held: dict[int, socket.socket] = {}


def free_ports(count: int, *, taken: Iterable[int] = ()) -> list[int]:
    """Return different loopback ports that are nobody's, and hold them until this process ends."""
    found: list[int] = []
    avoid = set(taken)
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        if port not in avoid and port not in _held and is_free(port) and hold(port):
            found.append(port)
    return found


def free_port() -> int:
    """Return one such port."""
    return free_ports(1)[0]


def is_free(port: int) -> bool:
    """Return whether a loopback port could be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
    return True


def hold(port: int) -> bool:
    """Hold a port against everybody who takes ports here; False if another process holds it."""
    if port in _held or not sys.platform.startswith("linux"):
        return True
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(f"\0meshkit-port-{port}")
    except OSError:
        name.close()
        return False
    _held[port] = name
    return True
