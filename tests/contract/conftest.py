"""What the contract tests run against: each implementation of the store port, dressed alike."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable

import attrs
import pytest

from meshkit.clock import ManualClock
from meshkit.ordinals import LeaseId
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from meshkit.store.port import Store, WatchItem
from meshkit.store.txn import KeyRange, prefix_range
from tests.conftest import etcd_params

DEADLINE_S = 10.0
_numbers = itertools.count(1)


@attrs.define
class Subject:
    """A store under test, and a corner of it that belongs to one test."""

    store: Store
    clock: ManualClock | None
    prefix: bytes
    lease_base: int

    def key(self, name: str | int) -> bytes:
        """Return a key of this test."""
        return self.prefix + str(name).encode()

    @property
    def keys(self) -> KeyRange:
        """The range of all keys of this test."""
        return prefix_range(self.prefix)

    def lease(self, number: int) -> LeaseId:
        """Return a lease id of this test."""
        return LeaseId(self.lease_base + number)

    async def elapse_ms(self, duration_ms: int) -> None:
        """Let time pass where it is ours; a real etcd's passes by itself."""
        if self.clock is not None:
            await self.clock.advance_ms(duration_ms)


async def soon(watch: AsyncIterator[WatchItem]) -> WatchItem:
    """Return the next item of a watch, or fail after a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        return await anext(watch)


@pytest.fixture(params=[pytest.param("memory"), *etcd_params()])
async def subject(
    request: pytest.FixtureRequest, etcd_pool: Callable[..., object]
) -> AsyncIterator[Subject]:
    """Each implementation in turn."""
    number = next(_numbers)
    clock = ManualClock() if request.param == "memory" else None
    store: Store
    if clock is not None:
        store = MemoryStore(clock=clock)
    else:
        store = EtcdStore.connect([etcd_pool(request.param).endpoint])
    yield Subject(store, clock, f"t{number}/".encode(), number * 1000)
    await store.close()
