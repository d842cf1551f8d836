"""Ids of entries in quarantine: what names one, and what is said of what does not."""

from __future__ import annotations

import pytest

from coordinator.api.quarantine_views import entry_id, parse_id
from meshkit.errors import InvalidInput
from meshkit.ordinals import Epoch
from tests.coordinator.fake_region import ORDERS, A

NAME = "0000000000000042-" + "ab" * 12


def test_an_id_names_its_entry() -> None:
    cluster, entry = parse_id(ORDERS, entry_id(A, Epoch(3), NAME))

    assert (cluster, entry.epoch, entry.name) == (A, 3, NAME)


def test_what_is_no_id_is_refused_with_a_command_that_works() -> None:
    """`mesh quarantine list` without a group is refused itself."""
    with pytest.raises(InvalidInput) as refused:
        parse_id(ORDERS, "nope")

    assert refused.value.hint == "see them: mesh quarantine list orders"
