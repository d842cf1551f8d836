"""Claims about which keys an epoch covers which a review once found untrue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import pytest

from fencing import fence as fences
from meshkit.codec import encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import FailoverId
from meshkit.ordinals import Epoch, Incarnation
from meshkit.regional import SegmentScope
from meshkit.store.txn import Committed, Put, Txn, prefix_range
from tests.replicator.mesh import ALWAYS, PREFIXES, A, B, G, H, K, Mesh

WIDER = ("/new/", "/orders/")


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    mesh = Mesh(A, B)
    await mesh.start()
    yield mesh
    await mesh.close()


async def open_txn(mesh: Mesh, cut: int) -> Txn:
    """What B's agent commits to open epoch 2, while the group's record has the wider prefixes."""
    mesh.lineages[G] = Lineage(
        parent=A,
        parent_incarnation=Incarnation("a-1"),
        parent_epoch=Epoch(1),
        sequence=cut,
        prefixes=PREFIXES[G],
    )
    mesh.active[G], mesh.epochs[G] = B, 2
    command = Command(
        group=G,
        cluster=B,
        step=CommandStep.OPEN,
        incarnation=1,
        epoch=Epoch(2),
        failover=FailoverId("f"),
        lineage=mesh.lineages[G],
    )
    lease = await mesh[B].store.grant(ttl_s=10**7)
    decision = fences.decide(
        await mesh.view(B, G),
        command,
        mesh.token(),
        leader=ALWAYS,
        lease=lease.lease_id,
        prefixes=WIDER,
    )
    assert isinstance(decision, fences.Act), decision
    return decision.txn


async def open_with_the_parents_scope(mesh: Mesh, cut: int) -> None:
    """Open as it is done now; then B's upkeep says in the log that the group covers more."""
    await mesh[B].store.commit(await open_txn(mesh, cut))
    widen = fences.scope_again(await mesh.view(B, G), WIDER, leader=ALWAYS)
    assert widen is not None
    assert isinstance(await mesh[B].store.commit(widen), Committed)


async def open_wider(mesh: Mesh, cut: int) -> None:
    """Open with more than the parent covered, whatever let that happen."""
    txn = await open_txn(mesh, cut)
    key = RegionalKeys.segment_scope(G, Epoch(2))
    scope = SegmentScope(group=G, epoch=Epoch(2), prefixes=WIDER)
    operations = tuple(
        Put(key, encode(scope)) if isinstance(o, Put) and o.key == key else o
        for o in txn.operations
    )
    assert operations != txn.operations
    wider = attrs.evolve(txn, operations=operations)
    assert isinstance(await mesh[B].store.commit(wider), Committed)


def under(mesh: Mesh, at: str, prefix: bytes) -> dict[bytes, bytes]:
    live = mesh[at].store.server.history.live(prefix_range(prefix))
    return {item.key: item.value for item in live}


@pytest.mark.parametrize("open_at_b", [open_with_the_parents_scope, open_wider])
async def test_an_epoch_that_covers_more_than_its_parent_did_is_copied(
    pair: Mesh, open_at_b: Callable[[Mesh, int], Awaitable[None]]
) -> None:
    """`mesh groups apply` adds /new/ and the group moves before A's upkeep has changed the scope.

    A has keys under /new/ that B does not have, or the other way: no record tells of them.
    """
    await pair.found(G, A)
    await pair.converge()
    await pair.write(A, {"/new/unguarded": "by whatever did not wait for the scope"})
    cut = await pair.drain(G)
    await pair.until(lambda: pair.has_applied(B, G, A, cut))
    await pair.write(B, {"/new/there": "before the opening"})
    await open_at_b(pair, cut)
    await pair.write(B, {"/new/later": "1", "/orders/later": "1"})

    await pair.converge()

    assert set(under(pair, B, b"/new/")) == {b"/new/there", b"/new/later"}
    assert under(pair, A, b"/new/") == under(pair, B, b"/new/")


async def test_an_apply_never_overwrites_what_this_cluster_is_active_for(pair: Mesh) -> None:
    """A prefix went from one group to another, and the first one's active cluster lags behind.

    H has /users/ and is active at B; at A the segment of G still covers it. Whatever A sends of G,
    B must not let it change keys under its own permit: neither by a copy nor by a record.
    """
    await pair.found(G, A)
    await pair.found(H, B)
    await pair.converge()
    await pair.write(B, {"/users/1": "by B under its permit", "/users/2": "by B"})
    await pair.converge()
    before = pair.scope(B, H)
    await rescope(pair, ("/orders/", "/users/"))
    await pair.write(A, {"/users/1": "by A under the other group's permit"})
    await pair.clock.advance_ms(3_000)

    assert pair.scope(B, H) == before


async def rescope(mesh: Mesh, prefixes: tuple[str, ...]) -> None:
    """Change what G covers at A, as its upkeep does."""
    txn = fences.scope_again(await mesh.view(A, G), prefixes, leader=ALWAYS)
    assert txn is not None
    assert isinstance(await mesh[A].store.commit(txn), Committed)


async def test_a_group_that_is_refused_says_so_stops_no_other_and_comes_back(pair: Mesh) -> None:
    """Never silently, never promotable as it is, and never at the cost of the other groups."""
    await pair.found(G, A)
    await pair.found(H, B)
    await pair.found(K, A)
    await pair.converge()
    await pair.write(B, {"/users/1": "by B under its permit"})
    await pair.converge()
    before = pair.scope(B, H)
    await rescope(pair, ("/orders/", "/users/"))
    await pair.write(A, {"/users/1": "by A", "/stock/1": "of a third group", "/orders/1": "1"})

    await pair.until(lambda: pair.scope(B, K) == pair.scope(A, K) != {}, within_ms=2_000)
    await pair.clock.advance_ms(5_000)
    inbound = pair[B].inbound
    assert inbound is not None
    assert "orders covers keys of users, which is active here" in inbound.problems()[A]
    assert not inbound.in_step(G)
    assert pair.scope(B, H) == before

    await rescope(pair, ("/orders/",))
    await pair.write(B, {"/users/1": "by B", "/users/2": "by B"})
    await pair.converge(within_ms=30_000)
    await pair.clock.advance_ms(1_000)
    assert inbound.problems() == {}


async def test_a_record_never_reaches_under_a_permit_that_was_put_after_it_was_sent(
    pair: Mesh,
) -> None:
    """B learns of its own wider scope by a broken guard, not by a watch that may hang."""
    await pair.found(G, A)
    await pair.found(H, B)
    await pair.converge()
    inbound = pair[B].inbound
    assert inbound is not None
    inbound.mirror._take_in = lambda _: None  # type: ignore[method-assign]
    widen = fences.scope_again(
        await pair.view(B, H), ("/accounts/", "/orders/b/", "/users/"), leader=ALWAYS
    )
    assert widen is not None
    await pair[B].store.commit(widen)
    await pair.write(B, {"/orders/b/1": "by B under its permit"})
    await pair.write(A, {"/orders/b/1": "by A", "/orders/2": "by A"})
    await pair.clock.advance_ms(3_000)

    assert under(pair, B, b"/orders/b/") == {b"/orders/b/1": b"by B under its permit"}
