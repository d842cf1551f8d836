"""What a coordinator tells Prometheus of the copies that were compared."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.api.metrics import Metrics


def said(outcome: str, *, differing: int = 0) -> dict[str, str]:
    """Return the samples about one copy, compared 90 s ago."""
    result = {
        "group": "orders", "target": "eu-west", "outcome": outcome, "differing": differing,
        "ended_ms": 10_000,
    }  # fmt: skip
    stream: dict[str, Any] = {
        "source": "us-east", "target": "eu-west", "lag_ms": None, "last_verify": [result],
    }  # fmt: skip
    text = Metrics().exposition(is_leading=True, streams=[stream], now_ms=100_000).decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("mesh_verify"))
    return {name.split("{")[0]: value for name, value in lines}


@pytest.mark.parametrize(
    ("outcome", "differing", "equal", "keys"),
    [
        ("equal", 0, "1.0", "0.0"),
        ("repaired", 3, "1.0", "3.0"),
        ("different", 3, "0.0", "3.0"),
        ("refused", 0, "0.0", None),
    ],
)
def test_a_copy_that_could_not_be_compared_is_not_equal_and_has_no_count(
    outcome: str, differing: int, equal: str, keys: str | None
) -> None:
    """An alert on `mesh_verify_equal == 0` sees both what differs and what nobody knows."""
    samples = said(outcome, differing=differing)

    assert samples["mesh_verify_equal"] == equal
    assert samples["mesh_verify_age_seconds"] == "90.0"
    assert samples.get("mesh_verify_differing_keys") == keys
