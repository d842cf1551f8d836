"""The audit's chain: what was done to the past shows."""

from __future__ import annotations

import attrs
import pytest

from coordinator.governance.audit import Act, AuditEntry, AuditTip, Tip, appending, tip_of, verify
from meshkit.clock import ManualClock
from meshkit.codec import decode, encode
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import GroupName
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Committed, KeyValue, Txn, prefix_range

ORDERS = GroupName("orders")
PREFIX = prefix_range(Keys.audit(ORDERS, 0)[:-10])


async def written(count: int) -> tuple[MemoryStore, tuple[KeyValue, ...], AuditTip]:
    store = MemoryStore(clock=ManualClock())
    tip = Tip()
    for n in range(count):
        act = Act(actor="operator/alice", action="tested", facts={"n": n})
        entry = appending(ORDERS, tip, [act], now_ms=n)
        outcome = await store.commit(Txn(guards=(entry.guard,), operations=entry.puts))
        assert isinstance(outcome, Committed)
        item = await store.get(Keys.audit_tip(ORDERS))
        tip = tip_of([item] if item else [])
    items = await store.range(PREFIX)
    return store, items.items, tip.tip


async def test_an_untouched_chain_is_whole() -> None:
    """Also an empty one, and one whose transactions appended several entries."""
    _, items, tip = await written(5)

    assert verify(items, tip) == ()
    assert verify((), AuditTip()) == ()


def edited(items: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    entry = attrs.evolve(decode(AuditEntry, items[2].value), actor="operator/mallory")
    return (*items[:2], attrs.evolve(items[2], value=encode(entry)), *items[3:])


def last_edited(items: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    entry = attrs.evolve(decode(AuditEntry, items[-1].value), actor="operator/mallory")
    return (*items[:-1], attrs.evolve(items[-1], value=encode(entry)))


def deleted(items: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    return (*items[:2], *items[3:])


def reordered(items: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    one, two = items[1], items[2]
    return (
        items[0],
        attrs.evolve(one, value=two.value),
        attrs.evolve(two, value=one.value),
        *items[3:],
    )


def truncated(items: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    return items[:-1]


def scribbled(items: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    return (*items[:2], attrs.evolve(items[2], value=b"scribble"), *items[3:])


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (edited, "entry 4 does not continue"),
        (last_edited, "the tip does not match"),
        (deleted, "entry 3 is missing"),
        (reordered, "moved"),
        (truncated, "the tip names entry 5"),
        (scribbled, "cannot be read"),
    ],
)
async def test_tampering_is_found(tamper, found: str) -> None:
    """Each way of changing the past, and where it shows."""
    _, items, tip = await written(5)

    problems = verify(tamper(items), tip)

    assert any(found in problem for problem in problems), problems


async def test_two_who_append_at_once_do_not_fork_the_chain() -> None:
    """The tip's revision is compared: one of the two has to read again."""
    store, _, _ = await written(2)
    item = await store.get(Keys.audit_tip(ORDERS))
    tip = tip_of([item] if item else [])
    act = Act(actor="operator/alice", action="tested")
    first = appending(ORDERS, tip, [act], now_ms=9)
    second = appending(ORDERS, tip, [act, act], now_ms=9)

    await store.commit(Txn(guards=(first.guard,), operations=first.puts))
    outcome = await store.commit(Txn(guards=(second.guard,), operations=second.puts))

    assert not isinstance(outcome, Committed)
