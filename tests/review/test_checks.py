"""A claim about the checks before a failover which a review once found untrue."""

from __future__ import annotations

import attrs

from meshkit.ordinals import Epoch
from tests.coordinator.fake_region import ORDERS, B
from tests.coordinator.test_preflight import failed, good, health


def test_a_copy_of_an_older_epoch_is_not_in_step() -> None:
    """Its region says "in step" with an epoch that is over; writes would be paused in vain."""
    authority = attrs.evolve(good().authority, epoch=Epoch(2))
    assert health(B).groups[ORDERS].epoch == 1

    assert "target_in_step" in failed(authority=authority)
