"""What a leading replicator's hand writes goes together with what waits beside it (ADR 25)."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Self

import attrs

from meshkit.keys import RegionalKeys
from meshkit.store.port import Store
from meshkit.store.shared import SharedCommits
from meshkit.store.shared_store import SharedStore
from replicator.agent_ports import Region


@attrs.frozen(kw_only=True, eq=False)
class Sharing:
    """The shared transactions of one term, in the region and in the coordination etcd."""

    regional: SharedCommits
    coordination: SharedCommits

    @classmethod
    def of(cls, *, regional: Store, coordination: Store) -> Self:
        """Return what shares transactions of these etcds, once `running` runs."""
        return cls(
            regional=SharedCommits(store=regional, index=RegionalKeys.fence_index),
            coordination=SharedCommits(store=coordination),
        )

    def region(self, region: Region) -> Region:
        """Return the same region with stores that share."""
        return attrs.evolve(
            region,
            regional=SharedStore(store=region.regional, commits=self.regional),
            coordination=SharedStore(store=region.coordination, commits=self.coordination),
        )

    def running(self) -> tuple[Coroutine[None, None, None], ...]:
        """Return what has to run meanwhile."""
        return self.regional.run(), self.coordination.run()
