"""What the agent stands on: its region while a term lasts, and the ports to leases and streams."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs

from meshkit.clock import Clock
from meshkit.model import Authority
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, LeaseId, Revision, Sequence, Token
from meshkit.status import Lag
from meshkit.store.port import Store
from meshkit.store.txn import Guard
from replicator.access import AccessFence, NoAccessFence
from replicator.arrivals import TakenIn


class Chain(Protocol):
    """What the agent needs of the chain of leases (`fencing.chain`)."""

    async def permit_lease(self, authority: Authority, revision: Revision) -> LeaseId:
        """Hold the group and return the regional lease its permit may hang on.

        The lease was granted before the authority was confirmed, by a transaction that compares
        `authority` unchanged at `revision` and no seal. Waits for a healthy round.

        Raises:
            Refused: the authority moved or the group is sealed.
        """


class Outbound(Protocol):
    """What the agent needs of the streams that leave this region."""

    async def wait_caught_up(
        self, target: ClusterName, *, lag_ms_max: int, group: GroupName | None = None
    ) -> Lag:
        """Return once `target` is streaming, in step with `group`, and lags no more than this."""


class Inbound(Protocol):
    """What the agent needs of the streams that reach this region."""

    async def wait_applied(
        self, source: ClusterName, incarnation: Incarnation, sequence: Sequence
    ) -> None:
        """Return once everything of `source`'s log up to `sequence` is applied here."""

    async def wait_follow(self, group: GroupName, epoch: int) -> None:
        """Return once the group is in step here in at least this epoch."""

    async def wait_taken_in(
        self, source: ClusterName, group: GroupName, epoch: Epoch, *, seal: Token, quiet_ms: int
    ) -> TakenIn:
        """Return once the epoch's cut is applied, or nothing was heard for `quiet_ms`."""

    def standing_still(self, source: ClusterName) -> AbstractAsyncContextManager[None]:
        """Store how far `source` is applied, and apply nothing more of it meanwhile."""

    def refresh(self) -> None:
        """Look for groups that have fallen out of step (a join was stored)."""


@attrs.frozen(kw_only=True)
class Region:
    """Who and where this replicator is, while its term lasts."""

    cluster: ClusterName
    incarnation: Incarnation
    replicator: str
    leader: Guard
    """Holds as long as this process leads the region."""
    regional: Store
    coordination: Store
    clock: Clock
    access: AccessFence = attrs.field(factory=NoAccessFence)
    """What is done about clients that do not look at the permit."""
