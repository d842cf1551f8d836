"""Random programs do the same to the etcd in memory as to a real one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.clock import ManualClock
from meshkit.errors import Compacted, MeshError
from meshkit.etcd_binary import EtcdBinary
from meshkit.ordinals import LeaseId, Revision
from meshkit.store.etcd import EtcdStore
from meshkit.store.memory import MemoryStore
from meshkit.store.port import Store
from meshkit.store.txn import (
    Attempt,
    Committed,
    CreateRevisionIs,
    Delete,
    Exists,
    Get,
    ModRevisionIs,
    Nest,
    NoneModifiedSince,
    Operation,
    Put,
    Txn,
    ValueIs,
    prefix_range,
)
from tests.contract.conftest import DEADLINE_S

_runs = itertools.count(1)

KEYS = st.sampled_from([b"a", b"b", b"c", b"ca", b"d"])
ENDS = st.sampled_from([b"", b"", b"b", b"cb", b"e", b"a"])
VALUES = st.sampled_from([b"", b"1", b"2"])
LEASES = st.sampled_from([0, 0, 0, 1, 2])
AGES = st.integers(min_value=0, max_value=12)

PUTS = st.builds(Put, KEYS, VALUES, LEASES, st.sampled_from([False, False, False, True]))
DELETES = st.builds(Delete, KEYS, ENDS)
GETS = st.builds(Get, KEYS, ENDS, st.sampled_from([0, 1, 2]), st.booleans())
FLAT = st.one_of(PUTS, PUTS, DELETES, GETS)
OPERATIONS = st.recursive(
    FLAT,
    lambda inner: st.builds(Nest, st.lists(inner, max_size=3).map(tuple)),
    max_leaves=4,
)
GUARDS = st.one_of(
    st.builds(ModRevisionIs, KEYS, AGES),
    st.builds(CreateRevisionIs, KEYS, AGES),
    st.builds(ValueIs, KEYS, VALUES),
    st.builds(Exists, KEYS),
    st.builds(NoneModifiedSince, st.tuples(KEYS, ENDS), AGES),
)


def attempts(key: bytes) -> st.SearchStrategy[tuple[Operation, ...]]:
    """One transaction inside another or none, on a key that nothing beside it touches."""
    keys = st.just(key)
    guards = st.one_of(
        st.builds(ModRevisionIs, keys, AGES),
        st.builds(ValueIs, keys, VALUES),
        st.builds(Exists, keys),
    )
    operations = st.one_of(
        st.builds(Put, keys, VALUES, LEASES), st.builds(Delete, keys), st.builds(Get, keys)
    )
    attempt = st.builds(
        Txn,
        guards=st.lists(guards, max_size=2).map(tuple),
        operations=st.lists(operations, max_size=2).map(tuple),
        otherwise=st.lists(st.builds(Get, keys), max_size=1).map(tuple),
    )
    return st.lists(st.builds(Attempt, attempt), max_size=1).map(tuple)


TXNS = st.builds(
    Txn,
    guards=st.lists(GUARDS, max_size=2).map(tuple),
    operations=st.tuples(
        st.lists(OPERATIONS, max_size=4).map(tuple), attempts(b"x"), attempts(b"y")
    ).map(lambda parts: parts[0] + parts[1] + parts[2]),
    otherwise=st.lists(GETS, max_size=2).map(tuple),
)
STEPS = st.one_of(
    TXNS,
    TXNS,
    TXNS,
    st.tuples(st.just("range"), KEYS, ENDS, st.one_of(st.none(), AGES), st.integers(0, 2)),
    st.tuples(st.just("newer"), AGES),
    st.tuples(st.just("grant"), st.sampled_from([1, 2])),
    st.tuples(st.just("revoke"), st.sampled_from([1, 2])),
    st.tuples(st.just("keep_alive"), st.sampled_from([1, 2])),
    st.tuples(st.just("compact"), AGES),
)


@attrs.define
class Player:
    """Plays a program on one store, in a corner of its own, and tells what it saw.

    Revisions are told relative to `base`, so that two stores with different pasts compare.
    """

    store: Store
    prefix: bytes
    lease_base: int
    base: int = 0
    greatest: int = 0
    compacted: int = 0

    async def begin(self) -> None:
        outcome = await self.store.commit(Txn(operations=(Put(self.prefix + b"0", b"begin"),)))
        self.base = self.greatest = outcome.revision

    async def play(self, step: Any) -> Any:
        try:
            match step:
                case Txn():
                    outcome = await self.store.commit(self.mine(step))
                    self.greatest = max(self.greatest, outcome.revision)
                    return self.told(outcome)
                case ("range", key, end, age, limit):
                    revision = None if age is None else Revision(self.base + age)
                    key_range = (self.prefix + key, self.prefix + end if end else b"")
                    return self.told(
                        await self.store.range(key_range, revision=revision, limit=limit)
                    )
                case ("newer", age):
                    key_range = prefix_range(self.prefix)
                    after = Revision(self.base + age)
                    return self.told(await self.store.range(key_range, modified_after=after))
                case ("grant", number):
                    await self.store.grant(ttl_s=3600, lease_id=self.lease(number))
                case ("revoke", number):
                    await self.store.revoke(self.lease(number))
                    current = await self.store.range((self.prefix, b""))
                    self.greatest = current.revision
                    return self.told(current)
                case ("keep_alive", number):
                    return await self.store.keep_alive(self.lease(number))
                case ("compact", age):
                    await self.store.compact(Revision(self.base + age))
                    self.compacted = max(self.compacted, age)
        except MeshError as error:
            return type(error).__name__

    async def history(self, start: int) -> Any:
        """Tell what a watch from `start` delivers, up to the last revision of the program."""
        seen: list[Any] = []
        first = Revision(self.base + start)
        await self.store.commit(Txn(operations=(Put(self.prefix + b"end", b"end"),)))
        try:
            async with (
                asyncio.timeout(DEADLINE_S),
                self.store.watch(prefix_range(self.prefix), start=first) as watch,
            ):
                async for item in watch:
                    seen.append(self.told(item))
                    if any(c.key == self.prefix + b"end" for c in item.changes):
                        break
        except Compacted:
            return "Compacted"
        return seen

    def lease(self, number: int) -> LeaseId:
        return LeaseId(self.lease_base + number if number else 0)

    def mine(self, part: Any) -> Any:
        """Move keys, leases and revisions of a program into this player's corner."""
        if isinstance(part, tuple):
            return tuple(self.mine(each) for each in part)
        assert attrs.has(type(part))
        fields: dict[str, Any] = {}
        for field in attrs.fields(type(part)):
            value = getattr(part, field.name)
            match field.name:
                case "key":
                    value = self.prefix + value
                case "end":
                    value = self.prefix + value if value else b""
                case "key_range":
                    value = (self.prefix + value[0], self.prefix + value[1] if value[1] else b"")
                case "revision":
                    value = Revision(self.base + value if value else 0)
                case "lease":
                    value = self.lease(value)
                case "guards" | "operations" | "otherwise" | "txn":
                    value = self.mine(value)
            fields[field.name] = value
        return attrs.evolve(part, **fields)

    def told(self, part: Any) -> Any:
        """Undo `mine` in what the store said."""
        if isinstance(part, tuple):
            return tuple(self.told(each) for each in part)
        if not attrs.has(type(part)):
            return part
        shown: dict[str, Any] = {"": type(part).__name__}
        for field in attrs.fields(type(part)):
            value = getattr(part, field.name)
            if field.name.endswith("revision"):
                value = value - self.base if value else 0
            elif field.name == "lease":
                value = value - self.lease_base if value else 0
            elif field.name == "key":
                value = value.removeprefix(self.prefix)
            elif field.name == "key_range":
                value = tuple(v.removeprefix(self.prefix) for v in value)
            else:
                value = self.told(value)
            shown[field.name] = value
        return shown


async def compare(real: Store, program: list[Any]) -> None:
    number = next(_runs)
    prefix = f"d{number}/".encode()
    memory = MemoryStore(clock=ManualClock())
    players = [Player(s, prefix, 10_000_000 + number * 10) for s in (memory, real)]
    for player in players:
        await player.begin()

    for step in program:
        expected, actual = [await player.play(step) for player in players]
        assert expected == actual, step

    gap = players[0].compacted
    for start in {0, gap - 1, gap + 1} - {gap, -1}:
        expected, actual = [await player.history(start) for player in players]
        assert expected == actual, f"watch from {start}"
    for number in (1, 2):
        await real.revoke(players[1].lease(number))
    await memory.close()


def test_random_programs_do_the_same_on_both(
    etcd_binary: EtcdBinary, etcd_pool: Callable[..., Any]
) -> None:
    """The simulation is worth no more than its etcd is like etcd."""
    process = etcd_pool(etcd_binary)

    with asyncio.Runner() as runner:
        store = EtcdStore.connect([process.endpoint])

        @settings(
            max_examples=60,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(STEPS, min_size=4, max_size=16))
        def run(program: list[Any]) -> None:
            runner.run(compare(store, program))

        try:
            run()
        finally:
            runner.run(store.close())


async def test_the_comparison_would_notice(subject: Any) -> None:
    """A comparison of nothing with nothing proves nothing."""
    player = Player(subject.store, subject.prefix, subject.lease_base)
    await player.begin()

    told = await player.play(Txn(operations=(Put(b"a", b"1", lease=0), Get(b"a"))))

    assert told[""] == Committed.__name__
    assert told["revision"] == 1
    assert told["reads"][0][0]["key"] == b"a"
    assert await player.play(("keep_alive", 1)) == "LeaseLost"
    assert len(await player.history(0)) == 3
