"""Claims about groups out of step which a review once found untrue: streams that never came right."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from fencing import fence as fences
from meshkit.codec import decode
from meshkit.commands import CommandStep
from meshkit.keys import RegionalKeys
from meshkit.ordinals import Epoch
from meshkit.regional import GroupCheckpoint, JoinPhase
from meshkit.store.memory import MemoryStore
from meshkit.store.port import RevisionChanges
from meshkit.store.txn import Delete, Put, Txn
from replicator.limits import Limits
from replicator.transaction import nested
from tests.replicator.mesh import ALWAYS, A, B, C, G, H, Mesh


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


def phase_at_b(mesh: Mesh) -> JoinPhase | None:
    item = mesh[B].store.server.history.lookup(RegionalKeys.group_checkpoint(A, G))
    return decode(GroupCheckpoint, item.value).phase if item else None


class CutOffWhenCopied:
    """Cuts a client off from its store in the very moment in which a copy is complete."""

    def __init__(self, client: MemoryStore) -> None:
        self.client = client

    def on_changes(self, changes: RevisionChanges) -> None:
        for change in changes.changes:
            if change.key == RegionalKeys.group_checkpoint(A, G) and not change.is_delete:
                checkpoint = decode(GroupCheckpoint, change.item.value)
                if checkpoint.phase is JoinPhase.FOLLOWING:
                    self.client.partition()


async def stop_b_between_copy_and_stream(mesh: Mesh) -> None:
    """Stop B when its copy is complete and has yet to meet the main stream."""
    for n in range(12):
        await mesh.write(A, {f"/orders/{n:03}": "old"})
    inbound = mesh[B].inbound
    assert inbound is not None
    assert isinstance(inbound._store, MemoryStore)
    mesh[B].store.server.listeners.append(CutOffWhenCopied(inbound._store))
    await mesh.found(G, A)
    await mesh.until(lambda: phase_at_b(mesh) is JoinPhase.FOLLOWING)
    await mesh.stop(B)
    mesh[B].store.server.listeners.clear()
    assert phase_at_b(mesh) is JoinPhase.FOLLOWING, "the schedule was not reached"


@pytest.fixture
async def wide() -> AsyncIterator[Mesh]:
    """The limits of production: many revisions in one frame."""
    mesh = Mesh(A, B, limits=Limits())
    await mesh.start()
    yield mesh
    await mesh.close()


async def test_a_following_group_that_must_be_copied_again_asks_for_it(wide: Mesh) -> None:
    """B reconnects while it follows; the next thing its side stream brings is a change of scope.

    No page of a copy was seen on this connection, and so no copy was asked for anew.
    """
    await stop_b_between_copy_and_stream(wide)
    txn = fences.scope_again(await wide.view(A, G), ("/new/", "/orders/"), leader=ALWAYS)
    assert txn is not None
    await wide[A].store.commit(txn)
    await wide.write(A, {"/orders/last": "1"})
    await wide.start(B)

    await wide.until(
        lambda: not wide[B].is_out_of_step(G) and wide.scope(B, G) == wide.scope(A, G),
        within_ms=30_000,
    )


async def test_a_following_group_is_in_step_after_a_reconnection(wide: Mesh) -> None:
    """The same without a change of scope: the side stream just goes on."""
    await stop_b_between_copy_and_stream(wide)
    await wide.write(A, {"/orders/last": "1"})
    await wide.start(B)

    await wide.converge()


async def join_late(mesh: Mesh) -> None:
    """C becomes a member with an authority that was read just before the group moved A to B.

    Its stream from B has passed the opening of epoch 2 meanwhile, as news of a group it had no
    fence for.
    """
    mesh.active[G], mesh.epochs[G], mesh.lineages[G] = A, 1, None
    await mesh.command(CommandStep.OPEN, A, G, epoch=1)
    await mesh.join(B, G)
    await mesh.write(A, {"/orders/1": "1"})
    await mesh.until(lambda: mesh.has_applied(B, G, A, 1))
    await mesh.move(G, B)
    await mesh.clock.advance_ms(1_500)
    mesh.active[G], mesh.epochs[G] = A, 1
    await mesh.join(C, G)
    mesh.active[G], mesh.epochs[G] = B, 2
    await mesh.until(lambda: not mesh[C].is_out_of_step(G))
    fence = mesh[C].fence(G)
    assert fence is not None
    assert fence.epoch == Epoch(1), "the schedule was not reached"


async def test_a_member_that_missed_an_epoch_does_not_hold_the_next_one_for_ever(
    three: Mesh,
) -> None:
    """Epoch 3 stands on B@cut, which is applied here, but this copy never followed epoch 2."""
    await three.found(H, A)
    await join_late(three)

    await three.move(G, A)
    await three.write(A, {"/orders/2": "2", "/users/2": "of another group"})

    await three.converge(within_ms=30_000)


async def test_a_member_that_joined_late_comes_right_with_the_next_write(three: Mesh) -> None:
    await join_late(three)
    await three.write(B, {"/orders/2": "2"})

    await three.converge(within_ms=30_000)


async def test_an_opening_is_not_passed_over_because_a_fence_is_not_known_yet(three: Mesh) -> None:
    """C becomes a member, then the group moves, all before C's watch of its own fences says so.

    Its stream from B passes the opening of epoch 2 by what it remembers of the region. Nothing is
    written in that, so no guard finds out, and nobody ever looks again.
    """
    three.active[G], three.epochs[G], three.lineages[G] = A, 1, None
    await three.command(CommandStep.OPEN, A, G, epoch=1)
    await three.join(B, G)
    await three.write(A, {"/orders/1": "1"})
    await three.until(lambda: three.has_applied(B, G, A, 1))
    inbound = three[C].inbound
    assert inbound is not None
    late: list[RevisionChanges] = []
    inbound.mirror._take_in = late.append  # type: ignore[method-assign]
    await three.join(C, G)
    await three.move(G, B)
    await three.clock.advance_ms(300)
    del inbound.mirror._take_in  # type: ignore[method-assign]
    for changes in late:
        inbound.mirror._take_in(changes)

    await three.converge(within_ms=30_000)


async def test_one_request_that_deletes_a_great_many_keys_does_not_stop_the_stream(
    pair: Mesh,
) -> None:
    """A range delete, or a lease that runs out, is a small request there and a large one here."""
    await pair.found(G, A)
    await pair.found(H, A)
    for n in range(600):
        await pair.write(A, {f"/orders/{n:05}": "v"})
    await pair.converge()
    for name in (A, B):
        pair[name].store.server.request_bytes_max = 12_000
    await pair[A].store.commit(Txn(operations=(Delete(b"/orders/", end=b"/orders0"),)))
    await pair.write(A, {"/users/1": "of another group"})

    await pair.converge(within_ms=30_000)


async def test_a_revision_larger_than_any_message_does_not_stop_the_stream(wide: Mesh) -> None:
    """Then the source says that its log has a gap here, and the groups in it are copied."""
    await wide.found(G, A)
    await wide.found(H, A)
    count = Limits().record_bytes_max // 1000
    keys = [f"/orders/{n:0992}".encode() for n in range(count)]
    for start in range(0, count, 1_000):
        puts = tuple(Put(key, b"") for key in keys[start : start + 1_000])
        await wide[A].store.commit(Txn(operations=nested(puts)))
    await wide.write(A, {"/orders/kept": "1"})
    await wide.converge()
    await wide[A].store.commit(
        Txn(operations=(Delete(b"/orders/0", end=b"/orders/9"), Put(b"/users/1", b"1")))
    )

    await wide.converge(within_ms=30_000)

    assert set(wide.scope(B, G)) == {b"/orders/kept"}
    assert wide.check_history() > 0


async def test_a_value_that_etcd_refuses_here_holds_up_its_group_alone(wide: Mesh) -> None:
    """The regions' limits differ. The group is not promotable, says why, and comes back."""
    await wide.found(G, A)
    await wide.found(H, A)
    await wide.converge()
    wide[B].store.server.request_bytes_max = 5_000
    await wide.write(A, {"/orders/1": "1", "/orders/large": "x" * 20_000, "/orders/z": "1"})
    await wide.write(A, {"/users/1": "of another group"})

    await wide.until(lambda: wide.is_converged(H), within_ms=5_000)
    await wide.clock.advance_ms(5_000)
    inbound = wide[B].inbound
    assert inbound is not None
    assert not inbound.in_step(G)
    assert "etcd here refuses" in inbound.problems()[A]
    assert "/orders/large" in inbound.problems()[A]

    await wide.write(A, {"/orders/large": "small enough"})
    await wide.converge(within_ms=60_000)
    await wide.clock.advance_ms(1_000)
    assert inbound.problems() == {}


async def test_a_page_larger_than_a_request_here_is_copied_in_pieces(wide: Mesh) -> None:
    wide[B].store.server.request_bytes_max = 5_000
    for n in range(600):
        await wide.write(A, {f"/orders/{n:05}": "x" * 40})
    await wide.found(G, A)

    await wide.converge(within_ms=30_000)


async def test_a_group_is_said_to_be_in_step_when_it_is(wide: Mesh) -> None:
    """The frame that should have met the main stream may say to copy again instead."""
    await stop_b_between_copy_and_stream(wide)
    txn = fences.scope_again(await wide.view(A, G), ("/new/", "/orders/"), leader=ALWAYS)
    assert txn is not None
    await wide[A].store.commit(txn)
    with capture_logs() as logs:
        await wide.start(B)
        await wide.until(lambda: not wide[B].is_out_of_step(G), within_ms=30_000)

    assert [log["event"] for log in logs].count("group.in_step") == 1


async def test_a_key_on_a_lease_is_the_same_everywhere_after_its_old_home_lets_it_run_out(
    pair: Mesh,
) -> None:
    """The lease of the old active cluster must not delete there what the new one still has."""
    await pair.found(G, A)
    granted = await pair[A].store.grant(ttl_s=60)
    await pair[A].store.commit(
        Txn(operations=(Put(b"/orders/leased", b"v", lease=granted.lease_id),))
    )
    await pair.converge()
    await pair.move(G, B)
    await pair.converge()

    await pair.clock.advance_ms(90_000)
    await pair.converge(within_ms=30_000)
