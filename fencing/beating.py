"""The beat of one term: each compares the one before."""

from __future__ import annotations

import attrs

from fencing import chain_txns as txns
from fencing.chain_calls import ChainCalls
from meshkit.ordinals import LeaseId, Revision
from meshkit.regional import Beat
from meshkit.store.txn import Guard


@attrs.define(kw_only=True, eq=False)
class Beats:
    """Puts beats, whatever justifies them."""

    calls: ChainCalls
    replicator: str
    _before: Revision | None = attrs.field(default=None, init=False)
    _count: int = attrs.field(default=0, init=False)

    async def ready(self) -> Revision:
        """Return the revision of the beat before, reading it if it is not known."""
        if self._before is None:
            self._before = await self.calls.beat_revision()
        return self._before

    async def put(self, lease: LeaseId, *, guards: tuple[Guard, ...] = ()) -> None:
        """Put one beat; call `ready` before whatever has to be fresh is looked at.

        Raises:
            LeaseLost: the lease has run out.
            RevisionConflict: the beat before is another one, or one of `guards` does not hold.
            OutcomeUnknown: it may arrive later, unless another one does first.
        """
        assert self._before is not None, "the beat before is known"
        before, self._before = self._before, None
        self._count += 1
        beat = Beat(
            replicator=self.replicator,
            round=self._count,
            regional_ttl_ms=self.calls.timing.regional_ttl_ms,
        )
        txn = txns.beat(beat, lease=lease, beat_revision=before, guards=guards)
        self._before = (await self.calls.commit(txn)).revision
