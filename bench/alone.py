"""What one commit takes while nothing else runs: the floor under whatever waits for commits."""

from __future__ import annotations

import time

from bench.report import quantile
from meshkit.store.port import Store
from meshkit.store.txn import Put, Txn

COMMITS = 50
KEY = b"/bench-alone"


async def commit_ms(store: Store) -> float:
    """Return the median of a few commits, one after the other: a round trip, and etcd's fsync."""
    took = []
    for _ in range(COMMITS):
        began = time.perf_counter()
        await store.commit(Txn(operations=(Put(KEY, b"x" * 100),)))
        took.append((time.perf_counter() - began) * 1e3)
    return quantile(took, 0.5)
