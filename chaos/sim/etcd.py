"""An etcd in the simulation: it can be killed, restarted, frozen, and reached over a bad network.

Leases end when the lessor looks, every 500 ms, as in etcd; a restart, a thaw and an election give
every lease its full TTL again. Requests that reached a frozen server are served when it thaws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from chaos.sim.loop import NS_PER_MS, VirtualLoop
from chaos.sim.network import Site
from meshkit.errors import LeaseLost
from meshkit.ordinals import LeaseId
from meshkit.store.memory_server import MemoryServer

LESSOR_INTERVAL_NS = 500 * NS_PER_MS


class Client(Protocol):
    """Somebody who watches."""

    def resume_watches(self) -> None:
        """The server is back."""

    def lose_watches(self) -> None:
        """The server is gone."""


@attrs.define(kw_only=True, eq=False)
class SimEtcd(MemoryServer):
    """The server. What it committed survives everything."""

    loop: VirtualLoop
    site: Site
    name: str
    is_up: bool = True
    is_frozen: bool = False
    _waiting: list[Callable[[], None]] = attrs.field(factory=list, init=False)
    _clients: list[Client] = attrs.field(factory=list, init=False)

    def start(self, *, phase_ns: int) -> None:
        """Begin to look for leases that have run out."""
        self._look_later(phase_ns)

    def _look_later(self, after_ns: int) -> None:
        loop = self.loop
        loop.call_at_ns(loop.now_ns + after_ns, self._look, context=loop.outside)

    def _look(self) -> None:
        if self.is_up and not self.is_frozen:
            self.expire_due()
        self._look_later(LESSOR_INTERVAL_NS)

    def _set_timer(self) -> None:
        """Nothing: the lessor looks by itself."""

    def keep_alive(self, lease_id: LeaseId) -> int:
        """Refuse to renew what has run out, though the lessor has not looked yet."""
        if self.time_to_live(lease_id) < 0:
            raise LeaseLost(lease_id)
        return super().keep_alive(lease_id)

    # --- faults --------------------------------------------------------------------------------

    def kill(self) -> None:
        """Stop at once. What was committed is on disk; nobody hears anything more."""
        self.is_up, self.is_frozen = False, False
        self._waiting.clear()
        for client in self._clients:
            client.lose_watches()

    def restart(self) -> None:
        """Come back with every lease at its full TTL."""
        if not self.is_up:
            self.is_up = True
            self._after_silence()

    def freeze(self) -> None:
        """Stop as under SIGSTOP."""
        self.is_frozen = self.is_up

    def thaw(self, *, refresh_first: bool) -> None:
        """Go on, with what has arrived meanwhile."""
        if not self.is_frozen:
            return
        self.is_frozen = False
        if refresh_first:
            self.restart_refreshing_leases()
        waiting, self._waiting = self._waiting, []
        for serve in waiting:
            serve()
        self._after_silence()

    def _after_silence(self) -> None:
        self.restart_refreshing_leases()
        for client in list(self._clients):
            client.resume_watches()

    # --- requests ------------------------------------------------------------------------------

    def receive(self, serve: Callable[[], None], refuse: Callable[[], None]) -> None:
        """Serve a request that has arrived, now or when thawed; refuse it where nobody listens."""
        if self.is_frozen:
            self._waiting.append(serve)
        elif self.is_up:
            serve()
        else:
            refuse()

    def know(self, client: Client) -> None:
        """Tell this client of what becomes of the server."""
        self._clients.append(client)

    def forget(self, client: Client) -> None:
        """The client's process is gone."""
        if client in self._clients:
            self._clients.remove(client)
