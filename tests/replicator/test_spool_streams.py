"""Claims about streams that outlive compaction: spooled, joined without a gap, or honestly copied."""

from __future__ import annotations

from pathlib import Path

from tests.replicator.mesh import A, B, C, G, H
from tests.replicator.spooled import SpooledMesh


def files_in(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.spool"))


async def begun(mesh: SpooledMesh) -> SpooledMesh:
    await mesh.start()
    await mesh.found(G, A)
    await mesh.write(A, {"/orders/00": "first"})
    await mesh.converge()
    await mesh.clock.advance_ms(5_000)
    return mesh


async def away_past_compaction(mesh: SpooledMesh) -> None:
    """B is away; A writes on and drops its history, twice."""
    await mesh.stop(B)
    await mesh.write_on(A, 0, 150)
    await mesh.compact(A)
    await mesh.write_on(A, 150, 100)
    await mesh.write(A, {"/orders/00": None})
    await mesh.clock.advance_ms(1_000)
    await mesh.compact(A)
    await mesh.write_on(A, 250, 30)


async def test_an_outage_longer_than_history_ends_without_a_copy(tmp_path: Path) -> None:
    """The network was away for an hour, etcd keeps five minutes: nobody copies a terabyte."""
    mesh = await begun(SpooledMesh(A, B, directory=tmp_path))
    joins = mesh.joins_made(B, A, G)

    await away_past_compaction(mesh)
    assert mesh[A].outbound.statuses()[0].is_spooled
    await mesh.start(B)
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == joins
    await mesh.close()


async def test_without_a_spool_the_same_outage_ends_in_a_copy(tmp_path: Path) -> None:
    """Off is a choice with a price, and the stream says so instead of skipping."""
    mesh = await begun(SpooledMesh(A, B, directory=None))
    joins = mesh.joins_made(B, A, G)

    await away_past_compaction(mesh)
    assert not mesh[A].outbound.statuses()[0].is_spooled
    await mesh.start(B)
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == joins + 1
    await mesh.close()


async def test_a_full_spool_drops_the_oldest_and_the_standby_is_copied(tmp_path: Path) -> None:
    """The bound holds, the source goes on writing, and nothing is skipped silently."""
    mesh = await begun(SpooledMesh(A, B, directory=tmp_path, bytes_max=3_000))
    joins = mesh.joins_made(B, A, G)

    await away_past_compaction(mesh)
    on_disk = sum(path.stat().st_size for path in files_in(tmp_path))
    await mesh.start(B)
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == joins + 1
    assert on_disk <= 3_000
    await mesh.close()


async def test_the_spool_is_emptied_when_the_standby_has_stored_everything(tmp_path: Path) -> None:
    mesh = await begun(SpooledMesh(A, B, directory=tmp_path))

    await away_past_compaction(mesh)
    assert files_in(tmp_path)
    await mesh.start(B)
    await mesh.until(lambda: not files_in(tmp_path))

    await mesh.write(A, {"/orders/01": "after"})
    await mesh.converge()
    await mesh.close()


async def test_a_standby_that_follows_costs_no_disk(tmp_path: Path) -> None:
    mesh = await begun(SpooledMesh(A, B, directory=tmp_path))
    await mesh.write_on(A, 0, 200)

    assert files_in(tmp_path) == []
    await mesh.close()


async def test_a_replicator_that_restarts_goes_on_with_what_is_on_its_disk(tmp_path: Path) -> None:
    """Also where its last write was torn: what is cut off is read from etcd again."""
    mesh = await begun(SpooledMesh(A, B, directory=tmp_path))
    joins = mesh.joins_made(B, A, G)
    await mesh.stop(B)
    await mesh.write_on(A, 0, 100)
    await mesh.stop(A)
    newest = files_in(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes() + b"\0\0\1\0half a block")

    mesh.renew(mesh[A])
    await mesh.start(A)
    await mesh.write_on(A, 100, 100)
    await mesh.compact(A)
    await mesh.write_on(A, 200, 30)
    await mesh.start(B)
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == joins
    await mesh.close()


async def test_a_successor_without_a_spool_begins_one_from_what_was_written_down(
    tmp_path: Path,
) -> None:
    """The position of a standby that it has never met is in the coordination etcd."""
    mesh = await begun(SpooledMesh(A, B, directory=tmp_path))
    joins = mesh.joins_made(B, A, G)
    await mesh.stop(B)
    await mesh.write_on(A, 0, 100)
    await mesh.stop(A)

    mesh.renew(mesh[A], process="2")
    await mesh.start(A)
    await mesh.write_on(A, 100, 100)
    await mesh.compact(A)
    await mesh.write_on(A, 200, 30)
    await mesh.start(B)
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == joins
    await mesh.close()


async def test_a_successor_that_comes_after_the_compaction_says_so_by_a_copy(
    tmp_path: Path,
) -> None:
    """Its predecessor's disk is not its own: the stream begins anew, it never skips."""
    mesh = await begun(SpooledMesh(A, B, directory=tmp_path))
    joins = mesh.joins_made(B, A, G)
    await away_past_compaction(mesh)
    await mesh.stop(A)

    mesh.renew(mesh[A], process="2")
    await mesh.start(A)
    await mesh.start(B)
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == joins + 1
    await mesh.close()


async def test_an_epoch_that_came_and_went_is_seen_in_the_spool(tmp_path: Path) -> None:
    """The segments at a position are in the spool, where etcd can no longer read them."""
    mesh = await begun(SpooledMesh(A, B, C, directory=tmp_path))
    await mesh.found(H, A)
    await mesh.write(A, {"/users/1": "x"})
    await mesh.converge()
    await mesh.clock.advance_ms(5_000)
    joins = mesh.joins_made(C, A, G), mesh.joins_made(C, A, H)
    await mesh.stop(C)
    await mesh.write_on(A, 0, 60)
    await mesh.move(G, B)
    await mesh.write(B, {"/orders/at-b": "1"})
    await mesh.move(G, A)
    await mesh.write_on(A, 60, 60)
    await mesh.compact(A)
    await mesh.write_on(A, 120, 60)

    await mesh.start(C)
    await mesh.converge()

    assert (mesh.joins_made(C, A, G), mesh.joins_made(C, A, H)) == joins
    await mesh.close()
