"""What a cycle takes for the end of a rejoin."""

import pytest

from chaos.cycles.cycle import following, has_rejoined


@pytest.mark.parametrize(
    ("phase", "follows", "is_over"),
    [
        ("succeeded", False, True),
        ("advancing", True, False),
        ("held", True, False),
        ("abandoned", True, True),
        ("abandoned", False, False),
    ],
)
def test_a_rejoin_that_a_failback_overtook_is_over_once_the_cluster_follows(
    phase: str, follows: bool, is_over: bool
) -> None:
    assert has_rejoined({"phase": phase}, follows=follows) is is_over


def test_a_cluster_that_was_in_step_in_an_older_epoch_does_not_follow() -> None:
    members = [
        {"cluster": "a", "in_step": True, "fence_epoch": 3},
        {"cluster": "b", "in_step": True, "fence_epoch": 2},
        {"cluster": "c", "in_step": False, "fence_epoch": 3},
    ]
    assert following({"epoch": 3, "clusters": members}) == {"a"}
