"""What groups out of step lack, counted by a source: never a wrong zero (pure parts)."""

from __future__ import annotations

import random

import attrs
import pytest

from meshkit.names import GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Revision, Sequence
from meshkit.regional import Fence, FenceMode, GroupCheckpoint, JoinPhase, ParkedWrite
from meshkit.status import Lag, StreamState, StreamStatus, WhyBehind
from replicator.backlogs import SPANS_MAX, Backlogs
from replicator.group_lag import BEHIND_MAX, TargetLag, target_lag, told_of
from replicator.lag import Anchor, CommitTimes, StreamLag
from replicator.messages import OutOfStep, OutOfStepChange
from replicator.out_of_step import OutOfStepHere
from replicator.region_state import RegionState
from replicator.reporter import target_head
from replicator.transaction import checkpoint_at
from tests.replicator.behind import ANCHORS, of, out, passed, stream, times, told
from tests.replicator.mesh import A, B, G, H

TOLD = OutOfStepChange()


# --- the machine alone --------------------------------------------------------------------------


def test_what_is_acknowledged_past_a_paused_group_is_still_missing_of_it() -> None:
    """The record at 11 is committed between 0 and 102, and nobody has applied it."""
    lag = stream()
    passed(lag, of(11, G), of(12, H), change=told(out(position=10)))
    passed(lag, of(13, H))

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (known.whole.state, known.whole.lag_ms, known.whole.error_bound_ms) == (
        StreamState.PAUSED,
        2_999,
        51,
    )
    assert known.whole.records == 1
    assert known.of(G) == attrs.evolve(known.whole)
    assert (known.of(H).state, known.of(H).lag_ms) == (StreamState.STREAMING, 0)


def test_a_paused_group_that_lacks_nothing_does_not_lag() -> None:
    """Proven: everything past its position was counted, and there is nothing."""
    lag = stream(out(position=10))
    passed(lag, of(11, H), of(13, H))

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (known.of(G).state, known.of(G).lag_ms, known.of(G).records) == (
        StreamState.PAUSED,
        0,
        0,
    )


def test_what_is_under_way_to_a_group_out_of_step_counts_for_it_alone() -> None:
    """Records and bytes: of a record of two groups to each its own part."""
    lag = stream(out(position=10))
    passed(lag, of(11, G))
    lag.on_read(Sequence(13), (of(12, G, H), of(13, H)))

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    one = len(f"/{G}") + len("v")
    assert (known.of(G).records, known.of(G).bytes) == (2, 2 * one)
    assert known.whole.records == 3


def test_what_its_side_stream_brings_is_no_longer_missing() -> None:
    """And back in step, nothing is: zero, proven."""
    lag = stream(out(position=10))
    passed(lag, of(11, G), of(12, H, G), of(13, G))

    lag.on_acknowledged(Sequence(13), now_ms=0, out_of_step=told(out(position=12)))
    late = target_lag(lag, ANCHORS, now_ms=3_050)
    lag.on_acknowledged(Sequence(13), now_ms=0, out_of_step=told(back=(G,)))
    back = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (late.of(G).lag_ms, late.of(G).records) == (2_799, 1)
    assert (back.whole.state, back.whole.lag_ms, back.whole.records) == (
        StreamState.STREAMING,
        0,
        0,
    )


def test_nothing_is_known_before_the_target_has_told_what_is_out_of_step() -> None:
    """Not zero: a group may be paused since before this process began."""
    lag = StreamLag()
    lag.on_connected(Sequence(13), is_fresh=False, now_ms=0)

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (known.whole.lag_ms, known.of(H).lag_ms) == (None, None)
    assert known.whole.state is StreamState.UNKNOWN


def test_a_target_too_old_to_tell_leaves_the_whole_unknown() -> None:
    """Of the main stream it acknowledges as ever; what stands still there it keeps to itself."""
    lag = StreamLag()
    lag.on_connected(Sequence(13), is_fresh=False, now_ms=0, tells=False)
    lag.on_acknowledged(Sequence(13), now_ms=0)

    known = target_lag(lag, ANCHORS, now_ms=3_050, asked=[G])

    assert (known.whole.state, known.whole.lag_ms) == (StreamState.UNKNOWN, None)
    assert (known.of(H).state, known.of(H).lag_ms) == (StreamState.STREAMING, 0)
    assert (known.of(G).state, known.of(G).lag_ms) == (StreamState.RECONCILING, None)


def test_what_went_by_before_this_process_is_not_counted_and_never_zero() -> None:
    """It has just begun to lead: the group is back at 5, the main stream at 13."""
    lag = stream(out(position=5), start=13)

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (known.of(G).lag_ms, known.of(G).records) == (None, None)
    assert (known.whole.state, known.whole.lag_ms) == (StreamState.PAUSED, None)
    assert (known.whole.records, known.whole.bytes) == (None, None)


def test_of_an_uncounted_backlog_the_records_that_went_by_are_a_lower_bound() -> None:
    """Without an error bound, which is as good as unknown to whoever decides by it."""
    lag = stream(out(position=5), start=11)
    passed(lag, of(12, G), of(13, H))

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (known.of(G).lag_ms, known.of(G).error_bound_ms) == (2_848, None)
    assert (known.whole.lag_ms, known.whole.error_bound_ms) == (2_848, None)
    assert known.of(G).records is None


def test_what_was_not_counted_counts_as_missing_if_its_age_is_known() -> None:
    """As what is not read yet: its age is the most that the lag can be."""
    lag = stream(out(position=11), start=13)

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (known.of(G).lag_ms, known.of(G).error_bound_ms) == (2_950, 2_950)
    assert known.of(G).records is None


def test_a_reconnect_goes_on_counting_where_it_was() -> None:
    """What the target sends again counts once; what it lost sight of is unknown."""
    lag = stream(out(position=10))
    passed(lag, of(11, G), of(12, G))
    lag.on_disconnected()
    while_down = target_lag(lag, ANCHORS, now_ms=3_050)

    lag.on_connected(Sequence(11), is_fresh=False, now_ms=0)
    lag.on_acknowledged(Sequence(11), now_ms=0, out_of_step=told(out(position=10)))
    passed(lag, of(12, G), of(13, G))
    again = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (while_down.of(G).lag_ms, while_down.of(G).records) == (2_999, None)
    assert (again.of(G).lag_ms, again.of(G).records) == (2_999, 3)


def test_what_was_applied_while_nobody_counted_is_unknown() -> None:
    """The acknowledgements of it were lost: then only the oldest is known to be missing."""
    lag = stream(out(position=10))
    passed(lag, of(11, G))
    lag.on_disconnected()
    lag.on_connected(Sequence(13), is_fresh=False, now_ms=0)
    lag.on_acknowledged(Sequence(13), now_ms=0, out_of_step=told(out(position=10)))

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    assert known.of(G).records is None
    assert known.of(G).lag_ms is not None
    assert known.of(G).lag_ms >= 2_948


def test_a_group_of_which_nobody_knows_where_it_is_has_an_unknown_lag() -> None:
    """A first copy: the small lag of the main stream says nothing of it."""
    lag = stream(out(why=WhyBehind.JOINING))

    known = target_lag(lag, times((0, 10), (100, 10)), now_ms=130)

    assert (known.of(G).state, known.of(G).lag_ms) == (StreamState.RECONCILING, None)
    assert (known.whole.state, known.whole.lag_ms) == (StreamState.RECONCILING, None)
    assert known.of(H).lag_ms == 0


@pytest.mark.parametrize(
    ("why", "state"),
    [
        (WhyBehind.PAUSED, StreamState.PAUSED),
        (WhyBehind.HELD, StreamState.PAUSED),
        (WhyBehind.PARKED, StreamState.STALLED),
        (WhyBehind.AHEAD, StreamState.STALLED),
        (WhyBehind.JOINING, StreamState.RECONCILING),
        (WhyBehind.RECONCILING, StreamState.RECONCILING),
        (WhyBehind.UNKNOWN, StreamState.UNKNOWN),
    ],
)
def test_a_group_is_in_the_state_of_what_holds_it(why: WhyBehind, state: StreamState) -> None:
    """And the stream is in that of the worst of its groups."""
    lag = stream(out(position=10, why=why))
    passed(lag, of(13, H))

    known = target_lag(lag, ANCHORS, now_ms=3_050)

    assert (known.of(G).state, known.whole.state) == (state, state)


def test_a_reason_of_a_newer_target_is_kept_and_unknown() -> None:
    """It must not end the connection, and must not look well."""
    newer = OutOfStep(group=G, why="resting", position=Sequence(10))

    known = target_lag(stream(newer), ANCHORS, now_ms=3_050)

    assert known.behind[G].why == "resting"
    assert known.whole.state is StreamState.UNKNOWN


def test_a_backlog_is_bounded_and_its_oldest_record_exact() -> None:
    """Memory is for what is counted together; the count stays exact while nothing is applied."""
    backlogs = Backlogs()
    backlogs.on_connected(Sequence(0), tells=True)
    backlogs.on_told(told(out(position=0)))
    for n in range(1, 3 * SPANS_MAX):
        backlogs.on_passed(Sequence(2 * n), G, 7)
    backlog = backlogs.groups[G]

    assert len(backlog._spans) <= SPANS_MAX
    assert backlog.oldest is not None
    assert backlog.oldest.first == 2
    assert backlog.count == (3 * SPANS_MAX - 1, 7 * (3 * SPANS_MAX - 1))
    backlog.tell(out(position=2))
    assert backlog.count is None, "how many of a span are applied is not known"


@attrs.define
class World:
    """A source of two groups, one of which falls out of step at the target and follows again."""

    rng: random.Random
    now_ms: int = 1_000
    head: int = 10
    commits: dict[int, tuple[int, tuple[GroupName, ...]]] = attrs.field(factory=dict)
    read: int = 10
    main: int = 10
    own: int | None = None
    """Where the group is, while it is out of step."""
    told: int | None = None
    acked: int = 10
    times: CommitTimes = attrs.field(factory=CommitTimes)
    lag: StreamLag = attrs.field(factory=StreamLag)

    def step(self) -> None:
        self.now_ms += self.rng.randint(1, 15)
        act = self.rng.random()
        if act < 0.4:
            self.head += 1
            if self.rng.random() < 0.6:
                groups = self.rng.choice([(G,), (H,), (G, H)])
                self.commits[self.head] = self.now_ms, groups
        elif act < 0.7 and self.lag.is_connected:
            through = self.rng.randint(self.read, self.head)
            fresh = range(self.read + 1, through + 1)
            records = [of(n, *self.commits[n][1]) for n in fresh if n in self.commits]
            self.lag.on_read(Sequence(through), records)
            self.read = through
        elif act < 0.72:
            self.own = self.main if self.own is None else self.own
        elif act < 0.75 and self.own is not None:
            self.own = self.rng.choice([self.rng.randint(self.own, self.main), self.own])
            if self.own == self.main and self.rng.random() < 0.5:
                self.own = None
        elif act < 0.9 and self.lag.is_connected:
            self.main = self.rng.randint(self.main, self.read)
            self.tell()
        elif act < 0.91 and self.lag.is_connected:
            self.lag.on_disconnected()
            self.main = self.rng.randint(self.main, self.read)
        elif act < 0.93 and not self.lag.is_connected:
            self.lag.on_connected(Sequence(self.main), is_fresh=False, now_ms=self.now_ms)
            self.read, self.told = self.main, -1

    def tell(self) -> None:
        change = None
        if self.told != self.own:
            change = told(out(position=self.own)) if self.own is not None else told(back=(G,))
            change = change if self.told != -1 or self.own is not None else TOLD
        self.told, self.acked = self.own, self.main
        self.lag.on_acknowledged(Sequence(self.main), now_ms=self.now_ms, out_of_step=change)

    def missing(self, group: GroupName) -> list[int]:
        at = self.own if group == G and self.own is not None else self.main
        return [n for n, (_, groups) in self.commits.items() if n > at and group in groups]

    def true_ms(self, *groups: GroupName) -> int:
        missing = [self.commits[n][0] for group in groups for n in self.missing(group)]
        return self.now_ms - min(missing) if missing else 0

    def check(self, known: TargetLag) -> bool:
        """Compare what is said with the truth, as far as it was told; return if it was exact."""
        for lag, true_ms in (
            (known.of(G), self.true_ms(G)),
            (known.of(H), self.true_ms(H)),
            (known.whole, self.true_ms(G, H)),
        ):
            _check_bound(lag, true_ms)
        is_news = (self.told, self.acked) != (self.own, self.main)
        whole, true_ms = known.whole, self.true_ms(G, H)
        if self.lag.is_connected and not is_news and whole.error_bound_ms is not None:
            assert whole.lag_ms is not None
            assert whole.lag_ms - whole.error_bound_ms <= true_ms, (whole, true_ms)
        count = known.of(G).records
        if count is not None and self.own is not None:
            unread = [n for n in self.missing(G) if n > self.read]
            missing = len(self.missing(G))
            assert missing - len(unread) <= count <= missing, (count, missing)
            return True
        return False


def _check_bound(lag: Lag, true_ms: int) -> None:
    if lag.lag_ms is None:
        return
    if lag.error_bound_ms is None:
        assert 0 < lag.lag_ms <= true_ms, (lag, true_ms)
        return
    # The main stream's lag is that of any group: it may count a record of the other one.
    assert true_ms <= lag.lag_ms + lag.error_bound_ms, (lag, true_ms)


@pytest.mark.parametrize("seed", range(30))
def test_the_truth_about_every_group_is_within_what_is_said(seed: int) -> None:
    """Late reads, lost connections and lost acknowledgements, and a group that comes and goes."""
    world = World(random.Random(seed))
    world.times.on_anchor(Anchor(sent_ms=900, received_ms=901, revision=Revision(10)))
    world.lag.on_connected(Sequence(10), is_fresh=False, now_ms=world.now_ms)
    world.told = -1
    anchored_ms, exact, unknown = world.now_ms, 0, 0
    for _ in range(3_000):
        world.step()
        if world.now_ms - anchored_ms >= 50:
            anchor = Anchor(
                sent_ms=world.now_ms, received_ms=world.now_ms, revision=Revision(world.head)
            )
            world.times.on_anchor(anchor)
            anchored_ms = world.now_ms
        if world.lag.is_connected and world.told not in {world.own, -1}:
            world.tell()
        known = target_lag(world.lag, world.times, now_ms=world.now_ms)
        exact += world.check(known)
        unknown += known.whole.lag_ms is None
    assert exact > 100
    assert unknown < 1_500


def test_the_last_head_tells_of_each_group_what_it_may_have_lacked() -> None:
    """Bounds, since an emergency is decided by them: the most that the lag may be, or nothing."""
    lag = stream(out(position=10))
    passed(lag, of(11, G), of(12, H), of(13, H))
    known = target_lag(lag, ANCHORS, now_ms=3_050)
    status = StreamStatus(
        source=A,
        target=B,
        incarnation=Incarnation("a-1"),
        lag=known.whole,
        head=Sequence(13),
        applied=Sequence(13),
        groups_out_of_step=(G,),
        tells=known.tells,
        in_step=known.in_step,
        behind=told_of(known.behind.values()),
    )

    head = target_head(status)
    untold = target_head(attrs.evolve(status, tells=False, lag=Lag(state=StreamState.UNKNOWN)))

    assert (head.of(H).applied, head.of(H).records, head.of(H).lag_ms) == (13, 0, 50)
    assert (head.of(G).applied, head.of(G).records, head.of(G).lag_ms) == (10, 1, 3_050)
    assert (untold.of(H).records, untold.of(H).lag_ms) == (None, None)


def test_a_stored_status_names_all_and_tells_of_the_worst_in_full() -> None:
    """A status has to fit into one key, also while thousands of groups are copied."""
    groups = [out(GroupName(f"g{n}"), why=WhyBehind.JOINING) for n in range(BEHIND_MAX + 50)]
    lag = stream(*groups, out(GroupName("z"), 10))

    known = target_lag(lag, ANCHORS, now_ms=3_050)
    stored = told_of(known.behind.values())

    assert len(stored) == BEHIND_MAX
    assert "z" in {one.group for one in stored}
    shown = StreamStatus(
        source=A,
        target=B,
        incarnation=Incarnation("a-1"),
        lag=known.whole,
        head=Sequence(13),
        groups_out_of_step=tuple(sorted(known.behind)),
        in_step=known.in_step,
        behind=stored,
    )
    unnamed = next(g for g in shown.groups_out_of_step if g not in {s.group for s in stored})
    assert shown.lag_of(unnamed) == Lag(state=StreamState.RECONCILING)


# --- what the target tells ----------------------------------------------------------------------


def own(phase: JoinPhase, sequence: int = 0, *, left_at: int | None = None) -> GroupCheckpoint:
    return GroupCheckpoint(
        source=A,
        group=G,
        incarnation=Incarnation("a-1"),
        phase=phase,
        epoch=Epoch(1),
        sequence=Sequence(sequence),
        left_at=None if left_at is None else Sequence(left_at),
        reason="because",
    )


def state(join: GroupCheckpoint, mode: FenceMode = FenceMode.SUPERSEDED) -> RegionState:
    main = checkpoint_at(None, source=A, incarnation=Incarnation("a-1"), sequence=Sequence(90))
    fence = Fence(group=G, epoch=Epoch(1), mode=mode, token=NO_TOKEN)
    return RegionState(fences={G: fence}, joins={(A, G): join}, checkpoints={A: main})


@pytest.mark.parametrize(
    ("join", "why", "position"),
    [
        (own(JoinPhase.JOINING), WhyBehind.JOINING, None),
        (own(JoinPhase.JOINING, left_at=7), WhyBehind.JOINING, 7),
        (own(JoinPhase.COPYING, 50, left_at=7), WhyBehind.RECONCILING, 7),
        (own(JoinPhase.FOLLOWING, 60), WhyBehind.RECONCILING, 60),
        (own(JoinPhase.AHEAD, 40), WhyBehind.AHEAD, None),
    ],
)
def test_a_target_tells_where_a_group_is_only_as_far_as_that_is_certain(
    join: GroupCheckpoint, why: WhyBehind, position: int | None
) -> None:
    """Half a copy at its cut is not the state at the cut."""
    told_of = OutOfStepHere(A).look(state(join), now_ms=0)[G]

    assert (told_of.why, told_of.position, told_of.text) == (why.value, position, "because")


def test_the_reason_that_stands_in_the_way_first_is_told() -> None:
    """A pause before a freeze, that before a refused write, and that before the copy itself."""
    following = own(JoinPhase.FOLLOWING, 60)
    parked = ParkedWrite(
        group=G, source=A, sequence=Sequence(9), key="/k", value_bytes=1, reason="too large"
    )
    frozen = state(following, FenceMode.HELD)
    frozen.parked[G] = parked
    refused = state(following)
    refused.parked[G] = parked

    whys = [
        OutOfStepHere(A, paused=lambda: {G}).look(frozen, now_ms=0)[G].why,
        OutOfStepHere(A).look(frozen, now_ms=0)[G].why,
        OutOfStepHere(A).look(refused, now_ms=0)[G].why,
    ]

    assert whys == ["paused", "held", "parked"]
    assert OutOfStepHere(B).look(refused, now_ms=0) == {}, "another source's stream"


def test_that_a_group_falls_out_of_step_is_seen_at_once() -> None:
    """Else the next acknowledgement would speak of it; how far it has come may wait a little."""
    here = OutOfStepHere(A)
    assert here.look(RegionState(), now_ms=0) == {}

    first = here.look(state(own(JoinPhase.FOLLOWING, 60)), now_ms=1)[G].position
    soon = here.look(state(own(JoinPhase.FOLLOWING, 61)), now_ms=2)[G].position
    later = here.look(state(own(JoinPhase.FOLLOWING, 61)), now_ms=200)[G].position

    assert (first, soon, later) == (60, 60, 61)
