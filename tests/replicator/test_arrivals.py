"""What an emergency may take for proof that its source has stopped (architecture 5.1 rule 8)."""

import pytest

from meshkit.ordinals import NO_TOKEN, Epoch, Revision, Sequence, Token
from replicator.arrivals import Arrivals
from replicator.record import Cut, Mark, Record, Resumed
from tests.replicator.mesh import G

SEAL = Token(incarnation=1, revision=Revision(30))
BEFORE = Token(incarnation=1, revision=Revision(20))


def arrived(*marks: Mark) -> Arrivals:
    arrivals = Arrivals(now_ms=0)
    for number, mark in enumerate(marks):
        record = Record(sequence=Sequence(50 + number), marks=(mark,))
        arrivals.on_applied(record.sequence, (record,))
    return arrivals


def cut(token: Token) -> Cut:
    return Cut(group=G, epoch=Epoch(1), token=token)


def test_the_cut_that_this_seal_made_is_proof() -> None:
    assert arrived(cut(SEAL)).taken_in(G, Epoch(1), seal=SEAL).cut == 50


@pytest.mark.parametrize("token", [BEFORE, NO_TOKEN], ids=["older", "of an older version"])
def test_a_cut_that_is_older_than_the_seal_is_no_proof(token: Token) -> None:
    """It may have been undone since, and writes accepted that are still on their way."""
    assert arrived(cut(token)).taken_in(G, Epoch(1), seal=SEAL).cut is None


def test_a_cut_that_was_undone_is_no_proof() -> None:
    undone = arrived(cut(SEAL), Resumed(group=G, epoch=Epoch(1)))

    assert undone.taken_in(G, Epoch(1), seal=SEAL).cut is None


def test_a_cut_of_another_epoch_is_no_proof() -> None:
    assert arrived(cut(SEAL)).taken_in(G, Epoch(2), seal=SEAL).cut is None


def test_without_a_seal_nothing_is_proof() -> None:
    assert arrived(cut(SEAL)).taken_in(G, Epoch(1), seal=NO_TOKEN).cut is None
