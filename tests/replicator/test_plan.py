"""What may be applied, what waits, and what has to be copied (architecture 5.1 rules 2 to 4)."""

from __future__ import annotations

import attrs
import pytest

from meshkit.errors import TooLarge
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Sequence
from meshkit.regional import Checkpoint, Fence, FenceMode, GroupCheckpoint, JoinPhase
from meshkit.store.shape import check_shape
from meshkit.store.txn import Delete, Put, Txn
from replicator.batch import MainBatch
from replicator.draft import ApplyPlan, Hold, Standpoint
from replicator.messages import SegmentStanding
from replicator.plan import plan_again, plan_fresh, plan_main
from replicator.record import Cut, GroupPart, Mark, Opened, Record, Resumed, Scoped
from replicator.region_state import RegionState
from replicator.transaction import nested
from tests.replicator.mesh import PREFIXES, A, B, C, G, H, K
from tests.replicator.records import TOKEN, at, lineage, opened, record, write

AT = Standpoint(me=C, source=B, incarnation=Incarnation("b-1"))


def fence(mode: FenceMode = FenceMode.SUPERSEDED, epoch: int = 1) -> Fence:
    return Fence(group=G, epoch=Epoch(epoch), mode=mode, token=NO_TOKEN)


def region(*, mode: FenceMode = FenceMode.SUPERSEDED, epoch: int = 1, a: int = 0) -> RegionState:
    state = RegionState(fences={G: fence(mode, epoch)})
    if a:
        state.checkpoints[A] = Checkpoint(
            source=A, incarnation=Incarnation("a-1"), sequence=Sequence(a)
        )
    return state


def batch(*records: Record, after: int = 10) -> MainBatch:
    last = records[-1].sequence if records else after
    return MainBatch(after=Sequence(after), through=Sequence(last), records=records)


def marked(sequence: int, mark: Mark) -> Record:
    return Record(sequence=Sequence(sequence), marks=(mark,))


def opening(sequence: int, epoch: int, on: Lineage | None) -> Record:
    scope = tuple(prefix.encode() for prefix in PREFIXES[G])
    mark = Opened(group=G, epoch=Epoch(epoch), token=TOKEN, lineage=on, prefixes=scope)
    return marked(sequence, mark)


def planned(state: RegionState, *records: Record, at: Standpoint = AT) -> ApplyPlan:
    plan = plan_main(state, batch(*records), at)
    assert isinstance(plan, ApplyPlan), plan
    return plan


def active_for(
    group: GroupName, state: RegionState, *, mode: FenceMode = FenceMode.OPEN
) -> RegionState:
    """This cluster is active for `group`; it also follows the third one."""
    for own, own_mode in ((K, FenceMode.SUPERSEDED), (group, mode)):
        state.fences[own] = Fence(group=own, epoch=Epoch(1), mode=own_mode, token=NO_TOKEN)
    state.own.advance(at(2, *opened(group)))
    return state


def out_of_step(state: RegionState, source: ClusterName = A) -> RegionState:
    state.joins[source, G] = GroupCheckpoint(
        source=source,
        group=G,
        incarnation=Incarnation(""),
        phase=JoinPhase.COPYING,
        epoch=Epoch(1),
    )
    return state


def test_the_last_writer_of_a_key_wins_within_a_batch() -> None:
    """etcd takes each key once per transaction."""
    plan = planned(
        region(),
        record(11, write("/orders/1", "a"), write("/orders/2", "a")),
        record(12, write("/orders/1", None), write("/orders/2", "b")),
        record(13, write("/orders/1", "c")),
    )

    assert set(plan.writes.values()) == {Put(b"/orders/1", b"c"), Put(b"/orders/2", b"b")}
    assert plan.through == 13


def test_a_copy_carries_no_lease() -> None:
    """The lease lives at the source only."""
    part = GroupPart(group=G, epoch=Epoch(1), writes=(Put(b"/orders/1", b"a", 77),))  # type: ignore[arg-type]

    plan = planned(region(), Record(sequence=Sequence(11), parts=(part,)))

    assert plan.writes == {b"/orders/1": Put(b"/orders/1", b"a")}


def test_a_group_without_a_fence_here_is_left_alone() -> None:
    """This cluster is no member of it; its records need no checkpoint."""
    plan = planned(region(), record(11, write("/users/1"), group=H))

    assert plan.writes == {}
    assert not plan.is_durable


def test_a_group_out_of_step_is_left_to_its_side_stream() -> None:
    """5.1 rule 2: the main stream goes on."""
    plan = planned(out_of_step(region(), B), record(11))

    assert plan.writes == {}


def test_a_record_below_the_groups_epoch_is_never_applied() -> None:
    """Promise 1: never a lower epoch after a higher one."""
    assert planned(region(epoch=2), record(11, epoch=1)).writes == {}


@pytest.mark.parametrize("mode", [FenceMode.OPEN, FenceMode.DRAINED, FenceMode.HELD])
def test_nothing_is_applied_over_a_cluster_that_is_not_passive(mode: FenceMode) -> None:
    """It waits, with a reason; nothing is skipped."""
    plan = plan_main(region(mode=mode), batch(record(11)), AT)

    assert isinstance(plan, Hold)
    assert mode.value in plan.reason


def test_what_comes_before_a_hold_is_applied() -> None:
    """Only the record that waits, waits."""
    state = region()
    state.fences[H] = Fence(group=H, epoch=Epoch(1), mode=FenceMode.HELD, token=NO_TOKEN)
    whole = Record(
        sequence=Sequence(13),
        parts=(
            *record(13, write("/orders/13")).parts,
            *record(13, write("/users/1"), group=H).parts,
        ),
    )

    plan = planned(state, record(11), whole)

    assert plan.through == 12
    assert list(plan.writes) == [b"/orders/1"]


def test_an_epoch_goes_on_on_top_of_exactly_its_parent() -> None:
    """5.1 rule 3: the fence rises in the transaction that applies the first record."""
    plan = planned(
        region(a=100), opening(11, 2, lineage(A, 100)), record(12, write("/orders/1"), epoch=2)
    )

    assert plan.fences[G].epoch == 2
    assert plan.joins == {}
    assert plan.writes


def test_s5_an_epoch_waits_for_its_parents_records() -> None:
    """C has A@99 and the epoch stands on A@100."""
    plan = plan_main(region(a=99), batch(opening(11, 2, lineage(A, 100))), AT)

    assert isinstance(plan, Hold)
    assert plan.parent == A


def test_s7_an_epoch_whose_parent_is_gone_is_copied() -> None:
    """Nobody else can bring the records that are missing."""
    given_up = Standpoint(
        me=C, source=B, incarnation=Incarnation("b-1"), has_given_up=lambda cluster: cluster == A
    )

    plan = planned(region(a=99), opening(11, 2, lineage(A, 100)), at=given_up)

    own = plan.joins[B, G]
    assert own is not None
    assert (own.phase, own.epoch) == (JoinPhase.JOINING, 2)
    assert plan.fences[G].epoch == 2


def test_an_epoch_that_begins_during_a_copy_begins_the_copy_anew() -> None:
    """The old copy's checkpoint goes in the same transaction."""
    plan = planned(out_of_step(region(a=100)), opening(11, 2, lineage(A, 100)))

    assert plan.joins[A, G] is None
    assert plan.joins[B, G] is not None


def test_a_parent_in_another_history_is_no_parent() -> None:
    """Sequences of two incarnations do not compare."""
    state = region(a=100)
    old = Checkpoint(source=A, incarnation=Incarnation("a-0"), sequence=Sequence(500))
    state.checkpoints[A] = old

    plan = planned(state, opening(11, 2, lineage(A, 100)))

    assert plan.joins[B, G] is not None


def test_the_old_active_follows_a_successor_that_stands_on_its_cut() -> None:
    """The opening in the stream proves that writes were given away."""
    state = region(mode=FenceMode.DRAINED)
    state.cuts[G, Epoch(1)] = Sequence(40)

    plan = planned(state, opening(11, 2, lineage(C, 40)))

    assert (plan.fences[G].mode, plan.fences[G].epoch) == (FenceMode.SUPERSEDED, 2)


@pytest.mark.parametrize("mode", [FenceMode.DRAINED, FenceMode.OPEN])
def test_an_old_active_with_more_than_its_successor_has_waits_for_a_rejoin(
    mode: FenceMode,
) -> None:
    """What it has beyond is a divergent tail; no machine overwrites it on its own."""
    state = region(mode=mode)
    state.cuts[G, Epoch(1)] = Sequence(45)

    assert isinstance(plan_main(state, batch(opening(11, 2, lineage(C, 40))), AT), Hold)


def test_an_opening_that_is_known_changes_nothing() -> None:
    """Replays are harmless."""
    plan = planned(region(epoch=2), opening(11, 2, lineage(A, 100)))

    assert plan.fences == {}
    assert plan.is_durable, "only a transaction can say that nothing newer was overlooked"


def test_a_cut_is_stored_at_once() -> None:
    """Converge waits for exactly this checkpoint."""
    plan = planned(region(), marked(11, Cut(group=G, epoch=Epoch(1))))

    assert plan.is_durable


@pytest.mark.parametrize(
    ("mark", "is_copied"),
    [
        (Resumed(group=G, epoch=Epoch(1), is_dirty=False), False),
        (Resumed(group=G, epoch=Epoch(1), is_dirty=True), True),
        (Scoped(group=G, epoch=Epoch(1)), True),
    ],
)
def test_what_no_record_tells_is_copied(mark: Mark, is_copied: bool) -> None:
    """Unguarded writes between drain and undrain; keys that were there before their prefix."""
    plan = planned(region(), marked(11, mark))

    assert (plan.joins != {}) == is_copied


def test_a_record_of_an_epoch_whose_opening_was_missed_is_copied() -> None:
    """A member that joined after the opening was read has nothing to stand on."""
    plan = planned(region(epoch=1), record(11, epoch=3))

    assert plan.writes == {}
    assert plan.joins[B, G] is not None
    assert plan.fences[G].epoch == 3


def test_a_fresh_start_copies_what_is_open_and_keeps_what_was_whole() -> None:
    """A segment that ended before our position is applied whole; nothing of it is lost."""
    standing = SegmentStanding(group=G, epoch=Epoch(1), token=TOKEN, cut=Sequence(50))
    whole = plan_fresh(region(), (standing,), AT, start=Sequence(90), before=Sequence(60))
    short = plan_fresh(region(), (standing,), AT, start=Sequence(90), before=Sequence(40))

    assert isinstance(whole, ApplyPlan)
    assert isinstance(short, ApplyPlan)
    assert whole.joins == {}
    assert short.joins[B, G] is not None


def test_what_reaches_under_a_permit_here_is_refused_for_its_group_alone() -> None:
    """The records of the other groups in the same batch, and those after it, are applied."""
    state = active_for(H, region())

    plan = planned(
        state,
        record(11, write("/orders/1"), write("/users/1")),
        record(12, write("/orders/2")),
        record(13, write("/stock/1"), group=K),
    )

    assert set(plan.writes) == {b"/stock/1"}
    assert plan.refused == {G: 1}
    own = plan.joins[B, G]
    assert own is not None
    assert "users, which is active here" in own.reason
    assert plan.through == 13


def test_a_drained_group_is_not_written_over_before_its_successor_opened() -> None:
    """It may be undrained, and then its content is what it was at the cut."""
    state = active_for(H, region(), mode=FenceMode.DRAINED)

    assert planned(state, record(11, write("/users/1"))).refused == {G: 1}


def test_the_old_active_is_not_shielded_from_its_own_successor() -> None:
    """Opening and records come in one batch: what was drained here is followed from there on."""
    state = active_for(G, region(), mode=FenceMode.DRAINED)
    state.cuts[G, Epoch(1)] = Sequence(40)

    plan = planned(state, opening(11, 2, lineage(C, 40)), record(12, epoch=2))

    assert set(plan.writes) == {b"/orders/1"}
    assert not plan.joins


def test_an_epoch_that_covers_other_keys_than_its_parent_is_copied() -> None:
    """Of what only one of them covers no record tells."""
    narrower = attrs.evolve(lineage(A, 100), prefixes=("/orders/a/",))

    plan = planned(region(a=100), opening(11, 2, narrower))

    own = plan.joins[B, G]
    assert own is not None
    assert "covers other keys" in own.reason


def test_more_operations_than_etcd_takes_are_too_large() -> None:
    with pytest.raises(TooLarge):
        nested([Delete(b"%d" % n) for n in range(64_001)])


@pytest.mark.parametrize("count", [1, 60, 61, 127, 3600, 3601, 10_000])
def test_nesting_passes_etcds_limits(count: int) -> None:
    """One source transaction is one transaction here, however many operations it has."""
    operations = [Put(f"/{n}".encode(), b"") for n in range(count - 1)] + [Delete(b"/last")]

    check_shape(Txn(operations=nested(operations)))


def test_a_group_that_falls_out_of_step_keeps_where_it_left_the_stream() -> None:
    """Its lag is counted from there, however often it is copied in vain."""
    mark = Resumed(group=G, epoch=Epoch(1), is_dirty=True)
    plan = planned(region(), record(11), marked(14, mark), at=AT)
    missed = planned(
        region(),
        Record(
            sequence=Sequence(14),
            parts=(GroupPart(group=G, epoch=Epoch(2), writes=(write("/orders/1"),)),),
        ),
        at=AT,
    )
    joined = plan.joins[B, G]
    assert joined is not None

    copying = attrs.evolve(joined, phase=JoinPhase.COPYING, sequence=Sequence(50))
    following = attrs.evolve(copying, phase=JoinPhase.FOLLOWING, left_at=None)

    assert (joined.left_at, joined.contained, copying.contained) == (13, 13, 13)
    assert following.contained == 50
    epoch_missed = missed.joins[B, G]
    assert epoch_missed is not None
    assert epoch_missed.left_at is None, "nobody knows what of the epoch before is missing"
    for own, left_at in ((copying, 13), (following, 50)):
        state = region()
        state.joins[B, G] = own
        again = plan_again(state, G, "once more", AT).joins[B, G]
        assert again is not None
        assert (again.phase, again.left_at) == (JoinPhase.JOINING, left_at)
