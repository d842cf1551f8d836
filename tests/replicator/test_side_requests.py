"""Which side streams are asked for, which are asked for anew, and which have to wait."""

from __future__ import annotations

import attrs
import pytest

from meshkit.names import GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation, Sequence
from meshkit.regional import Fence, FenceMode, GroupCheckpoint, JoinPhase
from replicator.limits import Limits
from replicator.receiver import Receiver
from replicator.record import Record, Scoped
from replicator.region_state import RegionState
from replicator.shield import Shield
from replicator.side_requests import SideRequests
from tests.replicator.mesh import A, B, G

LIMITS = Limits(held_ms_min=1_000, held_ms_max=3_000)
OTHER = Shield([(b"/orders/a/", GroupName("users"))])


class Target:
    """One connection's requests, and the state of its region."""

    def __init__(self, phase: JoinPhase = JoinPhase.JOINING) -> None:
        self.version = 0
        self.state = RegionState()
        fence = Fence(group=G, epoch=Epoch(1), mode=FenceMode.SUPERSEDED, token=NO_TOKEN)
        self.state.fences[G] = fence
        self.state.joins[A, G] = GroupCheckpoint(
            source=A, group=G, incarnation=Incarnation(""), phase=phase, epoch=Epoch(1)
        )
        self.receiver = Receiver(
            source=A, target=B, incarnation=None, position=None, now_ms=0, limits=LIMITS
        )
        self.requests = SideRequests(A, limits=LIMITS)

    def stored(self, phase: JoinPhase) -> None:
        self.state.joins[A, G] = attrs.evolve(self.state.joins[A, G], phase=phase)
        self.version += 1

    def asks(self, now_ms: int = 0) -> bool:
        if not self.requests.is_due(self.version, now_ms=now_ms):
            return False
        asked = self.requests.look(self.receiver, self.state, version=self.version, now_ms=now_ms)
        return asked == [G]

    def hold(self, now_ms: int, *, shield: Shield | None = None) -> None:
        self.requests.on_held(
            self.receiver, G, "why", shield=shield or self.state.shield(), now_ms=now_ms
        )
        self.version += 1


def test_a_group_out_of_step_is_asked_for_once() -> None:
    target = Target()
    assert target.asks()

    for phase in (JoinPhase.JOINING, JoinPhase.COPYING, JoinPhase.FOLLOWING):
        target.stored(phase)
        assert not target.asks()


@pytest.mark.parametrize("asked_in", [JoinPhase.COPYING, JoinPhase.FOLLOWING])
def test_what_was_set_back_since_it_was_asked_for_is_asked_for_anew(asked_in: JoinPhase) -> None:
    """Also if no page of a copy came on this connection."""
    target = Target(asked_in)
    assert target.asks()
    target.stored(JoinPhase.JOINING)

    assert target.asks()
    target.version += 1
    assert not target.asks()


def test_a_copy_that_was_set_back_after_pages_arrived_is_asked_for_anew() -> None:
    target = Target()
    assert target.asks()
    target.requests.on_page(G)
    target.stored(JoinPhase.JOINING)

    assert target.asks()


def test_what_does_not_continue_the_checkpoint_is_asked_for_anew() -> None:
    """Whatever made it so: nothing else would ever bring the group back into step."""
    target = Target(JoinPhase.FOLLOWING)
    assert target.asks()
    target.requests.on_stale(G)

    assert target.asks()
    assert not target.asks()


def test_a_group_that_cannot_be_applied_waits_longer_each_time() -> None:
    """A copy of millions of keys must not begin anew every second in vain."""
    target = Target()
    assert target.asks()
    now_ms = 0
    for wait_ms in (1_000, 2_000, 3_000, 3_000):
        target.hold(now_ms)
        assert target.receiver.joined(G) is None
        assert not target.asks(now_ms + wait_ms - 1)
        now_ms += wait_ms
        assert target.asks(now_ms)
        assert target.requests.problems == {G: "why"}


def test_a_wait_ends_when_this_cluster_is_active_for_something_else() -> None:
    target = Target()
    assert target.asks()
    target.hold(0, shield=OTHER)

    assert target.asks(1)


def test_a_wait_ends_with_a_mark_of_the_group() -> None:
    """Its prefixes changed at the source: perhaps that was all that stood in the way."""
    target = Target()
    assert target.asks()
    target.hold(0)
    assert not target.asks(1)
    mark = Scoped(group=G, epoch=Epoch(1))
    target.requests.on_records([Record(sequence=Sequence(9), marks=(mark,))])

    assert target.asks(2)


def test_a_group_in_step_is_asked_for_no_longer_and_has_no_problem() -> None:
    target = Target()
    assert target.asks()
    target.hold(0)
    target.state.joins.clear()
    target.version += 1

    assert not target.asks(5_000)
    assert target.requests.problems == {}
    assert target.receiver.joined(G) is None
