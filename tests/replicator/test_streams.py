"""Whole streams over memory stores: what arrives, in which order, and what never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import attrs
import pytest

from fencing import fence as fences
from meshkit.clock import settle
from meshkit.commands import CommandStep
from meshkit.names import GroupName
from meshkit.ordinals import Incarnation, Revision
from meshkit.regional import FenceMode
from meshkit.status import StreamState
from meshkit.store.txn import Committed, Put, Txn, prefix_range
from replicator.limits import Limits
from replicator.transaction import nested
from tests.replicator.mesh import ALWAYS, PREFIXES, SMALL, A, B, C, G, H, Mesh


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    mesh = Mesh(A, B)
    await mesh.start()
    yield mesh
    await mesh.close()


@pytest.fixture
async def three() -> AsyncIterator[Mesh]:
    mesh = Mesh(A, B, C)
    await mesh.start()
    yield mesh
    await mesh.close()


async def test_what_is_there_is_copied_and_what_follows_is_streamed(pair: Mesh) -> None:
    """First copy and stream meet without a gap: nothing is missing, nothing is left over."""
    for n in range(20):
        await pair.write(A, {f"/orders/{n:02}": f"old {n}", f"/orders2/{n}": "not ours"})
    await pair.write(B, {"/orders/extra": "is not at the source"})
    await pair.found(G, A)
    for n in range(10, 40):
        await pair.write(A, {f"/orders/{n:02}": f"new {n}", f"/orders/{n - 10:02}": None})

    await pair.converge()
    for n in range(30, 50):
        await pair.write(A, {f"/orders/{n:02}": f"newer {n}", f"/orders/{n - 20:02}": None})
        await pair.clock.advance_ms(5)
    await pair.converge()

    assert await pair[B].state(b"/orders/") == await pair[A].state(b"/orders/")
    assert await pair[B].state(b"/orders2/") == {}
    assert pair.check_history() > 5


async def test_a_stream_survives_every_broken_connection(pair: Mesh) -> None:
    """Drops of whatever is under way neither lose nor repeat nor reorder a record."""
    await pair.found(G, A)
    await pair.converge()
    for n in range(60):
        await pair.write(A, {f"/orders/{n % 7}": f"{n}", f"/orders/only-{n}": "x"})
        if n % 5 == 4:
            await pair.clock.advance_ms(n)
            pair.network.break_all(drop=n % 2 == 0)

    await pair.converge()

    assert pair.check_history() > 5


async def test_a_standby_that_was_down_catches_up_by_itself(pair: Mesh) -> None:
    """No operator is needed after a standby's replicators were away for a while."""
    await pair.found(G, A)
    await pair.write(A, {"/orders/1": "before"})
    await pair.converge()
    await pair.stop(B)
    for n in range(50):
        await pair.write(A, {f"/orders/{n}": "while down"})
    await pair.write(A, {"/orders/1": None})
    await pair.start(B)

    await pair.converge()

    assert pair.check_history() > 1


async def test_a_position_that_was_compacted_away_is_copied_anew(pair: Mesh) -> None:
    """Compaction overtaking a standby must never be silent: deletes would be lost for ever."""
    await pair.found(G, A)
    await pair.write(A, {"/orders/1": "1", "/orders/2": "2"})
    await pair.converge()
    await pair.stop(B)
    await pair.write(A, {"/orders/1": None})
    for n in range(3, 30):
        await pair.write(A, {f"/orders/{n}": "while down"})
    revision = await pair.write(A, {"/orders/last": "1"})
    await pair[A].store.compact(revision)
    await pair.start(B)

    await pair.converge()

    assert pair.joins_made(B, A, G) == 2
    assert b"/orders/1" not in await pair[B].state(b"/orders/")


async def test_compaction_during_a_copy_begins_it_anew(pair: Mesh) -> None:
    """S15 in small: a copy whose cut is compacted halfway must not mix two revisions."""
    for n in range(60):
        await pair.write(A, {f"/orders/{n:03}": "old"})
    await pair.found(G, A)
    copied = lambda: len(pair.scope(B, G)) > 10  # noqa: E731
    await pair.until(copied)
    revision = 0
    for n in range(0, 60, 2):
        revision = await pair.write(A, {f"/orders/{n:03}": None})
    await pair[A].store.compact(Revision(revision))

    await pair.converge()

    assert pair.scope(B, G) == pair.scope(A, G)


async def test_an_interrupted_copy_goes_on_at_its_cursor(pair: Mesh) -> None:
    """A copy of millions of keys must survive a broken connection without beginning again."""
    for n in range(90):
        await pair.write(A, {f"/orders/{n:03}": "old"})
    await pair.found(G, A)
    while not pair.is_converged():
        await pair.clock.advance_ms(10)
        if len(pair.scope(B, G)) > 20 and pair.network.connections:
            pair.network.break_all()
            break

    await pair.converge()

    versions = {i.version for i in pair[B].store.server.history.live(prefix_range(b"/orders/"))}
    assert versions == {1}, "a key was written again"


async def test_a_break_right_after_the_meeting_repeats_nothing() -> None:
    """From the meeting on the main stream carries the group: it must resume there, not before."""
    mesh = Mesh(A, B, limits=attrs.evolve(SMALL, checkpoint_idle_ms=10**7))
    await mesh.start()
    await mesh.found(G, A)
    for n in range(60):
        await mesh.write(A, {"/orders/1": f"{n:03}", f"/orders/{n:03}": "x"})
        await settle(2)
    while not mesh[B].is_out_of_step(G):
        await mesh.clock.advance_ms(1)
    while mesh[B].is_out_of_step(G):
        await settle(1)
        if not mesh[B].is_out_of_step(G):
            break
        await mesh.clock.advance_ms(1)
    mesh.network.break_all()

    await mesh.converge()
    await mesh.write(A, {"/orders/1": "last"})
    await mesh.converge()

    log = mesh[B].store.server.history._log
    seen = [c.item.value for r in log for c in r.changes if c.key == b"/orders/1"]
    assert seen == sorted(set(seen)), "a value came twice or went back"
    assert mesh.check_history() > 0
    await mesh.close()


async def test_a_source_transaction_of_three_thousand_keys_is_one_revision_here(
    pair: Mesh,
) -> None:
    """Never torn: no reader of the standby may see half of a transaction."""
    pair = Mesh(A, B, limits=Limits())
    await pair.start()
    await pair.found(G, A)
    await pair.converge()
    puts = [Put(f"/orders/{n:05}".encode(), b"v" * 40) for n in range(3000)]
    outcome = await pair[A].store.commit(Txn(operations=nested(puts)))
    assert isinstance(outcome, Committed)

    await pair.converge()

    items = pair[B].store.server.history.live(prefix_range(b"/orders/"))
    assert len(items) == 3000
    assert len({item.mod_revision for item in items}) == 1
    await pair.close()


async def test_a_large_transaction_after_small_ones_still_fits() -> None:
    """What is batched together must fit into one etcd request; what cannot be split goes alone."""
    mesh = Mesh(A, B, limits=Limits())
    await mesh.start()
    await mesh.found(G, A)
    await mesh.converge()
    for n in range(100):
        await mesh.write(A, {f"/orders/{n}": "x" * 5_000})
    await mesh.write(A, {"/orders/large": "y" * 1_400_000})
    await mesh.write(A, {"/orders/after": "z" * 400_000})

    await mesh.converge()
    await mesh.close()


async def test_applied_writes_are_not_sent_back(pair: Mesh) -> None:
    """Loops would copy each write for ever; an apply is recognised by its checkpoint."""
    await pair.found(G, A)
    await pair.found(H, B)
    await pair.write(A, {"/orders/1": "1"})
    await pair.write(B, {"/users/1": "1"})
    await pair.converge()
    await pair.clock.advance_ms(2_000)
    versions = [
        pair[name].store.server.history.lookup(key).version  # type: ignore[union-attr]
        for name in (A, B)
        for key in (b"/orders/1", b"/users/1")
    ]

    assert versions == [1, 1, 1, 1]


async def test_two_idle_clusters_do_not_keep_each_other_busy(pair: Mesh) -> None:
    """A checkpoint is a revision too: it must not call for a checkpoint at the other side."""
    await pair.found(G, A)
    await pair.found(H, B)
    await pair.converge()
    before = [pair[name].store.server.history.revision for name in (A, B)]

    await pair.clock.advance_ms(10_000)

    after = [pair[name].store.server.history.revision for name in (A, B)]
    intervals = 10_000 // SMALL.checkpoint_idle_ms
    assert all(new - old <= intervals + 1 for old, new in zip(before, after, strict=True))


async def test_a_group_goes_to_another_cluster_and_back(three: Mesh) -> None:
    """A to B to A, with C following: three lineages, nothing lost, nothing echoed."""
    await three.found(G, A)
    await three.found(H, A)
    await three.write(A, {"/orders/1": "a", "/users/1": "a"})
    for number, to in enumerate((B, A, C, B)):
        await three.move(G, to)
        await three.write(to, {f"/orders/{to}{number}": "x", "/orders/1": f"{number}"})
        await three.write(A, {f"/accounts/{number}": "y"})

    await three.converge()

    assert three.check_history() > 20
    fence = three[A].fence(G)
    assert fence is not None
    assert fence.mode is FenceMode.SUPERSEDED


async def test_s5_a_third_cluster_applies_the_parent_to_its_cut_first(three: Mesh) -> None:
    """S5: C must have A's last records before anything of B's epoch."""
    await three.found(G, A)
    await three.write(A, {"/orders/1": "1"})
    await three.converge()
    cut_off = {(C, A)}
    three.network.is_reachable = lambda target, source: (target, source) not in cut_off
    three.network.break_all()
    await three.write(A, {"/orders/1": "2", "/orders/last": "of A"})
    cut = await three.drain(G)
    await three.until(lambda: three.has_applied(B, G, A, cut))
    await three.pivot(G, B, cut)
    await three.write(B, {"/orders/1": "3"})
    await three.clock.advance_ms(1_000)

    held = three.scope(C, G)
    assert held == {b"/orders/1": b"1"}
    inbound = three[C].inbound
    assert inbound is not None
    assert "stands on a@" in inbound.problems()[B]

    cut_off.clear()
    await three.converge()

    assert three.check_history() > 3
    assert three.joins_made(C, B, G) == 0, "nothing had to be copied"


async def test_s7_a_third_cluster_copies_from_the_child_if_the_parent_is_gone(
    three: Mesh,
) -> None:
    """With the parent gone nobody can bring its last records but the child."""
    await three.found(G, A)
    await three.write(A, {"/orders/1": "1"})
    await three.converge()
    await three.stop(C)
    await three.write(A, {"/orders/1": "2"})
    await three.move(G, B)
    await three.stop(A)
    await three.write(B, {"/orders/2": "2"})
    await three.start(C)

    await three.until(lambda: three.has_applied(C, G, B, 0))
    await three.until(lambda: three.scope(C, G) == three.scope(B, G))

    await three.start(A)
    await three.converge()


async def test_s9_only_the_segment_is_sent_whoever_restarts(three: Mesh) -> None:
    """S9: writes before the opening and after the cut are no records of this log."""
    await three.found(G, A)
    await three.converge()
    await three.write(B, {"/orders/foreign": "before the opening"})
    await three.move(G, B)
    await three.stop(B)
    await three.start(B)
    await three.write(B, {"/orders/mine": "in the segment"})
    three.network.break_all()
    await three.until(lambda: b"/orders/mine" in three.scope(C, G))
    cut = await three.drain(G)
    await three.until(lambda: three.has_applied(A, G, B, cut))
    await three.write(B, {"/orders/late": "after the cut"})
    await three.clock.advance_ms(1_000)

    assert b"/orders/foreign" not in three.scope(C, G)
    assert b"/orders/late" not in three.scope(A, G)
    assert b"/orders/late" not in three.scope(C, G)


async def test_an_undrained_group_goes_on_in_the_same_segment(pair: Mesh) -> None:
    """Undone before the pivot: nothing is copied anew if nobody wrote in between."""
    await pair.found(G, A)
    await pair.converge()
    await pair.drain(G)
    await pair.clock.advance_ms(200)
    await pair.undrain(G)
    await pair.write(A, {"/orders/1": "goes on"})

    await pair.converge()

    assert pair.check_history() > 0


async def test_unguarded_writes_between_drain_and_undrain_are_copied(pair: Mesh) -> None:
    """They are in no record, so only a copy brings the standby level again."""
    await pair.found(G, A)
    await pair.write(A, {"/orders/1": "1"})
    await pair.converge()
    await pair.drain(G)
    await pair.write(A, {"/orders/1": None, "/orders/sneaked": "in"})
    await pair.clock.advance_ms(200)
    await pair.undrain(G)

    await pair.converge()

    assert pair.scope(B, G) == {b"/orders/sneaked": b"in"}


async def test_unguarded_writes_are_noticed_by_a_sender_that_began_after_them(pair: Mesh) -> None:
    """What is dirty must not depend on what happened to be in memory."""
    await pair.found(G, A)
    await pair.write(A, {"/orders/1": "1"})
    await pair.converge()
    await pair.drain(G)
    await pair.write(A, {"/orders/1": None})
    await pair.clock.advance_ms(2_000)
    pair.network.break_all()
    await pair.clock.advance_ms(2_000)
    await pair.undrain(G)

    await pair.converge()

    assert pair.scope(B, G) == {}


async def test_s27_prefixes_are_added_while_the_stream_runs(pair: Mesh) -> None:
    """S27: a new prefix is copied; a transaction over two groups is seen by each once."""
    await pair.found(G, A)
    await pair.found(H, A)
    await pair.write(A, {"/new/1": "not in scope yet", "/orders/1": "1"})
    await pair.converge()
    view = await pair.view(A, G)
    wider = ("/new/", "/orders/")
    txn = fences.scope_again(view, wider, leader=ALWAYS)
    assert txn is not None
    await pair[A].store.commit(txn)
    await pair.write(A, {"/new/2": "2", "/orders/2": "2", "/users/2": "2"})
    pair_scope = lambda at: {  # noqa: E731
        i.key: i.value for i in pair[at].store.server.history.live(prefix_range(b"/new/"))
    }

    await pair.until(lambda: not pair[B].is_out_of_step(G) and len(pair_scope(B)) == 2)
    await pair.until(lambda: pair.scope(B, H) == pair.scope(A, H))

    assert pair_scope(B) == pair_scope(A)


async def test_s27_a_transaction_over_two_groups_while_one_joins(pair: Mesh) -> None:
    """Each group sees its half once: one from the copy, the other from the stream."""
    await pair.found(G, A)
    await pair.converge()
    for n in range(30):
        await pair.write(A, {f"/users/{n:02}": "before"})
    await pair.found(H, A)
    for n in range(30):
        await pair.write(A, {f"/users/{n:02}": f"{n}", f"/orders/{n:02}": f"{n}"})
        await pair.clock.advance_ms(3)

    await pair.converge()

    assert pair.check_history() > 5
    orders = pair[B].store.server.history.live(prefix_range(b"/orders/"))
    assert {item.version for item in orders} == {1}


async def test_s28_progress_that_runs_ahead_of_events_is_not_believed(pair: Mesh) -> None:
    """S28: etcd 3.5.1 answers a progress request ahead of its events."""
    await pair.found(G, A)
    await pair.converge()
    server = pair[A].store.server
    await pair.write(A, {"/orders/1": "1"})
    for listener in server.listeners:
        if hasattr(listener, "on_progress"):
            listener.on_progress(Revision(server.history.revision + 50))
    await pair.clock.advance_ms(100)
    pair.network.break_all()
    await pair.write(A, {"/orders/2": "2"})

    await pair.converge()


async def test_a_restored_source_is_never_resumed(pair: Mesh) -> None:
    """Its history is another one: going on from a position in the old one would skip records."""
    await pair.found(G, A)
    await pair.converge()
    await pair.stop(A)
    pair[A].outbound._incarnation = Incarnation("a-2")
    await pair.start(A)
    await pair.write(A, {"/orders/1": "of another history"})
    await pair.clock.advance_ms(3_000)

    assert pair.scope(B, G) == {}
    inbound = pair[B].inbound
    assert inbound is not None
    assert "a-2" in inbound.problems()[A]


async def test_a_source_that_does_not_lead_refuses(pair: Mesh) -> None:
    """The dialer must go on to the replicator that leads."""
    pair[A].outbound._is_leading = lambda: False
    await pair.found(G, A)
    await pair.clock.advance_ms(2_000)
    inbound = pair[B].inbound
    assert inbound is not None
    assert "does not lead" in inbound.problems()[A]

    pair[A].outbound._is_leading = lambda: True
    await pair.converge()


async def test_lag_is_zero_only_when_it_is_proven(pair: Mesh) -> None:
    """Unknown before the first connection, growing while cut off, zero when all is applied."""
    unmet = Mesh(A, B)
    assert unmet[A].outbound.lag(B).lag_ms is None
    await pair.found(G, A)
    await pair.converge()
    waiting = asyncio.ensure_future(pair[A].outbound.wait_caught_up(B, lag_ms_max=100))
    await pair.until(waiting.done, within_ms=200)
    assert (await waiting).state is StreamState.STREAMING

    pair.network.is_reachable = lambda _t, _s: False
    pair.network.break_all()
    await pair.write(A, {"/orders/1": "1"})
    await pair.clock.advance_ms(3_000)

    lag = pair[A].outbound.lag(B)
    assert lag.state is StreamState.STALLED
    assert lag.lag_ms is not None
    assert 2_800 <= lag.lag_ms <= 3_200
    pair.network.is_reachable = lambda _t, _s: True
    await pair.converge()
    await pair.clock.advance_ms(200)
    assert pair[A].outbound.lag(B).lag_ms == 0


async def test_waiting_for_a_position_without_records_has_it_stored(pair: Mesh) -> None:
    """Nobody must wait for the idle interval just because nothing of the log concerned them."""
    await pair.found(G, A)
    await pair.converge()
    revision = await pair.write(A, {"/elsewhere": "1"})
    inbound = pair[B].inbound
    assert inbound is not None
    waiting = asyncio.ensure_future(
        inbound.wait_applied(A, Incarnation("a-1"), Revision(revision))  # type: ignore[arg-type]
    )
    await pair.until(waiting.done, within_ms=200)
    await waiting


async def test_leases_do_not_travel(pair: Mesh) -> None:
    """A passive copy carries no lease: its end arrives as a delete."""
    await pair.found(G, A)
    lease = await pair[A].store.grant(ttl_s=5)
    await pair[A].store.commit(Txn(operations=(Put(b"/orders/e", b"1", lease=lease.lease_id),)))
    await pair.converge()
    copy = pair[B].store.server.history.lookup(b"/orders/e")
    assert copy is not None
    assert copy.lease == 0

    await pair.clock.advance_ms(7_000)
    await pair.converge()

    assert pair.scope(B, G) == {}


async def test_the_old_active_follows_once_its_successor_opened(pair: Mesh) -> None:
    """The opening in the stream is the proof: the drained fence becomes superseded by it."""
    await pair.found(G, A)
    await pair.converge()
    await pair.move(G, B)
    inbound = pair[A].inbound
    assert inbound is not None
    waiting = asyncio.ensure_future(inbound.wait_follow(G, 2))
    await pair.until(waiting.done, within_ms=1_000)

    await pair.command(CommandStep.REVERSE, A, G, epoch=2)
    await pair.write(B, {"/orders/1": "from B"})
    await pair.converge()


def test_the_prefixes_of_the_test_groups_do_not_overlap() -> None:
    """The harness relies on it."""
    names: list[tuple[GroupName, str]] = [(g, p) for g, ps in PREFIXES.items() for p in ps]
    assert len({p for _, p in names}) == len(names)
