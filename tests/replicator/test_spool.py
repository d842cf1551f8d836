"""Claims about the spool's blocks and files: nothing the fold depends on is lost, torn or hidden."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit.errors import Compacted, InvalidConfig
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence
from meshkit.store.port import Change, RevisionChanges
from replicator.segments import SegmentMap
from replicator.spool.blocks import (
    FRAME,
    Block,
    BlockDamaged,
    block_bytes,
    block_of,
    essence,
    range_of,
)
from replicator.spool.files import SpoolFiles, locked
from replicator.spool.keep import Demand, Standby, demand
from replicator.spool.reading import log_between
from tests.replicator.mesh import A, B, C, G, H
from tests.replicator.records import cut, delete, opened, put, scoped
from tests.replicator.spooled import inline

ONE = Incarnation("one")


def at(revision: int, *changes: Change) -> RevisionChanges:
    """Return changes as an etcd shows them: all of one revision."""
    moved = tuple(
        Change(item=attrs.evolve(c.item, mod_revision=Revision(revision)), is_delete=c.is_delete)
        for c in changes
    )
    return RevisionChanges(revision=Revision(revision), changes=moved)


KEYS = st.sampled_from(["/orders/1", "/orders/2", "/users/1", "/accounts/1", "/elsewhere/1"])
WRITES = st.one_of(
    st.builds(put, KEYS, st.binary(max_size=20)),
    st.builds(put, KEYS, st.just(b"leased"), lease=st.just(77)),
    st.builds(delete, KEYS),
)
APPLY = st.just(put(RegionalKeys.checkpoint(B), b"{}"))


@st.composite
def _marks(draw: st.DrawFn) -> tuple[Change, ...]:
    group, epoch = draw(st.sampled_from([G, H])), draw(st.integers(1, 3))
    what = draw(st.sampled_from(["open", "cut", "uncut", "scope"]))
    if what == "open":
        return opened(group, epoch)
    if what == "cut":
        return (cut(group, epoch),)
    if what == "uncut":
        return (delete(RegionalKeys.segment_cut(group, Epoch(epoch))),)
    return (scoped(group, epoch, ("/orders/1" if group == G else "/users/",)),)


@st.composite
def histories(draw: st.DrawFn) -> list[RevisionChanges]:
    """Draw what an etcd may have done, also what no replicator would do to it."""
    history = []
    for revision in range(2, 2 + draw(st.integers(1, 25))):
        changes = {c.key: c for c in draw(st.lists(WRITES, min_size=1, max_size=3))}
        if draw(st.integers(0, 3)) == 0:
            changes |= {c.key: c for c in draw(_marks())}
        if draw(st.integers(0, 4)) == 0:
            apply = draw(APPLY)
            changes[apply.key] = apply
        history.append(at(revision, *changes.values()))
    return history


@settings(max_examples=300, deadline=None)
@given(history=histories(), begins=st.integers(0, 24))
def test_what_is_spooled_folds_to_the_same_records(
    history: list[RevisionChanges], begins: int
) -> None:
    """Thinned, written, read again: the records and the segments are those of etcd itself."""
    first = min(begins, len(history) - 1)
    plain, spooling = SegmentMap(), SegmentMap()
    for changes in history[:first]:
        plain.advance(changes)
        essence(changes, spooling)
    replayed = SegmentMap.from_segments(spooling.all_newest())

    for changes in history[first:]:
        kept = essence(changes, spooling)
        block = Block(
            after=Sequence(changes.revision - 1),
            through=Sequence(changes.revision),
            revisions=(kept,) if kept is not None else (),
        )
        raw = block_bytes(block)
        read = block_of(raw[FRAME.size :])
        assert read == block
        records = [r for c in read.revisions if (r := replayed.advance(c)) is not None]
        expected = plain.advance(changes)
        assert records == ([expected] if expected is not None else [])
        assert replayed.all_newest() == plain.all_newest() == spooling.all_newest()


# --- files --------------------------------------------------------------------------------------


def files_in(directory: Path, incarnation: Incarnation = ONE, size: int = 2_000) -> SpoolFiles:
    return SpoolFiles(
        directory, cluster=ClusterName("a"), incarnation=incarnation, file_bytes_max=size
    )


def block(after: int, through: int, *, value: bytes = b"v") -> Block:
    revisions = tuple(at(n, put(f"/orders/{n}", value)) for n in range(after + 1, through + 1))
    return Block(after=Sequence(after), through=Sequence(through), revisions=revisions)


def filled(directory: Path, through: int = 100, *, size: int = 2_000) -> SpoolFiles:
    files = files_in(directory, size=size)
    segments = SegmentMap()
    segments.advance(at(2, *opened(G)))
    for after in range(10, through, 10):
        files.append(block(after, after + 10), before=segments.all_newest())
    files.sync()
    return files


def sequences(files: SpoolFiles, position: int) -> list[int]:
    found = files.blocks(Sequence(position))
    assert found is not None
    return [c.revision for b in found[1] for c in b.revisions if c.revision > position]


def test_what_was_written_is_read_from_any_position(tmp_path: Path) -> None:
    filled(tmp_path, size=600).close()

    files = files_in(tmp_path)

    assert len(files.files) > 2
    assert (files.after, files.through) == (10, 100)
    for position in (10, 11, 55, 99, 100):
        assert sequences(files, position) == list(range(position + 1, 101))
    assert files.blocks(Sequence(9)) is None
    assert files.blocks(Sequence(101)) is None


@pytest.mark.parametrize("lost_bytes", [1, 5, 40, 200])
def test_a_torn_end_is_found_and_cut_off(tmp_path: Path, lost_bytes: int) -> None:
    """A crash in the middle of a write leaves half a block; what came before it stands."""
    filled(tmp_path).close()
    (path,) = tmp_path.rglob("*.spool")
    path.write_bytes(path.read_bytes()[:-lost_bytes])

    files = files_in(tmp_path)

    assert files.through is not None
    assert files.through < 100
    assert files.through % 10 == 0
    assert sequences(files, 10) == list(range(11, files.through + 1))
    assert path.stat().st_size == files.size_bytes


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """A disk that lies must not become a record that was never written."""
    filled(tmp_path, 40).close()
    (path,) = tmp_path.rglob("*.spool")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)

        files = files_in(tmp_path)

        if files.files:
            assert sequences(files, 10) == list(range(11, (files.through or 0) + 1))
            assert files.through != 40
        path.parent.mkdir(exist_ok=True)


def test_files_before_a_hole_are_dropped(tmp_path: Path) -> None:
    """What is not contiguous with the newest can serve nobody."""
    filled(tmp_path, size=600).close()
    paths = sorted(tmp_path.rglob("*.spool"))
    paths[1].unlink()

    files = files_in(tmp_path)

    assert files.after == int(paths[2].stem)
    assert not paths[0].exists()


def test_files_of_another_incarnation_are_not_this_log(tmp_path: Path) -> None:
    filled(tmp_path).close()

    other = files_in(tmp_path, Incarnation("two"))

    assert other.files == []
    assert [path.name for path in other.others()] == ["one"]


def test_a_file_that_is_dropped_while_it_is_read_is_no_end(tmp_path: Path) -> None:
    """The reader must not take the hole for the end of the log."""
    files = filled(tmp_path, size=600)
    found = files.blocks(Sequence(10))
    assert found is not None
    next(found[1])
    files.drop_oldest()
    files.drop_oldest()

    with pytest.raises(BlockDamaged):
        list(found[1])


def test_a_block_says_what_it_covers_without_being_read() -> None:
    raw = block_bytes(block(10, 20, value=b"x" * 10_000))

    assert range_of(raw[FRAME.size :]) == (10, 20)


def test_two_processes_cannot_share_a_directory(tmp_path: Path) -> None:
    with locked(tmp_path / "spool"), pytest.raises(InvalidConfig, match="another process"):
        locked(tmp_path / "spool")


async def test_the_own_log_is_read_by_range_and_a_missing_part_is_said(tmp_path: Path) -> None:
    """For what was written here and nowhere else (a divergent tail)."""
    files = filled(tmp_path, size=600)

    found = [c async for c in log_between(files, Sequence(33), Sequence(77), blocking=inline)]
    assert [c.revision for c in found] == list(range(34, 78))
    assert found[0].changes[0].item.value == b"v"

    with pytest.raises(Compacted):
        _ = [c async for c in log_between(files, Sequence(5), Sequence(77), blocking=inline)]
    with pytest.raises(Compacted):
        _ = [c async for c in log_between(files, Sequence(50), Sequence(101), blocking=inline)]


# --- what to keep -------------------------------------------------------------------------------


def standby(target: ClusterName, position: int, age_ms: int | None) -> Standby:
    return Standby(target=target, position=Sequence(position), age_ms=age_ms)


def wanted(*standbys: Standby, compacted: int = 0, spooled_after: int | None = None) -> Demand:
    after = None if spooled_after is None else Sequence(spooled_after)
    return demand(standbys, compacted=Revision(compacted), spooled_after=after, late_ms=10_000)


def test_standbys_that_follow_need_no_spool() -> None:
    assert wanted(standby(B, 50, 0), standby(C, 40, 9_999)).after is None


def test_the_slowest_of_the_late_standbys_decides() -> None:
    found = wanted(standby(B, 50, 20_000), standby(C, 40, 10_000), standby(A, 10, 5))

    assert (found.after, found.targets) == (40, (B, C))


def test_a_standby_of_unknown_age_is_late() -> None:
    """A process that has just started has not seen since when."""
    assert wanted(standby(B, 50, None)).after == 50


def test_nothing_is_kept_for_who_cannot_be_served_any_more() -> None:
    """It is copied in any case; keeping for it would fill the disk for ever."""
    found = wanted(standby(B, 50, None), standby(C, 80, None), compacted=70)

    assert (found.after, found.targets, found.lost) == (80, (C,), (B,))


def test_what_is_spooled_can_be_served_though_it_is_compacted() -> None:
    assert wanted(standby(B, 50, None), compacted=70, spooled_after=45).after == 50
