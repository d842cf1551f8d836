"""Negative controls: each planted bug is found by some seed, or the simulation proves nothing."""

from __future__ import annotations

import pytest

from chaos.sim.planted import PLANTED
from chaos.sim.run import run_seed

FOUND_WITHIN = 60


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_planted_bug_is_found(name: str) -> None:
    """From the seed that is known to find it; as the product changes, another soon does."""
    planted = PLANTED[name]

    with planted.plant():
        seeds = range(planted.seed, planted.seed + FOUND_WITHIN)
        finds = (seed for seed in seeds if run_seed(seed, change=planted.aimed).problems)
        found = next(finds, None)

    assert found is not None, f"{planted.what}: no seed found it"
    assert run_seed(found, change=planted.aimed).problems == (), "without the bug the seed passes"
