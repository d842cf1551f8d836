"""The judges of two sides of a move: each can say no, and says nothing without evidence."""

from __future__ import annotations

import attrs
import pytest

from chaos.checkers import Judgement, check_handover, check_one_writer, check_rate
from chaos.history import Gap, History, Outcome, Write
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch

A, B = ClusterName("a"), ClusterName("b")
ONE, TWO = Epoch(1), Epoch(2)
MS = 1_000_000


def write(epoch: Epoch, *, called: int, returned: int) -> Write:
    return Write(
        writer="w",
        key=b"/orders/k",
        value=b"v",
        call_ns=called * MS,
        return_ns=returned * MS,
        outcome=Outcome.OK,
        cluster=A if epoch == ONE else B,
        epoch=epoch,
    )


def handover(*writes: Write) -> Judgement:
    return check_handover(History(writes=list(writes)), before=ONE, after=TWO).judgement


def test_one_side_ends_before_the_other_begins() -> None:
    """A write that waits for a cluster to open was called long before it is accepted."""
    old, new = write(ONE, called=5, returned=9), write(TWO, called=1, returned=10)

    assert handover(old, new) is Judgement.VALID


def test_an_acknowledgement_that_comes_late_is_no_handover() -> None:
    """More than one writer asks for: it was called in time, and acknowledged too late."""
    old, new = write(ONE, called=5, returned=11), write(TWO, called=1, returned=10)

    assert check_one_writer(History(writes=[old, new])).is_valid
    assert handover(old, new) is Judgement.INVALID


def test_what_was_not_acknowledged_is_no_evidence_of_an_overlap() -> None:
    old, new = write(ONE, called=5, returned=9), write(TWO, called=1, returned=10)
    unknown = attrs.evolve(write(ONE, called=5, returned=30), outcome=Outcome.INFO)

    assert handover(old, new, unknown) is Judgement.VALID


@pytest.mark.parametrize("epoch", [ONE, TWO])
def test_with_one_side_silent_nobody_knows(epoch: Epoch) -> None:
    """A gate that never opens would else pass for one that closes in time."""
    assert handover(write(epoch, called=1, returned=2)) is Judgement.UNKNOWN


@pytest.mark.parametrize(
    ("until", "judgement"),
    [(1_000, Judgement.VALID), (3_000, Judgement.UNKNOWN), (0, Judgement.UNKNOWN)],
)
def test_too_few_writes_for_the_time_are_no_evidence(until: int, judgement: Judgement) -> None:
    """Also those of a time that has not lasted at all."""
    writes = [write(ONE, called=1, returned=at) for at in range(0, 1_000, 100)]

    found = check_rate("a", writes, from_ns=0, to_ns=until * MS, per_s_min=5)

    assert found.judgement is judgement


def test_a_pause_is_no_part_of_the_time() -> None:
    """Else a failover would make every rate too low."""
    writes = [write(ONE, called=1, returned=at) for at in (*range(0, 500, 100), 2_000)]
    pause = Gap(from_ns=400 * MS, to_ns=2_000 * MS)

    found = check_rate("a", writes, from_ns=0, to_ns=2_000 * MS, per_s_min=5, besides=[pause])

    assert found.judgement is Judgement.VALID
