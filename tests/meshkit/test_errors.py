"""The tree of errors: arranged by what to do next, and each knows its words and exit code."""

import pytest

import meshkit.errors
from meshkit.errors import Compacted, LeaseLost, MeshError, OutcomeUnknown, Refused, StaleToken

EXIT_CODES = {1, 2, 3, 4, 6, 7, 9}
"""Those of `docs/cli.md` that an error can end in; 5, 8 and 10 are outcomes of failovers."""


def errors() -> list[type[MeshError]]:
    found = [e for e in vars(meshkit.errors).values() if isinstance(e, type)]
    return [e for e in found if issubclass(e, MeshError)]


@pytest.mark.parametrize("error", errors(), ids=lambda error: error.__name__)
def test_every_error_has_a_sentence_a_code_and_an_exit_code(error: type[MeshError]) -> None:
    assert (error.__doc__ or "").strip()
    assert error.code.replace("_", "").islower()
    assert error.exit_code in EXIT_CODES


def test_no_two_errors_share_a_code() -> None:
    """Scripts tell them apart by it."""
    codes = [error.code for error in errors()]

    assert sorted(set(codes)) == sorted(codes)


def test_nothing_that_may_have_happened_passes_for_refused() -> None:
    """`Refused` may be retried blindly."""
    assert not issubclass(OutcomeUnknown, Refused)
    assert not issubclass(Refused, OutcomeUnknown)


def test_an_error_without_a_message_says_its_sentence() -> None:
    assert str(OutcomeUnknown()) == (
        "It may have happened. Read the state back before deciding anything."
    )


def test_a_hint_of_the_moment_replaces_the_general_one() -> None:
    assert MeshError("x", hint="do this").hint == "do this"
    assert MeshError("x").hint == ""


def test_errors_carry_their_facts() -> None:
    compacted = Compacted(revision=5, compact_revision=9)

    assert (compacted.revision, compacted.compact_revision) == (5, 9)
    assert str(compacted) == "revision 5 is gone: compacted up to 9"
    assert str(LeaseLost(0x2A)) == "lease 2a does not exist"
    assert str(StaleToken(token="1.5", token_seen="1.9")) == "token 1.5 is older than 1.9"
