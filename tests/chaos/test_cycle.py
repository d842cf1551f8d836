"""What a cycle takes for the end of a rejoin."""

import pytest

from chaos.cycles.cycle import has_rejoined


@pytest.mark.parametrize(
    ("phase", "step", "is_over"),
    [
        ("succeeded", "stand_by", True),
        ("advancing", "stand_by", False),
        ("abandoned", "stand_by", True),
        ("abandoned", "reconcile", False),
        ("abandoned", "quarantine", False),
        ("held", "stand_by", False),
    ],
)
def test_a_rejoin_that_a_failback_overtook_is_over_if_only_the_stream_was_waited_for(
    phase: str, step: str, is_over: bool
) -> None:
    assert has_rejoined({"phase": phase, "step": step}) is is_over
