"""The transactions and readings of the chain of two leases. Pure.

Every transaction of the regional etcd is committed in the term of the leading replicator
(`commit_in_term` adds that guard).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from meshkit.codec import decode, encode
from meshkit.errors import CorruptRecord
from meshkit.keys import CoordinationKeys, RegionalKeys, last_part
from meshkit.model import Authority, Holder, Seal
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, LeaseId, Revision
from meshkit.regional import Beat, ChainLeases, Permit
from meshkit.store.port import RangeResult
from meshkit.store.txn import (
    Delete,
    Guard,
    KeyValue,
    ModRevisionIs,
    Nest,
    NoneModifiedSince,
    Operation,
    Put,
    Txn,
    absent,
    prefix_range,
)

PERMITS = prefix_range(RegionalKeys.permits)
SEALS = prefix_range(CoordinationKeys.seals)
HOLDERS = prefix_range(CoordinationKeys.holders)

_NEST_OPERATIONS_MAX = 64
_UNREADABLE = Epoch(2**62)


@attrs.frozen(kw_only=True)
class Permits:
    """The permits of the region, read at one revision."""

    revision: Revision
    items: tuple[KeyValue, ...]

    @property
    def epochs(self) -> dict[GroupName, Epoch]:
        """The epoch of each group's permit; one that cannot be read counts as the lowest."""
        return {group_of(item.key): _permit_epoch(item) for item in self.items}


def permits_of(result: RangeResult) -> Permits:
    """Return what a read of `PERMITS` says."""
    return Permits(revision=result.revision, items=tuple(result.items))


def group_of(key: bytes) -> GroupName:
    """Return the group of a permit's, seal's or holder's key."""
    return GroupName(last_part(key))


def sealed_epochs(result: RangeResult) -> dict[GroupName, Epoch]:
    """Return the greatest sealed epoch of each group from a read of `SEALS`.

    A seal that cannot be read seals every epoch.
    """
    return {group_of(item.key): _seal_epoch(item) for item in result.items}


def sealed_among(
    epochs: Mapping[GroupName, Epoch], sealed: Mapping[GroupName, Epoch]
) -> frozenset[GroupName]:
    """Return the groups whose epoch in `epochs` is sealed."""
    return frozenset(g for g, epoch in epochs.items() if g in sealed and epoch <= sealed[g])


def held_epochs(result: RangeResult, *, lease_id: LeaseId) -> dict[GroupName, Epoch]:
    """Return what is held on a coordination lease, from a read of `HOLDERS`."""
    return {
        group_of(item.key): _holder_epoch(item) for item in result.items if item.lease == lease_id
    }


def begin(
    permits: Permits,
    *,
    keep: Mapping[GroupName, Epoch],
    leases: ChainLeases,
    record_revision: Revision,
) -> Txn:
    """Return the transaction that begins to work with `leases`.

    It moves the permits in `keep` onto the new regional lease without changing what they say, so
    that guarded writes go on across a change of replicator, deletes every other permit, and stores
    the lease ids for the successor. It fails if a permit was put or changed since it was read;
    if one was deleted, etcd refuses to keep the value of a key that is not there.
    """
    operations: list[Operation] = []
    for item in permits.items:
        if keep.get(group_of(item.key)) == _permit_epoch(item):
            operations.append(Put(item.key, b"", lease=leases.regional, keep_value=True))
        else:
            operations.append(Delete(item.key))
    return Txn(
        guards=(
            NoneModifiedSince(PERMITS, permits.revision),
            ModRevisionIs(RegionalKeys.leases, record_revision),
        ),
        operations=(Put(RegionalKeys.leases, encode(leases)), *nested(operations)),
    )


def delete_permits(items: Iterable[KeyValue]) -> Txn:
    """Return the transaction that deletes these permits. Deleting one is always safe."""
    return Txn(operations=nested([Delete(item.key) for item in items]))


def delete_all_permits() -> Txn:
    """Return the transaction that deletes whatever permits there are."""
    return Txn(operations=(Delete(*PERMITS),))


def beat(
    record: Beat, *, lease: LeaseId, beat_revision: Revision, guards: tuple[Guard, ...] = ()
) -> Txn:
    """Return the transaction that beats.

    The guard on the beat before keeps one that was delayed on its way from arriving as news.
    """
    return Txn(
        guards=(ModRevisionIs(RegionalKeys.beat, beat_revision), *guards),
        operations=(Put(RegionalKeys.beat, encode(record), lease=lease),),
    )


def hold(
    authority: Authority, *, authority_revision: Revision, cluster: ClusterName, lease: LeaseId
) -> Txn:
    """Return the transaction of the coordination etcd that makes the holder (4.1 rule 2)."""
    holder = Holder(group=authority.group, epoch=authority.epoch, cluster=cluster)
    guards: tuple[Guard, ...] = (
        ModRevisionIs(CoordinationKeys.authority(authority.group), authority_revision),
        absent(CoordinationKeys.seal(authority.group)),
    )
    put = Put(CoordinationKeys.holder(authority.group), encode(holder), lease=lease)
    return Txn(guards=guards, operations=(put,))


def release(holder: KeyValue) -> Txn:
    """Return the transaction that deletes this holder and no later one."""
    guard = ModRevisionIs(holder.key, holder.mod_revision)
    return Txn(guards=(guard,), operations=(Delete(holder.key),))


def nested(operations: list[Operation]) -> tuple[Operation, ...]:
    """Return the operations so that there may be more of them than etcd takes on one level."""
    if len(operations) <= _NEST_OPERATIONS_MAX:
        return tuple(operations)
    return tuple(
        Nest(tuple(operations[at : at + _NEST_OPERATIONS_MAX]))
        for at in range(0, len(operations), _NEST_OPERATIONS_MAX)
    )


def _permit_epoch(item: KeyValue) -> Epoch:
    try:
        return decode(Permit, item.value).epoch
    except CorruptRecord:
        return Epoch(0)


def _seal_epoch(item: KeyValue) -> Epoch:
    try:
        return decode(Seal, item.value).epoch
    except CorruptRecord:
        return _UNREADABLE


def _holder_epoch(item: KeyValue) -> Epoch:
    try:
        return decode(Holder, item.value).epoch
    except CorruptRecord:
        return Epoch(-1)
