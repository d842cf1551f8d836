"""The identity of a region's etcd as its replicators know it: made once, kept in that etcd."""

from __future__ import annotations

import random

from meshkit.codec import decode, encode
from meshkit.errors import CorruptRecord
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation
from meshkit.regional import RegionIncarnation
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Put, Txn, absent


async def region_incarnation(
    regional: Store, cluster: ClusterName, *, rng: random.Random
) -> Incarnation:
    """Return the identity of this etcd's history, made when a replicator first led here.

    Raises:
        CorruptRecord: the etcd was set up for another cluster.
    """
    key = RegionalKeys.incarnation
    item = await regional.get(key)
    if item is None:
        drawn = Incarnation(f"{rng.getrandbits(48):012x}")
        fresh = RegionIncarnation(cluster=cluster, incarnation=drawn)
        outcome = await regional.commit(
            Txn(guards=(absent(key),), operations=(Put(key, encode(fresh)),))
        )
        if isinstance(outcome, Committed):
            return fresh.incarnation
        item = await regional.get(key)
        assert item is not None, "somebody else has just put it"
    stored = decode(RegionIncarnation, item.value)
    if stored.cluster != cluster:
        raise CorruptRecord(
            f"this etcd belongs to cluster {stored.cluster}, not {cluster}",
            hint="check regional_etcd in the replicator's configuration",
        )
    return stored.incarnation
