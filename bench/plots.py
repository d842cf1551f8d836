"""`python -m bench.plots`: figures for the documents, from what the benchmarks last wrote.

Reads `bench/out/report.json` and the series beside it, and draws SVG into `bench/out/figures`, or
where it is told to. Draws nothing that was not measured: a figure without its numbers is left out,
and said to be. The same numbers always give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from bench.report import OUT

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MET, MISSED, UNTOLD = "#2a7f4f", "#b8442f", "#7a7a7a"
SAID, TRUE = "#2f5fa8", "#d08a2e"
WIDTH_IN = 9.0
_TARGET = re.compile(r"(<=|>=)\s*([\d.,]*\d)")
REACH_SHOWN_MAX = 2.0
"""A bar this long has met its target, however far it went past it."""
NAME_WIDTH = 62

Json = Mapping[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Draw every figure whose numbers are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, default=OUT, help="where the data is")
    parser.add_argument("--out", type=Path, default=None, help="where the figures go")
    chosen = parser.parse_args(arguments)
    out: Path = chosen.out or chosen.source / "figures"
    drawn = draw(chosen.source, out)
    sys.stderr.write(f"{len(drawn)} figures in {out}\n")
    return 0 if drawn else 1


def draw(source: Path, out: Path) -> list[Path]:
    """Draw what there is in `source` into `out`, and return the files."""
    out.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    makers = (
        ("report", "targets", targets_figure),
        ("P6-lag", "lag", lag_figure),
        ("P3-pauses", "pauses", pauses_figure),
    )
    with mpl.rc_context(
        {
            "svg.hashsalt": "meshkit",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        for data, name, make in makers:
            path = source / f"{data}.json"
            figure = make(json.loads(path.read_text())) if path.exists() else None
            if figure is None:
                sys.stderr.write(f"{name}: nothing in {path}\n")
                continue
            drawn.append(out / f"{name}.svg")
            figure.savefig(drawn[-1], metadata={"Date": None, "Creator": None})
            plt.close(figure)
    return drawn


# --- figures ------------------------------------------------------------------------------------


def targets_figure(report: Json) -> Figure | None:
    """Return how far every figure of a run lies from its target; None if none has one."""
    lines = [(line, reach) for line in report["lines"] if (reach := reached(line)) is not None]
    if not lines:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 0.8 + 0.32 * len(lines)), layout="constrained")
    for row, (line, reach) in enumerate(reversed(lines)):
        shown = min(reach, REACH_SHOWN_MAX)
        axes.barh(row, shown, color=_colour(line["met"]), height=0.6)
        axes.annotate(
            f" {line['value']:,.1f} {line['unit']} ({line['target']})",
            (max(shown, 0.02), row),
            va="center",
            fontsize=7,
        )
    axes.axvline(1.0, color="black", linewidth=0.8)
    names = [_wrapped(f"{line['id']} {line['what']}") for line, _ in reversed(lines)]
    axes.set_yticks(range(len(lines)), names, fontsize=6)
    axes.set_xlim(0, 1.6 * REACH_SHOWN_MAX)
    axes.set_xticks((0, 0.5, 1, 1.5, 2), ("0", "½", "1", "1½", "2 and more"))
    axes.set_xlabel("part of the target that was reached; 1 and more: met")
    axes.set_title(_machine(report["machine"]), fontsize=8, loc="left")
    return figure


def lag_figure(series: Sequence[Json]) -> Figure | None:
    """Return what the lag metric said beside the true lag, a panel for each phase."""
    phases = [phase for phase in series if phase["samples"]]
    if not phases:
        return None
    size = (WIDTH_IN, 1.5 * len(phases))
    figure, panels = plt.subplots(len(phases), 1, figsize=size, layout="constrained", squeeze=False)
    for axes, phase in zip(panels[:, 0], phases, strict=True):
        _lag_panel(axes, phase)
    panels[0, 0].legend(frameon=False, fontsize=7, loc="upper left")
    panels[-1, 0].set_xlabel("s")
    return figure


def pauses_figure(pauses: Sequence[float]) -> Figure | None:
    """Return how long writes paused: the share of failovers that paused no longer."""
    if not pauses:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 2.6), layout="constrained")
    ordered = sorted(pauses)
    shares = [100 * (n + 1) / len(ordered) for n in range(len(ordered))]
    axes.step(ordered, shares, where="post", color=SAID)
    for share in (50, 99):
        axes.axhline(share, color=UNTOLD, linewidth=0.6, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 101)
    axes.set_xlabel("longest gap between acknowledged writes, ms")
    axes.set_ylabel(f"% of {len(ordered)} failovers")
    return figure


def _lag_panel(axes: Axes, phase: Json) -> None:
    began = phase["samples"][0]["at"]
    at = [sample["at"] - began for sample in phase["samples"]]
    # What nobody said is a gap in the line, never a zero.
    said = [float("nan") if s["said"] is None else s["said"] for s in phase["samples"]]
    axes.plot(at, [s["true"] for s in phase["samples"]], color=TRUE, linewidth=2.4, label="true")
    axes.plot(at, said, color=SAID, linewidth=0.9, label="metric")
    axes.set_title(phase["what"], fontsize=8, loc="left")
    axes.set_ylabel("lag, s")
    axes.set_ylim(bottom=0)


# --- parts --------------------------------------------------------------------------------------


def reached(line: Json) -> float | None:
    """Return which part of its target a line reached, 1 and more being met; None without one.

    A target that names a ratio is held against the ratio, else against the value.
    """
    found = _TARGET.search(line["target"] or "")
    if found is None:
        return None
    limit = float(found[2].replace(",", ""))
    is_ratio = line["ratio"] is not None and re.search(r"\bx\b", line["target"])
    measured = line["ratio"] if is_ratio else line["value"]
    if found[1] == ">=":
        return float(measured / limit)
    return float(limit / measured) if measured else None


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, NAME_WIDTH))


def _colour(met: bool | None) -> str:
    return UNTOLD if met is None else MET if met else MISSED


def _machine(facts: Json) -> str:
    names = ("cpus", "system", "architecture", "python", "etcd", "meshkit")
    return ", ".join(f"{name} {facts[name]}" for name in names if name in facts)


if __name__ == "__main__":
    sys.exit(main())
