"""The page says what the report says, and nothing else."""

from bench.page import text_of, with_older
from tests.bench.test_plots import line


def report(**changes) -> dict:
    return {"machine": {"cpus": 2}, "lines": [line(**changes)]}


def test_a_missed_target_is_shown_with_its_reason() -> None:
    text = text_of(report(met=False, why="limit: the disk"), ["targets"])

    assert "| P9 | something | 4.0 ms |  |  | <= 8 ms | **no** |" in text
    assert "* **P9**, something: limit: the disk" in text
    assert "figures/targets.svg" in text
    assert "figures/lag.svg" not in text


def test_what_has_no_target_is_neither_met_nor_missed() -> None:
    text = text_of(report(met=None, target="", ratio=2.5), [])

    assert "| P9 | something | 4.0 ms |  | 2.50 |  |  |" in text
    assert "limited" not in text.partition("| P9")[2]


def test_the_same_report_gives_the_same_page() -> None:
    assert text_of(report(), ["lag"]) == text_of(report(), ["lag"])


def test_what_a_run_left_out_is_kept_and_said_to_be_older() -> None:
    before = {"machine": {}, "lines": [line(id="P6", what="lag"), line(id="P9", what="old")]}

    merged = with_older(with_older(report(), before), before)

    assert [(each["id"], each["what"]) for each in merged["lines"]] == [
        ("P6", "lag (an earlier run)"),
        ("P9", "something"),
    ]
