"""A gate opens only on a beat that is provably young."""

from fencing.gate_view import ANCHORS_MAX, NO_RANK, MemberView, opening_of, why_closed
from meshkit.codec import encode
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision
from meshkit.regional import Beat
from tests.fencing.region import permit_of, token_of

TR_MS = 2_000


def view() -> MemberView:
    member = MemberView(cluster=ClusterName("us-east"), regional_ttl_ms=TR_MS)
    member.on_permit(permit_of(1), Revision(5))
    return member


def beat(ttl_ms: int = 0) -> bytes:
    return encode(Beat(replicator="r", round=1, regional_ttl_ms=ttl_ms))


def test_a_beat_is_as_old_as_the_last_request_answered_before_it() -> None:
    member = view()
    member.on_anchor(sent_at_ms=1_000, revision=Revision(10))
    member.on_anchor(sent_at_ms=1_500, revision=Revision(20))

    member.on_beat(beat(), Revision(15))

    assert member.closes_at_ms == 1_000 + TR_MS
    assert opening_of(member, now_ms=2_999, rank_seen=NO_RANK) is not None
    assert opening_of(member, now_ms=3_000, rank_seen=NO_RANK) is None


def test_a_beat_from_before_the_connection_proves_nothing() -> None:
    """The backlog of a watch that was resumed, or what lay in a stopped client's buffers."""
    member = view()
    member.on_anchor(sent_at_ms=1_000, revision=Revision(10))

    member.on_beat(beat(), Revision(9))
    member.on_beat(beat(), Revision(10))

    assert member.closes_at_ms is None
    assert "no beat" in why_closed(member, now_ms=1_000, rank_seen=NO_RANK)


def test_an_older_beat_takes_nothing_away_and_gives_nothing() -> None:
    member = view()
    member.on_anchor(sent_at_ms=1_000, revision=Revision(10))
    member.on_beat(beat(), Revision(12))
    member.on_anchor(sent_at_ms=2_000, revision=Revision(12))
    member.on_beat(beat(), Revision(12))

    assert member.closes_at_ms == 3_000


def test_a_lost_connection_closes_until_the_next_beat_with_an_anchor_of_its_own() -> None:
    member = view()
    member.on_anchor(sent_at_ms=1_000, revision=Revision(10))
    member.on_beat(beat(), Revision(12))

    member.on_lost()
    member.on_beat(beat(), Revision(13))

    assert not member.is_vouched(now_ms=1_001)


def test_the_beat_says_how_long_it_may_be_trusted() -> None:
    """A client configured for a calmer mesh must not stay open longer than this one's permits."""
    member = view()
    member.on_anchor(sent_at_ms=1_000, revision=Revision(10))
    member.on_beat(beat(ttl_ms=500), Revision(12))
    assert member.closes_at_ms == 1_500

    member.on_beat(beat(ttl_ms=9_000), Revision(13))

    assert member.closes_at_ms == 1_500


def test_a_permit_below_the_greatest_epoch_seen_opens_nothing() -> None:
    member = view()
    member.on_anchor(sent_at_ms=1_000, revision=Revision(10))
    member.on_beat(beat(), Revision(12))

    assert opening_of(member, now_ms=1_001, rank_seen=(Epoch(1), token_of(1))) is not None
    assert opening_of(member, now_ms=1_001, rank_seen=(Epoch(2), token_of(2))) is None


def test_a_refusal_is_forgotten_only_for_what_came_after_it() -> None:
    """The watch may be behind the refusal, or ahead of it."""
    member = view()
    member.on_permit(permit_of(1), Revision(9))

    seen = []

    member.on_refusal(permit_of(1), Revision(8))
    seen.append(member.permit)
    member.on_refusal(permit_of(1), Revision(12))
    seen.append(member.permit)
    member.on_permit(permit_of(2), Revision(11))
    seen.append(member.permit)

    assert seen == [permit_of(1), None, permit_of(2)]


def test_a_permit_that_cannot_be_read_opens_nothing() -> None:
    member = view()
    member.on_permit(b"{}", Revision(6))

    assert member.permit is None


def test_anchors_are_bounded_and_reach_back_two_ttls() -> None:
    """Writes are anchors too, hundreds a second; the oldest kept must still be useful."""
    member = view()
    for at_ms in range(0, 100_000, 5):
        member.on_anchor(sent_at_ms=at_ms, revision=Revision(at_ms))

    assert len(member._anchors) == ANCHORS_MAX
    assert member._anchors[0][0] <= 100_000 - TR_MS
