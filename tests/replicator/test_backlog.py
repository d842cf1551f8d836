"""A backlog beyond its bound is not replayed but copied, and a small one never is."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.clock import ManualClock, settle
from meshkit.ordinals import Revision, Sequence
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from replicator.backlog import BeyondBound, is_copy_cheaper, stays_within_bound
from replicator.limits import DEFAULT_LIMITS, Limits
from tests.replicator.mesh import A, B, G, Mesh
from tests.replicator.test_copies import Sent

BOUND = Limits(backlog_revisions_max=100, page_keys_max=40)


@pytest.mark.parametrize(
    ("revisions", "keys", "expected"),
    [(100, 0, False), (101, 0, True), (101, 203, False), (101, 201, True), (10**6, 10**7, False)],
)
def test_a_copy_is_chosen_only_where_it_is_cheaper(
    revisions: int, keys: int, expected: bool
) -> None:
    assert is_copy_cheaper(revisions=revisions, keys=keys, limits=BOUND) is expected


@given(st.integers(0, DEFAULT_LIMITS.backlog_revisions_max), st.integers(0, 10**9))
def test_by_default_no_backlog_below_a_million_revisions_is_copied(
    revisions: int, keys: int
) -> None:
    assert DEFAULT_LIMITS.backlog_revisions_max >= 1_000_000
    assert not is_copy_cheaper(revisions=revisions, keys=keys)


@given(st.integers(0, 10**12), st.integers(0, 10**9))
def test_without_a_bound_every_backlog_is_replayed(revisions: int, keys: int) -> None:
    limits = Limits(backlog_revisions_max=0)

    assert not is_copy_cheaper(revisions=revisions, keys=keys, limits=limits)


async def away_for(mesh: Mesh, revisions: int) -> Sent:
    await mesh.start()
    await mesh.write(A, {f"/orders/{n:03}": "before" for n in range(50)})
    await mesh.found(G, A)
    await mesh.converge()
    await mesh.stop(B)
    for n in range(revisions):
        await mesh.write(A, {"/orders/007": f"{n}"})
    await mesh.write(A, {"/orders/008": None})
    sent = Sent(mesh)
    await mesh.start(B)
    sent.watch()
    await mesh.converge()
    return sent


async def test_a_standby_far_behind_is_copied_and_gets_only_what_differs() -> None:
    mesh = Mesh(A, B, limits=BOUND)
    sent = await away_for(mesh, 150)

    assert mesh.joins_made(B, A, G) == 2
    assert sent.items in ([b"/orders/007"], [])
    versions = [
        change.item.value
        for changes in mesh[B].store.server.history._log
        for change in changes.changes
        if change.key == b"/orders/007"
    ]
    assert versions == [b"before", b"149"], "the backlog was replayed"
    assert mesh.check_history() > 0
    await mesh.close()


async def test_a_standby_a_little_behind_is_brought_up_by_the_stream() -> None:
    mesh = Mesh(A, B, limits=BOUND)
    await away_for(mesh, 60)

    assert mesh.joins_made(B, A, G) == 1
    await mesh.close()


async def test_a_standby_that_falls_far_behind_while_it_is_connected_is_copied() -> None:
    """Its etcd takes nothing for now; what it missed is not replayed when it is back."""
    mesh = Mesh(A, B, limits=BOUND)
    await mesh.start()
    await mesh.write(A, {f"/orders/{n:03}": "before" for n in range(50)})
    await mesh.found(G, A)
    await mesh.converge()
    inbound = mesh[B].inbound
    assert inbound is not None
    inbound._store.partition()  # type: ignore[attr-defined]
    for n in range(150):
        await mesh.write(A, {"/orders/007": f"{n}"})
    await mesh.clock.advance_ms(3 * BOUND.backlog_look_ms)

    inbound._store.heal()  # type: ignore[attr-defined]
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == 2
    assert mesh.scope(B, G) == mesh.scope(A, G)
    await mesh.close()


class Head:
    """A store's head, as the test says."""

    def __init__(self, head: int) -> None:
        self.head = Revision(head)


async def test_a_standby_that_comes_closer_is_left_alone() -> None:
    clock, head, stored = ManualClock(), Head(300), [10]
    store = MemoryStore(clock=clock)
    for number in range(400):
        await store.commit(Txn(operations=(Put(b"k", b"%d" % number),)))
    running = asyncio.ensure_future(
        stays_within_bound(store, clock, lambda: Sequence(stored[0]), head, BOUND)
    )
    await settle()
    for stored[0] in (10, 20, 30):
        await clock.advance_ms(BOUND.backlog_look_ms)
        assert not running.done()

    head.head = Revision(400)
    await clock.advance_ms(BOUND.backlog_look_ms)

    with pytest.raises(BeyondBound):
        await running


async def test_a_paused_stream_is_not_looked_at() -> None:
    clock, looked = ManualClock(), []

    def position() -> None:
        looked.append(clock.now_ms())

    store = MemoryStore(clock=clock)
    running = asyncio.ensure_future(stays_within_bound(store, clock, position, Head(10**9), BOUND))
    await settle()
    await clock.advance_ms(3 * BOUND.backlog_look_ms)

    assert len(looked) == 3
    assert not running.done()
    running.cancel()
