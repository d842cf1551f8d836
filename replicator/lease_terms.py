"""What the leases of the source's keys were granted for: asked of its etcd once, for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from meshkit.clock import Clock
from meshkit.errors import LeaseLost
from meshkit.ordinals import LeaseId
from meshkit.store.port import Store
from replicator.record import LeaseTerm
from replicator.together import in_parallel

LEASES_MAX = 10_000
"""So many are remembered."""
AGE_MS_MAX = 60_000
"""An id may come back with another TTL: no answer is believed for longer than this."""
PARALLEL_MAX = 16
GONE_TTL_S = 1
"""Of a lease that is gone: the delete of its keys follows in the log. Should the group move just
between the two, the new active cluster lets them run out as soon as a lease may."""


class LeaseTerms:
    """Remembers granted TTLs, bounded in number and in age."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[LeaseId, tuple[int, LeaseTerm]] = OrderedDict()

    async def of(self, leases: Iterable[LeaseId]) -> tuple[LeaseTerm, ...]:
        """Return what these leases were granted for, in the order of their ids.

        Raises:
            Unreachable: it cannot be known now.
        """
        terms = await self.known(leases)
        return tuple(terms[lease] for lease in sorted(terms))

    async def known(self, leases: Iterable[LeaseId]) -> Mapping[LeaseId, LeaseTerm]:
        """Return what these leases were granted for; asks only what it does not remember.

        Raises:
            Unreachable: it cannot be known now.
        """
        now_ms = self._clock.now_ms()
        found: dict[LeaseId, LeaseTerm] = {}
        missing: list[LeaseId] = []
        for lease in dict.fromkeys(leases):
            at_ms, term = self._known.get(lease, (0, None))
            if term is None or now_ms - at_ms > AGE_MS_MAX:
                missing.append(lease)
            else:
                found[lease] = term
        if missing:
            asked = await in_parallel(self._ask, missing, at_most=PARALLEL_MAX)
            found.update((term.lease, term) for term in asked)
        return found

    async def _ask(self, lease: LeaseId) -> LeaseTerm:
        try:
            ttl = await self._store.lease_ttl(lease)
        except LeaseLost:
            # Not remembered: the id may be granted anew at any time.
            return LeaseTerm(lease, GONE_TTL_S)
        term = LeaseTerm(lease, ttl.granted_s)
        self._known[lease] = (self._clock.now_ms(), term)
        self._known.move_to_end(lease)
        while len(self._known) > LEASES_MAX:
            self._known.popitem(last=False)
        return term
