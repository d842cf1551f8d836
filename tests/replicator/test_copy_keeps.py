"""A copy overwrites only what it expected; anything else is in quarantine before it is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import pytest

from meshkit.keys import RegionalKeys
from meshkit.ordinals import Epoch, Revision
from meshkit.quarantine import Completeness, Origin, QuarantineClass, QuarantineEntry
from meshkit.regional import CopyBasis
from meshkit.store.txn import Put, Txn, prefix_range
from replicator.expected import Expectation
from replicator.limits import Limits
from replicator.quarantine import Quarantine
from replicator.region_state import OwnSpan
from tests.replicator.mesh import ALWAYS, A, B, C, G, Mesh


@pytest.fixture
async def wide() -> AsyncIterator[Mesh]:
    mesh = Mesh(A, B, limits=Limits(page_keys_max=40))
    await mesh.start()
    yield mesh
    await mesh.close()


def quarantine(mesh: Mesh, at: str = "b") -> Quarantine:
    return Quarantine(regional=mesh.regions[at].store, leader=ALWAYS)  # type: ignore[index]


async def kept(mesh: Mesh, at: str = "b") -> dict[bytes, QuarantineEntry]:
    return {entry.key: entry async for entry in quarantine(mesh, at).entries(G)}


async def come_back(mesh: Mesh, *, source: str = "a", target: str = "b") -> None:
    """The target returns after its position was compacted away at the source."""
    store = mesh.regions[source].store  # type: ignore[index]
    await store.compact(store.server.history.revision)
    await mesh.start(target)  # type: ignore[arg-type]
    await mesh.converge()


async def test_what_a_new_member_held_before_is_kept(wide: Mesh) -> None:
    """Somebody made a cluster a member whose etcd already had keys there: none is just deleted."""
    large = b"x" * 300_000
    await wide.write(A, {"/orders/1": "of the group", "/orders/2": "same"})
    await wide.write(B, {"/orders/1": "its own", "/orders/2": "same", "/orders/3": "extra"})
    await wide[B].store.commit(Txn(operations=(Put(b"/orders/large", large),)))
    before = wide[B].store.server.history.revision
    await wide.found(G, A)

    await wide.converge()

    found = await kept(wide)
    classes = {key: entry.divergence for key, entry in found.items()}
    assert classes == {
        b"/orders/1": QuarantineClass.CONFLICTING,
        b"/orders/3": QuarantineClass.ONLY_HERE,
        b"/orders/large": QuarantineClass.ONLY_HERE,
    }
    one = found[b"/orders/1"]
    assert (one.origin, one.completeness) == (Origin.REPLACED, Completeness.STATE_ONLY)
    assert (one.there_cluster, one.sequence < before) == (A, True)
    whole = await quarantine(wide).whole(G, Epoch(1), found[b"/orders/large"].name)
    assert (whole.here, whole.there) == (large, None)


async def test_the_entry_and_the_overwriting_are_one_transaction(wide: Mesh) -> None:
    await wide.write(B, {f"/orders/{n}": "own" for n in range(5)})
    await wide.found(G, A)
    await wide.converge()

    for changes in wide[B].store.server.history._log:
        deleted = {c.key for c in changes.changes if c.is_delete and c.key.startswith(b"/orders/")}
        entries = [c for c in changes.changes if c.key.startswith(RegionalKeys.quarantines)]
        assert len(entries) == len(deleted)
    assert len(await kept(wide)) == 5


async def test_a_standby_that_was_away_for_long_fills_no_quarantine(wide: Mesh) -> None:
    """Everything there differs only because it is old."""
    await wide.found(G, A)
    for n in range(100):
        await wide.write(A, {f"/orders/{n:03}": "old"})
    await wide.converge()
    await wide.stop(B)
    for n in range(0, 100, 2):
        await wide.write(A, {f"/orders/{n:03}": "new" if n % 4 else None})

    await come_back(wide)

    assert await kept(wide) == {}


async def test_of_a_standby_that_was_away_only_what_something_else_wrote_is_kept(
    wide: Mesh,
) -> None:
    """Nobody led the region then, so no watch saw it; the etcd's own history tells."""
    await wide.found(G, A)
    for n in range(20):
        await wide.write(A, {f"/orders/{n:03}": "old"})
    await wide.converge()
    await wide.stop(B)
    await wide.write(B, {"/orders/003": "foreign", "/orders/x": "foreign"})
    for n in range(20):
        await wide.write(A, {f"/orders/{n:03}": "new"})

    await come_back(wide)

    assert set(await kept(wide)) == {b"/orders/003", b"/orders/x"}


async def test_without_history_an_older_state_is_taken_for_what_it_is(wide: Mesh) -> None:
    """Most regions compact often: then nothing tells what wrote a key, and it is not doubted."""
    await wide.found(G, A)
    await wide.write(A, {f"/orders/{n:03}": "old" for n in range(20)})
    await wide.converge()
    await wide.stop(B)
    await wide.write(A, {f"/orders/{n:03}": "new" for n in range(20)})
    await wide[B].store.compact(wide[B].store.server.history.revision)

    await come_back(wide)

    assert await kept(wide) == {}


async def test_what_an_old_active_cluster_wrote_itself_is_an_older_state_too(wide: Mesh) -> None:
    await wide.found(G, A)
    await wide.write(A, {f"/orders/{n:03}": "by a" for n in range(20)})
    await wide.converge()
    await wide.move(G, B)
    await wide.converge()
    await wide.stop(A)
    await wide.write(B, {f"/orders/{n:03}": "by b" for n in range(20)})

    await come_back(wide, source="b", target="a")

    assert await kept(wide, "a") == {}


async def test_a_first_copy_that_began_again_does_not_keep_what_it_brought_itself() -> None:
    mesh = Mesh(A, B, limits=Limits(page_keys_max=40, side_window_bytes_max=4_000))
    await mesh.start()
    await mesh.write(B, {"/orders/0004": "its own", "/orders/0395": "its own"})
    for n in range(400):
        await mesh.write(A, {f"/orders/{n:04}": "1"})
    await mesh.found(G, A)
    await mesh.until(lambda: 100 < len(mesh.scope(B, G)) < 300)
    revision = 0
    for n in range(0, 400, 3):
        revision = await mesh.write(A, {f"/orders/{n:04}": "2"})
    await mesh[A].store.compact(Revision(revision))
    await mesh.converge()

    assert set(await kept(mesh)) == {b"/orders/0004", b"/orders/0395"}
    await mesh.close()


async def test_more_than_a_transaction_holds_is_kept_in_several(wide: Mesh) -> None:
    for n in range(700):
        await wide.write(B, {f"/orders/{n:04}": f"{n:04}" * 250})
    await wide.write(A, {"/orders/0001": "of the group"})
    await wide.found(G, A)

    await wide.converge()

    found = await kept(wide)
    assert len(found) == 700
    whole = await quarantine(wide).whole(G, Epoch(1), found[b"/orders/0699"].name)
    assert whole.here == b"0699" * 250


async def test_a_group_that_changed_its_source_keeps_what_was_strange(wide: Mesh) -> None:
    """A copy that had begun from another cluster has not made a stranger's keys its own."""
    mesh = Mesh(A, B, C, limits=Limits(page_keys_max=40, side_window_bytes_max=4_000))
    await mesh.start()
    await mesh.stop(C)
    await mesh.write(A, {f"/orders/{n:04}": "1" for n in range(50)})
    await mesh.found(G, A)
    await mesh.until(lambda: not mesh[B].is_out_of_step(G))
    await mesh.write(C, {"/orders/strange": "its own"})
    await mesh.move(G, B)
    await mesh.start(C)

    await mesh.converge()

    assert set(await kept(mesh, "c")) == {b"/orders/strange"}
    assert b"/orders/strange" not in mesh.scope(C, G)
    await mesh.close()


STANDING = Expectation(
    group=G,
    epoch=Epoch(2),
    basis=CopyBasis.OLDER,
    begun=Revision(100),
    own=((Epoch(1), OwnSpan(opened=Revision(10), cut=Revision(20))),),
)


@pytest.mark.parametrize(
    ("basis", "revision", "was_apply", "expected"),
    [
        # An older state: anything but what is shown to be foreign.
        (CopyBasis.OLDER, 50, True, True),
        (CopyBasis.OLDER, 50, False, False),
        (CopyBasis.OLDER, 50, None, True),
        (CopyBasis.OLDER, 15, False, True),
        (CopyBasis.OLDER, 21, False, False),
        (CopyBasis.OLDER, 120, False, False),
        # Something else has written: only what is shown not to be foreign.
        (CopyBasis.DOUBTFUL, 50, True, True),
        (CopyBasis.DOUBTFUL, 50, False, False),
        (CopyBasis.DOUBTFUL, 50, None, False),
        (CopyBasis.DOUBTFUL, 20, None, True),
        # Nothing is known: only what this copy has brought itself.
        (CopyBasis.STRANGE, 50, True, False),
        (CopyBasis.STRANGE, 15, None, False),
        (CopyBasis.STRANGE, 120, True, True),
        (CopyBasis.STRANGE, 120, False, False),
        (CopyBasis.STRANGE, 120, None, False),
    ],
)
def test_what_is_expected(
    basis: CopyBasis, revision: int, was_apply: bool | None, expected: bool
) -> None:
    standing = attrs.evolve(STANDING, basis=basis)

    assert standing.is_expected(Revision(revision), was_apply=was_apply) is expected


def test_an_entry_names_the_epoch_in_which_it_was_written() -> None:
    epochs = [STANDING.epoch_of(Revision(revision)) for revision in (5, 10, 30)]

    assert epochs == [2, 1, 1]


async def test_nothing_under_another_prefix_is_touched(wide: Mesh) -> None:
    await wide.write(B, {"/orders/1": "own", "/others/1": "not of the group"})
    await wide.found(G, A)
    await wide.converge()

    assert set(await kept(wide)) == {b"/orders/1"}
    live = wide[B].store.server.history.live(prefix_range(b"/others/"))
    assert [item.value for item in live] == [b"not of the group"]
