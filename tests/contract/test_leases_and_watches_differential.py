"""Random programs of leases that run out, and of watches, do the same in memory and on a real etcd."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import attrs

from meshkit.clock import ManualClock
from meshkit.errors import Compacted, MeshError
from meshkit.etcd_binary import EtcdBinary
from meshkit.ordinals import ABSENT, LeaseId, Revision
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from meshkit.store.port import RevisionChanges, Store, WatchItem
from meshkit.store.txn import Delete, KeyRange, Put, Txn, prefix_range
from tests.contract.conftest import DEADLINE_S

_corners = itertools.count(1)

SHORT_S = 2
"""The least TTL that etcd grants with its default election timeout."""
LONG_S = 3_600
LEASES = range(1, 5)
KEYS = tuple(f"k{number}".encode() for number in range(6))
PROGRAMS = 20


@attrs.define
class Corner:
    """A part of a store that belongs to one program: its own keys and leases."""

    store: Store
    prefix: bytes
    lease_base: int
    read_at: Revision = ABSENT

    def lease(self, number: int) -> LeaseId:
        return LeaseId(self.lease_base + number if number else 0)

    def put(self, key: bytes, lease: int) -> Put:
        return Put(self.prefix + key, b"v", self.lease(lease))

    async def tell(self, step: tuple[Any, ...]) -> Any:
        """Do one step, and tell what came of it in words that do not depend on the place."""
        try:
            match step:
                case ("grant", number, ttl_s):
                    return (await self.store.grant(ttl_s=ttl_s, lease_id=self.lease(number))).ttl_s
                case ("put", *puts):
                    operations = tuple(self.put(key, lease) for key, lease in puts)
                    return type(await self.store.commit(Txn(operations=operations))).__name__
                case ("delete", key):
                    await self.store.commit(Txn(operations=(Delete(self.prefix + key),)))
                case ("revoke", number):
                    await self.store.revoke(self.lease(number))
                case ("keep_alive", number):
                    return await self.store.keep_alive(self.lease(number))
                case ("granted", number):
                    return (await self.store.lease_ttl(self.lease(number))).granted_s
        except MeshError as error:
            return type(error).__name__

    async def told_at_last(self, step: tuple[Any, ...], wanted: Any) -> Any:
        """Return what the store says; of a lease that is to be gone, once that has been noticed.

        Etcd looks for leases that have run out twice a second, and takes no key of this one away.
        """
        async with asyncio.timeout(DEADLINE_S):
            while (told := await self.tell(step)) != wanted and step[0] == "granted":
                await asyncio.sleep(0.02)
        return told

    async def deaths(self, wanted: int | None) -> Counter[frozenset[bytes]]:
        """Return which keys went together since the content was last read.

        Waits until so many went; None: they have gone.
        """
        died: Counter[frozenset[bytes]] = Counter()
        keys = prefix_range(self.prefix)
        if wanted is None:
            await self.store.commit(Txn(operations=(Put(self.prefix + b"end", b""),)))
        async with (
            asyncio.timeout(DEADLINE_S),
            self.store.watch(keys, start=Revision(self.read_at + 1)) as watch,
        ):
            while wanted is None or died.total() < wanted:
                item = await anext(watch)
                assert isinstance(item, RevisionChanges)
                if item.changes[0].key == self.prefix + b"end":
                    break
                assert all(change.is_delete for change in item.changes)
                died[frozenset(change.key for change in item.changes)] += 1
        if wanted is not None:
            await self.store.commit(Txn(operations=(Put(self.prefix + b"end", b""),)))
        return died

    async def content(self) -> dict[bytes, tuple[int, int]]:
        """Return each key with its lease and version."""
        found = await self.store.range(prefix_range(self.prefix))
        self.read_at = found.revision
        return {
            item.key.removeprefix(self.prefix): (
                item.lease - self.lease_base if item.lease else 0,
                item.version,
            )
            for item in found.items
        }


def lease_program(rng: random.Random) -> list[tuple[Any, ...]]:
    """Leases of both lengths are granted, keys move between them, some are revoked."""
    steps: list[tuple[Any, ...]] = [
        ("grant", number, rng.choice((SHORT_S, SHORT_S, LONG_S))) for number in LEASES
    ]
    for _ in range(rng.randint(5, 20)):
        keys = rng.sample(KEYS, k=rng.choice((1, 1, 2, 3)))
        lease = rng.choice((0, *LEASES))
        steps.append(
            rng.choice(
                [
                    ("put", *((key, lease) for key in keys)),
                    ("put", *((key, lease) for key in keys)),
                    ("put", *((key, rng.choice((0, *LEASES))) for key in keys)),
                    ("delete", keys[0]),
                    ("keep_alive", rng.choice(LEASES)),
                    ("granted", rng.choice(LEASES)),
                    ("revoke", rng.choice(LEASES)) if rng.random() < 0.3 else ("put", (keys[0], 0)),
                ]
            )
        )
    return steps


AFTERWARDS: tuple[tuple[Any, ...], ...] = (
    *(("granted", number) for number in LEASES),
    *(("keep_alive", number) for number in LEASES),
    *(("put", (b"after", number)) for number in LEASES),
    *(("grant", number, LONG_S) for number in LEASES),
    *(("put", (b"again", number)) for number in LEASES),
)


def test_leases_run_out_alike_and_take_their_keys_with_them_at_one_revision(
    etcd_binary: EtcdBinary, etcd_pool: Callable[..., Any]
) -> None:
    """All programs wait together: what a lease takes with it, and what is left, is the same."""
    process = etcd_pool(etcd_binary)
    rng = random.Random(20)

    async def compare() -> None:
        clock = ManualClock()
        real, memory = EtcdStore.connect([process.endpoint]), MemoryStore(clock=clock)
        pairs = []
        for _ in range(PROGRAMS):
            number = next(_corners)
            pair = tuple(
                Corner(store, f"l{number}/".encode(), 30_000_000 + number * 10)
                for store in (memory, real)
            )
            if await _play(pair, lease_program(rng)):
                pairs.append(pair)
        assert len(pairs) > PROGRAMS / 2, "too slow: leases ran out while programs still ran"
        await clock.advance_ms(SHORT_S * 1000 + 1)
        died = 0
        for mine, theirs in pairs:
            expected = await mine.deaths(None)
            assert expected == await theirs.deaths(expected.total())
            died += expected.total()
            for step in AFTERWARDS:
                wanted = await mine.tell(step)
                assert wanted == await theirs.told_at_last(step, wanted), step
            assert await mine.content() == await theirs.content()
            for lease in LEASES:
                await real.revoke(theirs.lease(lease))
        assert died > len(pairs) / 2, "hardly any lease took keys with it"
        await memory.close()
        await real.close()

    asyncio.run(compare())


async def _play(pair: tuple[Corner, ...], program: list[tuple[Any, ...]]) -> bool:
    """Play a program on both sides; False if it took so long that a lease may have run out."""
    began_ms = time.monotonic() * 1000
    told = [[await corner.tell(step) for step in program] for corner in pair]
    contents = [await corner.content() for corner in pair]
    if time.monotonic() * 1000 - began_ms > SHORT_S * 500:
        return False
    assert told[0] == told[1], program
    assert contents[0] == contents[1], program
    return True


# --- watches ------------------------------------------------------------------------------------


@attrs.define
class Watcher:
    """One watch on both sides; what it delivers is compared as it comes."""

    key_range: KeyRange
    sides: list[tuple[Any, Any]]


@attrs.define
class WatchProgram:
    """Puts, deletes, compactions, and watches of parts of the keys from the past or from now on."""

    stores: tuple[Store, Store]
    prefix: bytes
    rng: random.Random
    bases: list[Revision] = attrs.field(factory=list)
    watchers: list[Watcher] = attrs.field(factory=list)
    compacted: int = 0

    async def begin(self) -> None:
        for store in self.stores:
            outcome = await store.commit(Txn(operations=(Put(self.prefix + b"k0", b"0"),)))
            self.bases.append(outcome.revision)

    async def step(self, number: int) -> None:
        match self.rng.choice(
            ("put", "put", "put", "delete", "watch", "watch", "close", "compact")
        ):
            case "put":
                keys = self.rng.sample(KEYS, k=self.rng.randint(1, 3))
                await self._commit(Put(self.prefix + key, str(number).encode()) for key in keys)
            case "delete":
                start, end = sorted(self.rng.sample(KEYS, k=2))
                await self._commit([Delete(self.prefix + start, self.prefix + end)])
            case "watch":
                await self._open()
            case "close" if self.watchers:
                await self._close(self.watchers.pop(self.rng.randrange(len(self.watchers))))
            case "compact":
                await self._compact()

    async def _commit(self, operations: Any) -> None:
        txn = Txn(operations=tuple(operations))
        outcomes = [await store.commit(txn) for store in self.stores]
        ages = [o.revision - base for o, base in zip(outcomes, self.bases, strict=True)]
        assert ages[0] == ages[1]

    async def _open(self) -> None:
        start, end = sorted(self.rng.sample(KEYS, k=2))
        single = self.rng.random() < 0.3
        key_range = (self.prefix + start, b"" if single else self.prefix + end)
        head = (await self.stores[0].range((self.prefix, b""))).revision - self.bases[0]
        # Where history begins, etcd may have lost a delete: a client of it does not begin there.
        age = self.rng.choice([age for age in range(head + 2) if age != self.compacted])
        watcher = Watcher(key_range=key_range, sides=[])
        for store, base in zip(self.stores, self.bases, strict=True):
            context = store.watch(key_range, start=Revision(base + age))
            try:
                watcher.sides.append((context, await context.__aenter__()))
            except Compacted:
                watcher.sides.append((context, _compacted()))
        if not await self._catch_up(watcher):
            self.watchers.append(watcher)

    async def _catch_up(self, watcher: Watcher) -> bool:
        """Compare everything up to a mark put now; return whether the watch has ended."""
        await self._commit([Put(watcher.key_range[0], b"mark")])
        mark = (await self.stores[0].range((self.prefix, b""))).revision - self.bases[0]
        told = [
            await _until(items, base=base, mark=mark, prefix=self.prefix)
            for (_, items), base in zip(watcher.sides, self.bases, strict=True)
        ]
        assert told[0] == told[1]
        if told[0][-1] == "Compacted":
            await self._leave(watcher)
            return True
        return False

    async def _close(self, watcher: Watcher) -> None:
        if not await self._catch_up(watcher):
            await self._leave(watcher)

    async def _leave(self, watcher: Watcher) -> None:
        for context, items in watcher.sides:
            if not isinstance(items, AsyncGenerator):
                await context.__aexit__(None, None, None)

    async def _compact(self) -> None:
        for watcher in list(self.watchers):
            if await self._catch_up(watcher):
                self.watchers.remove(watcher)
        head = (await self.stores[0].range((self.prefix, b""))).revision - self.bases[0]
        self.compacted = self.rng.randint(self.compacted, head)
        for store, base in zip(self.stores, self.bases, strict=True):
            await store.compact(Revision(base + self.compacted))

    async def end(self) -> None:
        for watcher in self.watchers:
            await self._close(watcher)


async def _compacted() -> AsyncIterator[WatchItem]:
    """Raise when iterated, as a watch does that was told only then."""
    raise Compacted(revision=0, compact_revision=0)
    yield  # type: ignore[unreachable]


async def _until(items: Any, *, base: Revision, mark: int, prefix: bytes) -> list[Any]:
    """Tell what a watch delivers, up to the revision of the mark."""
    told: list[Any] = []
    async with asyncio.timeout(DEADLINE_S):
        while not told or (told[-1] != "Compacted" and told[-1][0] < mark):
            try:
                item: WatchItem = await anext(items)
            except MeshError as error:
                told.append(type(error).__name__)
                continue
            assert isinstance(item, RevisionChanges)
            changes = [
                (c.key.removeprefix(prefix), c.item.value, c.is_delete, c.item.version)
                for c in item.changes
            ]
            told.append((item.revision - base, changes))
    return told


def test_random_watches_deliver_the_same_on_both(
    etcd_binary: EtcdBinary, etcd_pool: Callable[..., Any]
) -> None:
    """Ranges and single keys, from the past and from now on, across compactions and closings."""
    process = etcd_pool(etcd_binary)
    rng = random.Random(21)

    async def compare() -> None:
        real = EtcdStore.connect([process.endpoint])
        for _ in range(PROGRAMS):
            memory = MemoryStore(clock=ManualClock())
            program = WatchProgram((memory, real), f"w{next(_corners)}/".encode(), rng)
            await program.begin()
            for number in range(rng.randint(10, 40)):
                await program.step(number)
            await program.end()
            await memory.close()
        await real.close()

    asyncio.run(compare())
