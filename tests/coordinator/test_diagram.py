"""The drawn machines are the machines."""

from pathlib import Path

import pytest

from coordinator.failover.diagram import page
from coordinator.failover.plan import PLANS
from coordinator.rejoin import diagram as rejoin

FOLDER = Path(__file__).parents[2] / "docs" / "machines"


@pytest.mark.parametrize("name", PLANS)
def test_the_page_of_each_machine_is_up_to_date(name: str) -> None:
    """Else: make docs."""
    plan = PLANS[name]

    assert (FOLDER / f"{name.split('/', maxsplit=1)[0]}.md").read_text() == page(plan)


def test_the_page_of_a_rejoin_is_up_to_date() -> None:
    """Else: make docs."""
    assert (FOLDER / "rejoin.md").read_text() == rejoin.page()
