"""Figures say what was measured, and nothing that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import plots
from bench.report import Line


def line(**changes: Any) -> dict[str, Any]:
    made = {
        "id": "P9", "what": "something", "value": 4.0, "unit": "ms", "peer": "", "ratio": None,
        "target": "<= 8 ms", "met": True, "why": "",
    }  # fmt: skip
    assert set(made) == {field.name for field in Line.__attrs_attrs__}
    return made | changes


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({}, 2.0),
        ({"value": 16.0}, 0.5),
        ({"value": 98.0, "target": ">= 99 %"}, 98 / 99),
        ({"ratio": 4.0, "target": "<= 2 x"}, 0.5),
        ({"value": 20_000.0, "target": ">= 40,000"}, 0.5),
        ({"ratio": 30.0, "target": ">= 10 x"}, 3.0),
        ({"ratio": 30.0}, 2.0),
        ({"target": "0"}, None),
        ({"target": ""}, None),
        ({"value": 0.0}, None),
    ],
)
def test_a_target_is_reached_by_the_number_it_names(
    changes: dict[str, Any], reached: float | None
) -> None:
    """More is better or less is better, and a ratio is held against a ratio."""
    assert plots.reached(line(**changes)) == reached


def write(folder: Path, name: str, data: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(data))


def test_every_figure_is_drawn_from_its_numbers(tmp_path: Path) -> None:
    """As SVG whose words are words, and the same bytes for the same numbers."""
    write(tmp_path, "report", {"machine": {"cpus": 2}, "lines": [line(), line(met=False)]})
    samples = [{"at": t, "said": None if t == 3 else float(t), "true": t} for t in range(6)]
    write(tmp_path, "P6-lag", [{"what": "stuck", "samples": samples}])
    write(tmp_path, "P3-pauses", [40.0, 50.0, 90.0])

    drawn = plots.draw(tmp_path, tmp_path / "one")
    again = plots.draw(tmp_path, tmp_path / "two")

    assert [path.name for path in drawn] == ["targets.svg", "lag.svg", "pauses.svg"]
    for first, second in zip(drawn, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert "P9 something" in drawn[0].read_text()
    assert plots.MET in drawn[0].read_text()
    assert plots.MISSED in drawn[0].read_text()
    assert "stuck" in drawn[1].read_text()


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    """No figure without numbers, no line without a target."""
    write(tmp_path, "report", {"machine": {}, "lines": [line(target="")]})
    write(tmp_path, "P3-pauses", [])

    assert plots.draw(tmp_path, tmp_path / "out") == []
    assert plots.main(["--from", str(tmp_path)]) == 1
