"""Lag: the age of the oldest commit that is not applied, and never a wrong zero."""

from __future__ import annotations

from meshkit.ordinals import Revision, Sequence
from meshkit.status import StreamState
from replicator.lag import Anchor, CommitTimes, StreamLag
from replicator.limits import Limits
from tests.replicator.records import record


def times(*anchors: tuple[int, int]) -> CommitTimes:
    """Anchors of (sent at, revision), each answered 2 ms later."""
    made = CommitTimes()
    for sent_ms, revision in anchors:
        made.on_anchor(
            Anchor(sent_ms=sent_ms, received_ms=sent_ms + 2, revision=Revision(revision))
        )
    return made


def stream(start: int = 10) -> StreamLag:
    made = StreamLag()
    made.on_connected(Sequence(start), is_fresh=False, now_ms=0)
    return made


def test_nothing_known_is_unknown() -> None:
    """Not zero, and not since 1970."""
    assert StreamLag().evaluate(times((0, 10)), now_ms=5).lag_ms is None
    assert stream().evaluate(CommitTimes(), now_ms=5).state is StreamState.UNKNOWN


def test_zero_means_everything_up_to_the_newest_anchor_is_applied() -> None:
    """And its error bound says how old that anchor is."""
    lag = stream().evaluate(times((100, 10)), now_ms=130)

    assert (lag.state, lag.lag_ms, lag.error_bound_ms) == (StreamState.STREAMING, 0, 30)


def test_what_was_not_read_yet_counts_as_missing() -> None:
    """The watch may be behind the head without anybody noticing; it may also be behind nothing."""
    lag = stream().evaluate(times((100, 10), (150, 12)), now_ms=200)

    assert lag.lag_ms == 100
    assert lag.error_bound_ms == 100


def test_revisions_that_hold_no_record_are_no_lag() -> None:
    """MeshKit's own writes and other keys need no acknowledgement."""
    lag = stream()
    lag.on_read(Sequence(12), ())

    assert lag.evaluate(times((100, 10), (150, 12)), now_ms=160).lag_ms == 0


def test_the_oldest_record_that_is_not_acknowledged_decides() -> None:
    """Bracketed by the reads around its commit: what is said is the middle."""
    lag = stream()
    lag.on_read(Sequence(14), (record(11), record(14)))
    anchors = times((100, 10), (150, 11), (200, 14))

    first = lag.evaluate(anchors, now_ms=220)
    assert (first.lag_ms, first.error_bound_ms) == (94, 26)
    assert (first.records, first.bytes) == (2, sum(len(b"/orders/1v") for _ in range(2)))
    lag.on_acknowledged(Sequence(11), now_ms=221)
    assert lag.evaluate(anchors, now_ms=222).lag_ms == 46
    lag.on_acknowledged(Sequence(14), now_ms=223)
    assert lag.evaluate(anchors, now_ms=224).lag_ms == 0
    assert lag.acknowledged_records == 2


def test_a_record_newer_than_every_anchor_is_not_zero() -> None:
    """It was committed since the newest read; that bounds its age."""
    lag = stream()
    lag.on_read(Sequence(11), (record(11),))

    known = lag.evaluate(times((100, 10)), now_ms=130)

    assert (known.lag_ms, known.error_bound_ms) == (15, 15)


def test_a_target_that_is_cut_off_lags_more_and_more() -> None:
    """From the first commit that it may be missing."""
    lag = stream()
    lag.on_disconnected()
    anchors = times((100, 10), (150, 11), (1_000, 11))

    first = lag.evaluate(anchors, now_ms=1_100)
    second = lag.evaluate(anchors, now_ms=2_100)

    assert (first.state, first.lag_ms, second.lag_ms) == (StreamState.STALLED, 1_000, 2_000)


def test_old_anchors_prove_nothing() -> None:
    """The source's etcd has not answered for a while."""
    lag = stream().evaluate(times((100, 10)), now_ms=100 + Limits().anchor_age_ms_max + 1)

    assert lag.state is StreamState.UNKNOWN


def test_a_fresh_start_is_no_acknowledgement() -> None:
    """The target has yet to store where it begins."""
    lag = StreamLag()
    lag.on_connected(Sequence(10), is_fresh=True, now_ms=0)
    assert lag.evaluate(times((0, 10)), now_ms=5).lag_ms is None

    lag.on_acknowledged(Sequence(10), now_ms=6)

    assert lag.evaluate(times((0, 10)), now_ms=7).lag_ms == 0


def test_thinned_anchors_widen_the_bracket_and_stay_true() -> None:
    """Bounded memory must not make lag smaller than it is."""
    made = CommitTimes(anchors_max=10)
    for n in range(100):
        made.on_anchor(Anchor(sent_ms=n * 50, received_ms=n * 50 + 2, revision=Revision(n + 1)))

    for revision in range(1, 101):
        earliest, latest = made.bracket(revision)
        assert earliest is None or earliest <= (revision - 1) * 50
        assert latest is not None
        assert latest >= (revision - 1) * 50 + 2


def test_what_is_older_than_every_anchor_is_not_known_to_be_small() -> None:
    """A source that has just begun to lead knows of an old record only that it is older."""
    lag = stream()
    lag.on_read(Sequence(11), (record(11),))

    known = lag.evaluate(times((1_000, 11)), now_ms=1_010)

    assert (known.lag_ms, known.error_bound_ms) == (8, None)
    assert known.state is StreamState.CATCHING_UP


def test_a_record_that_was_sent_and_not_acknowledged_is_remembered_when_the_link_breaks() -> None:
    """Then it is known to be missing, and its age is as exact as before."""
    lag = stream()
    lag.on_read(Sequence(12), (record(12),))
    anchors = times((100, 10), (150, 11), (200, 12), (1_000, 12))
    lag.on_disconnected()

    cut_off = lag.evaluate(anchors, now_ms=1_100)

    assert (cut_off.lag_ms, cut_off.error_bound_ms) == (924, 26)
    assert (cut_off.records, cut_off.bytes) == (None, None)


def test_a_paused_stream_says_so_and_lags_more_and_more() -> None:
    """Whoever paused it sees what it costs."""
    lag = stream()
    anchors = times((100, 10), (150, 11), (1_000, 11))

    known = lag.evaluate(anchors, now_ms=1_100, is_paused=True)

    assert (known.state, known.lag_ms) == (StreamState.PAUSED, 1_000)


def test_a_target_that_is_stuck_for_hours_is_known_to_a_hundredth() -> None:
    """Memory is bounded, and what is kept of the past is spaced in proportion to its age."""
    made, step_ms, end_ms = CommitTimes(), 50, 4 * 3_600_000
    sampled: list[tuple[int, int]] = []
    for n, sent_ms in enumerate(range(0, end_ms, step_ms)):
        revision = Revision(n + 1)
        made.on_anchor(Anchor(sent_ms=sent_ms, received_ms=sent_ms + 2, revision=revision))
        if n % 9_973 == 1:
            sampled.append((revision, sent_ms))

    for revision, sent_ms in sampled:
        lag = StreamLag()
        lag.on_connected(Sequence(revision - 1), is_fresh=False, now_ms=0)
        lag.on_read(Sequence(revision), (record(revision),))
        known = lag.evaluate(made, now_ms=end_ms)
        assert known.lag_ms is not None
        assert known.error_bound_ms is not None
        assert known.error_bound_ms <= max(50, 0.01 * known.lag_ms)
        assert abs(known.lag_ms - (end_ms - sent_ms)) <= max(52, 0.01 * known.lag_ms)
