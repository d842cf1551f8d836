"""What is drawn for a cycle comes from the seed alone, and all of it comes up."""

from __future__ import annotations

from itertools import islice

from chaos.cycles.draw import Back, Consent, Delay, End, Fate, Third, Variation, variations


def drawn(seed: int, count: int) -> list[Variation]:
    return list(islice(variations(seed), count))


def test_the_same_seed_draws_the_same_cycles() -> None:
    assert drawn(7, 50) == drawn(7, 50)
    assert drawn(7, 50) != drawn(8, 50)


def test_every_three_cycles_have_each_way_a_third_cluster_may_stand() -> None:
    for seed in range(20):
        cycles = drawn(seed, 6)
        assert {v.third for v in cycles[:3]} == set(Third)
        assert {v.third for v in cycles[3:]} == set(Third)
        assert {v.end for v in cycles[:2]} == {v.end for v in cycles[2:4]} == set(End)


def test_a_hundred_cycles_have_everything() -> None:
    cycles = drawn(1, 100)

    assert {(v.end, v.third, v.delay) for v in cycles} == {
        (end, third, delay) for end in End for third in Third for delay in Delay
    }
    assert {v.back for v in cycles} == set(Back)
    assert {v.consent for v in cycles} == set(Consent)
    assert {v.fate for v in cycles} == set(Fate)
    assert {v.home for v in cycles} == {0, 1, 2}
    assert {v.has_tail for v in cycles} == {True, False}


def test_without_the_wait_for_the_fence_only_an_unknown_loss_can_be_accepted() -> None:
    hasty = [v for v in drawn(1, 200) if v.no_fence_wait]

    assert hasty
    assert {v.consent for v in hasty} == {Consent.UNKNOWN}
