"""A transaction that only reads may be given up at any moment, and no etcd dies of it.

Before 3.5.5 etcd panics when the caller of one hangs up while it is served (etcd #14110).
"""

from __future__ import annotations

import asyncio

import pytest

from cli.sandbox.etcd import EtcdProcess
from meshkit.errors import Compacted
from meshkit.ordinals import Revision
from meshkit.store.etcd import EtcdStore
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.etcd_reads import is_reading_sound, only_reads, read_apart
from meshkit.store.txn import (
    Committed,
    Delete,
    Exists,
    Get,
    NoneModifiedSince,
    Put,
    Rejected,
    Txn,
    ValueIs,
    absent,
)
from tests.contract.conftest import Subject

GIVEN_UP = 2_000
"""etcd 3.5.1 died of some 400."""
AT_ONCE = 20


@pytest.mark.etcd
@pytest.mark.parametrize("reads_count", [5, 20])
async def test_no_etcd_dies_of_a_reading_transaction_that_is_given_up(
    fresh_etcd: EtcdProcess, reads_count: int
) -> None:
    store = EtcdStore.connect([fresh_etcd.endpoint])
    try:
        keys = [f"/k/{n}".encode() for n in range(reads_count)]
        for key in keys:
            await store.commit(Txn(operations=(Put(key, b"x" * 100),)))
        reads = Txn(operations=tuple(Get(key) for key in keys))

        async def give_up(number: int) -> None:
            reading = asyncio.ensure_future(store.commit(reads))
            await asyncio.wait({reading}, timeout=(number % 60) / 10_000)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

        for first in range(0, GIVEN_UP, AT_ONCE):
            await asyncio.gather(*(give_up(first + n) for n in range(AT_ONCE)))

        assert fresh_etcd.is_running
        assert isinstance(await store.commit(reads), Committed)
    finally:
        await store.close()


@pytest.mark.parametrize("times", [1, 10], ids=["few", "many"])
async def test_the_guards_of_a_reading_transaction_count(subject: Subject, times: int) -> None:
    a, b, c = subject.key("a"), subject.key("b"), subject.key("c")
    made = await subject.store.commit(Txn(operations=(Put(a, b"1"), Put(b, b"2"))))
    gets = (Get(a), Get(*subject.keys), Get(c)) * times

    held = await subject.store.commit(
        Txn(
            guards=(
                ValueIs(a, b"1"),
                Exists(b),
                absent(c),
                NoneModifiedSince(subject.keys, made.revision),
            ),
            operations=gets,
        )
    )
    broken = await subject.store.commit(
        Txn(guards=(Exists(a), Exists(c)), operations=gets, otherwise=(Get(b),))
    )
    bare = await subject.store.commit(Txn(guards=(absent(c),), operations=()))

    assert isinstance(held, Committed)
    assert [[item.key for item in read] for read in held.reads] == [[a], [a, b], []] * times
    assert isinstance(broken, Rejected)
    assert broken.broken == (Exists(c),)
    assert [item.value for (item,) in broken.reads] == [b"2"]
    assert isinstance(bare, Committed)
    assert held.revision == broken.revision == bare.revision == made.revision


class Pages:
    """Answers reads, the first ones at revision 7; some revisions are gone."""

    def __init__(self, *, gone: int) -> None:
        self.gone = gone
        self.asked: list[int] = []

    async def __call__(self, request: wire.RangeRequest) -> wire.RangeResponse:
        self.asked.append(request.revision)
        if request.revision and self.gone:
            self.gone -= 1
            raise Compacted(revision=Revision(request.revision), compact_revision=Revision(9))
        return wire.RangeResponse(header=wire.ResponseHeader(revision=7))


TWO = Txn(operations=(Get(b"a"), Get(b"b")))


async def test_all_reads_are_of_the_revision_of_the_first() -> None:
    pages = Pages(gone=0)

    outcome = await read_apart(TWO, pages)

    assert outcome == Committed(revision=Revision(7), reads=((), ()))
    assert pages.asked == [0, 7]


async def test_reads_whose_revision_is_compacted_on_the_way_begin_anew() -> None:
    pages = Pages(gone=1)

    assert isinstance(await read_apart(TWO, pages), Committed)
    assert pages.asked == [0, 7, 0, 7]


async def test_reads_whose_revision_is_always_gone_say_so() -> None:
    with pytest.raises(Compacted):
        await read_apart(TWO, Pages(gone=99))


@pytest.mark.parametrize(
    ("version", "is_sound"),
    [("3.4.20", False), ("3.5.1", False), ("3.5.4", False), ("3.5.5", True), ("", True)],
)
def test_which_etcd_survives_it(version: str, is_sound: bool) -> None:
    assert is_reading_sound(version) is is_sound


def test_what_writes_or_does_nothing_is_not_read_apart() -> None:
    assert not only_reads(Txn(operations=(Get(b"a"), Delete(b"b"))))
    assert not only_reads(Txn(operations=()))
