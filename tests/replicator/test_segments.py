"""Which changes belong to which log (architecture 5.1 rule 1)."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshkit.codec import encode
from meshkit.keys import RegionalKeys
from meshkit.names import GroupName
from meshkit.ordinals import Epoch
from meshkit.regional import SegmentOpened
from meshkit.store.port import Change
from replicator.record import Cut, Opened, Resumed, Scoped
from replicator.segments import SegmentMap
from tests.replicator.mesh import G, H
from tests.replicator.records import TOKEN, at, cut, delete, opened, put, scoped, uncut

CHECKPOINT = put(RegionalKeys.checkpoint(GroupName("x")), b"{}")  # type: ignore[arg-type]


def fold(*revisions: tuple[Change, ...]) -> SegmentMap:
    segments = SegmentMap()
    for number, changes in enumerate(revisions, 2):
        segments.advance(at(number, *changes))
    return segments


def test_writes_belong_to_the_segment_from_its_opening_to_its_cut() -> None:
    """Before and after it, a write under the prefix is not this cluster's to send."""
    segments = SegmentMap()
    seen = [
        segments.advance(at(2, put("/orders/1"))),
        segments.advance(at(3, *opened())),
        segments.advance(at(4, put("/orders/1"), delete("/orders/2"))),
        segments.advance(at(5, cut())),
        segments.advance(at(6, put("/orders/1"))),
    ]

    assert seen[0] is None
    assert seen[1] is not None
    assert isinstance(seen[1].marks[0], Opened)
    assert seen[2] is not None
    assert len(seen[2].parts[0].writes) == 2
    assert seen[3] is not None
    assert isinstance(seen[3].marks[0], Cut)
    assert seen[4] is None


def test_a_prefix_of_another_key_is_not_a_prefix_match() -> None:
    """`/orders2` is not under `/orders/`."""
    segments = fold(opened())

    assert segments.advance(at(9, put("/orders2/1"), put("/order"), put("/ordert"))) is None
    assert segments.owner_of(b"/orders/") == G
    assert segments.owner_of(b"/orders") is None


def test_a_revision_too_large_for_any_message_is_a_gap_that_only_a_copy_closes() -> None:
    """A range delete is a small request; its changes may be more than a link or an etcd takes."""
    segments = fold(opened(G), opened(H))
    deletes = [delete(f"/orders/{n:0992}") for n in range(20)]

    record = segments.advance(at(9, *deletes, put("/users/1")))

    assert record is not None
    assert record.bounded(record.weight_bytes) == record
    gap = record.bounded(record.weight_bytes - 1)
    assert gap.parts == ()
    assert set(gap.marks) == {
        Resumed(group=group, epoch=Epoch(1), is_dirty=True) for group in (G, H)
    }


def test_a_transaction_over_two_groups_is_one_record_with_a_part_for_each() -> None:
    """Whole per group, and one position in the log."""
    segments = fold(opened(G), opened(H))

    record = segments.advance(at(9, put("/orders/1"), put("/users/1"), put("/accounts/1")))

    assert record is not None
    assert {part.group: len(part.writes) for part in record.parts} == {G: 1, H: 2}


def test_nothing_of_an_apply_belongs_to_the_log() -> None:
    """All keys of one transaction share a revision, so the checkpoint gives it away."""
    segments = fold(opened())

    assert segments.advance(at(9, put("/orders/1"), CHECKPOINT)) is None


def test_an_undrain_without_writes_in_between_is_clean() -> None:
    """Nothing has to be copied."""
    segments = fold(opened(), (cut(),), (put("/orders/1"), CHECKPOINT), (put("/else"),))

    record = segments.advance(at(9, uncut()))

    assert record is not None
    assert record.marks == (Resumed(group=G, epoch=record.marks[0].epoch, is_dirty=False),)


def test_an_undrain_after_unguarded_writes_is_dirty_once() -> None:
    """They are in no record; after the next undrain they are copied already."""
    segments = fold(opened(), (cut(),), (put("/orders/1"),))
    first = segments.advance(at(9, uncut()))
    segments.advance(at(10, cut()))
    second = segments.advance(at(11, uncut()))

    assert [r.marks[0].is_dirty for r in (first, second) if r] == [True, False]  # type: ignore[union-attr]


def test_a_change_of_scope_is_a_mark_and_counts_at_once() -> None:
    """S27: from the revision of the scope's key on."""
    segments = fold(opened())

    mark = segments.advance(at(9, scoped(G, 1, ("/orders/", "/new/")), put("/new/1")))

    assert mark is not None
    assert isinstance(mark.marks[0], Scoped)
    assert mark.parts[0].writes[0].key == b"/new/1"


def test_the_fold_may_begin_anywhere() -> None:
    """S9: state stored at the position, evolved in band, gives what the whole log gives."""
    changes = [opened(), (put("/orders/1"),), (cut(),), (uncut(),), (put("/orders/2"),)]
    whole = SegmentMap()
    expected = [whole.advance(at(n, *c)) for n, c in enumerate(changes, 2)]
    for start in range(1, len(changes)):
        stored: dict[bytes, Change] = {}
        for number, revision in enumerate(changes[:start], 2):
            for change in at(number, *revision).changes:
                stored.pop(change.key, None)
                if not change.is_delete and change.key.startswith(RegionalKeys.segments):
                    stored[change.key] = change
        resumed = SegmentMap.from_items([stored[key].item for key in sorted(stored)])

        got = [resumed.advance(at(n, *c)) for n, c in enumerate(changes[start:], 2 + start)]

        assert got == expected[start:]


def test_a_closed_scope_gives_way_to_an_open_one_that_overlaps() -> None:
    """A group removed and another founded over its prefix: the open one is asked."""
    other = GroupName("orders-new")
    segments = fold(opened(), (cut(),))
    changes = opened()
    segments.advance(
        at(
            9,
            put(RegionalKeys.segment_opened(other, 1), changes[0].item.value),  # type: ignore[arg-type]
            put(
                RegionalKeys.segment_scope(other, 1),  # type: ignore[arg-type]
                changes[1].item.value,
            ),
        )
    )

    assert segments.owner_of(b"/orders/1") == other


def opening(group: GroupName, epoch: int) -> Change:
    segment = SegmentOpened(group=group, epoch=Epoch(epoch), token=TOKEN)
    return put(RegionalKeys.segment_opened(group, Epoch(epoch)), encode(segment))


GROUPS = [GroupName(name) for name in ("g", "h", "i")]
SCOPES = [("/a/",), ("/b/", "/c/"), ("/a/b/",), ("/b/",), ()]
SEGMENT_CHANGES = st.one_of(
    st.builds(scoped, st.sampled_from(GROUPS), st.integers(1, 3), st.sampled_from(SCOPES)),
    st.builds(cut, st.sampled_from(GROUPS), st.integers(1, 3)),
    st.builds(uncut, st.sampled_from(GROUPS), st.integers(1, 3)),
    st.builds(opening, st.sampled_from(GROUPS), st.integers(1, 3)),
)


NESTED = [
    change
    for name, scope in (("g", ("/a/b/",)), ("h", ("/a/",)))
    for change in (opening(GroupName(name), 3), scoped(GroupName(name), 3, scope))
]
"""Two open groups of which one lies within the other."""


def test_every_key_of_two_open_scopes_that_overlap_belongs_to_somebody() -> None:
    segments = SegmentMap()
    segments.advance(at(2, *NESTED))

    assert [segments.owner_of(key) for key in (b"/a/a", b"/a/b/1", b"/a/c")] == ["h", "h", "h"]


@settings(deadline=None)
@example([NESTED, [cut("g", 3)]])
@example([[scoped("h", 1, ("/a/",)), scoped("g", 3, ("/a/",)), opening("g", 3), opening("h", 1)]])
@given(st.lists(st.lists(SEGMENT_CHANGES, min_size=1, max_size=4), max_size=12))
def test_the_order_of_scopes_is_kept_as_if_it_were_made_anew(program: list[list[Change]]) -> None:
    """Also where scopes overlap, and one yields to another until that one has gone."""
    segments = SegmentMap()

    for number, changes in enumerate(program, 2):
        segments.advance(at(number, *{change.key: change for change in changes}.values()))

        anew = SegmentMap.from_segments(segments.all_newest())
        for key in (b"/a/1", b"/a/b/1", b"/b/1", b"/c/1", b"/d/1"):
            assert segments.owner_of(key) == anew.owner_of(key)
