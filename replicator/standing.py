"""How a group stands in a region, read at one revision: what a step of a failover decides from."""

from __future__ import annotations

import attrs

from fencing.fence_view import FenceView, view_of, view_reads
from meshkit.codec import decode
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.regional import Checkpoint
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Get, Txn, prefix_range
from replicator.region_state import torn_groups


@attrs.frozen(kw_only=True)
class Standing:
    """A group's fence, and how far a source is applied under it."""

    view: FenceView
    checkpoint: Checkpoint | None
    """The main checkpoint of the source."""
    is_out_of_step: bool
    """Or in the middle of a transaction that is applied in parts."""
    has_leases: bool
    """Whether keys of the copy hang on leases at the active cluster."""


async def read_standing(regional: Store, group: GroupName, source: ClusterName) -> Standing:
    """Return how the group stands here as a copy of `source`."""
    fence = view_reads(group)
    attached = prefix_range(RegionalKeys.attachments_of(group))
    reads = (
        *fence,
        Get(RegionalKeys.checkpoint(source)),
        Get(RegionalKeys.group_checkpoint(source, group)),
        Get(RegionalKeys.parts(source)),
        Get(*attached, limit=1, keys_only=True),
    )
    outcome = await regional.commit(Txn(operations=reads))
    assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
    main, own, parts, leases = outcome.reads[len(fence) :]
    return Standing(
        view=view_of(group, outcome.reads[: len(fence)]),
        checkpoint=decode(Checkpoint, main[0].value) if main else None,
        is_out_of_step=bool(own) or group in torn_groups(parts),
        has_leases=bool(leases),
    )
