"""Tokens and positions: what orders them, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.ordinals import NO_TOKEN, Epoch, Position, Revision, Sequence, Token

tokens = st.builds(Token, incarnation=st.integers(0, 3), revision=st.integers(0, 3).map(Revision))


@given(tokens, tokens)
def test_tokens_are_ordered_by_incarnation_first(one: Token, other: Token) -> None:
    """A restored coordination etcd counts revisions anew; its tokens must still be higher."""
    expected = (one.incarnation, one.revision) < (other.incarnation, other.revision)

    assert (one < other) == expected


@given(tokens)
def test_no_token_is_lower_than_every_token_ever_issued(token: Token) -> None:
    assert token >= NO_TOKEN


def test_a_token_of_a_new_incarnation_beats_any_revision_of_the_old() -> None:
    old = Token(incarnation=1, revision=Revision(10**12))
    new = Token(incarnation=2, revision=Revision(2))

    assert old < new


@pytest.mark.parametrize(("incarnation", "revision"), [(-1, 0), (0, -1)])
def test_a_negative_token_cannot_be_made(incarnation: int, revision: int) -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        Token(incarnation=incarnation, revision=Revision(revision))


def test_tokens_and_positions_print_short() -> None:
    assert str(Token(incarnation=1, revision=Revision(57))) == "1.57"
    assert str(Position(epoch=Epoch(2), sequence=Sequence(1000))) == "2@1000"


def test_positions_are_ordered_by_epoch_then_sequence() -> None:
    late_old = Position(epoch=Epoch(1), sequence=Sequence(1000))
    early_new = Position(epoch=Epoch(2), sequence=Sequence(3))

    assert late_old < early_new
