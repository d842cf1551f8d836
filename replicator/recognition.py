"""Whether an etcd is still the one it was, by marks that only ever rise. Pure.

A restore from a snapshot keeps cluster id, member ids and keys. What falls: the revision (unless
it was bumped), the raft index of each member, and the witness, a counter in the etcd itself that
its replicator raises and remembers elsewhere. No mark is needed by itself, and none can fall
otherwise; so whichever falls first tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation
from meshkit.store.port import StoreStatus

MEMBERS_MAX = 16
"""Members remembered; those not seen for longest are forgotten."""


@attrs.frozen(kw_only=True)
class Observation(Stored):
    """What was last seen of an etcd from outside; any of it going back means a restore."""

    SCHEMA: ClassVar[str] = "observation"

    cluster: ClusterName
    etcd_cluster_id: str
    revision: int
    """Of a linearizable read."""
    raft_index: int
    """Of the member named here: others may lag behind it."""
    member_id: str = ""
    incarnation: Incarnation
    members: Mapping[str, int] = attrs.field(factory=dict)
    """The greatest raft index seen of each member, in the order in which they were seen."""
    witness: int = 0
    """The counter that was stored in the etcd before this was seen."""


@attrs.frozen(kw_only=True)
class Look:
    """An etcd as it is now: a member's status after a linearizable read, and the witness."""

    status: StoreStatus
    witness: int = 0
    incarnation: Incarnation | None = None
    """As the etcd itself says; None where it does not."""


def observed(before: Observation | None, look: Look, *, cluster: ClusterName) -> Observation:
    """Return what is to be remembered after a look that showed nothing wrong."""
    status = look.status
    member = f"{status.member_id:x}"
    members = {m: i for m, i in (before.members if before else {}).items() if m != member}
    members[member] = max(status.raft_index, before.members.get(member, 0) if before else 0)
    return Observation(
        cluster=cluster,
        etcd_cluster_id=f"{status.cluster_id:x}",
        revision=status.revision,
        raft_index=status.raft_index,
        member_id=member,
        incarnation=look.incarnation or (before.incarnation if before else Incarnation("")),
        members=dict(list(members.items())[-MEMBERS_MAX:]),
        witness=look.witness,
    )


def went_back(seen: Observation | None, look: Look) -> str:
    """Return how an etcd is not the one that was seen, or nothing."""
    return next(_differences(seen, look), "") if seen is not None else ""


def _differences(seen: Observation, look: Look) -> Iterator[str]:
    status, member = look.status, f"{look.status.member_id:x}"
    known = seen.members.get(member, seen.raft_index if seen.member_id == member else 0)
    if seen.etcd_cluster_id != f"{status.cluster_id:x}":
        yield (
            f"it has cluster id {status.cluster_id:x}, not {seen.etcd_cluster_id}:"
            " it is another etcd"
        )
    if status.revision < seen.revision:
        yield f"its revision is {status.revision} after {seen.revision}: it was restored"
    if status.raft_index < known:
        yield (
            f"the raft index of member {member} is {status.raft_index} after {known}:"
            " it was restored from a snapshot"
        )
    if look.witness < seen.witness:
        yield (
            f"it has forgotten what was written to it (witness {look.witness} after"
            f" {seen.witness}): it was restored from a snapshot"
        )
    if look.incarnation is not None and seen.incarnation not in ("", look.incarnation):
        yield f"it says that it is incarnation {look.incarnation!r}, not {seen.incarnation}"
