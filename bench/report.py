"""What a benchmark found, as one line; the table and the JSON that are made of the lines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from meshkit.etcd_binary import find_etcd

OUT = Path(__file__).parent / "out"
WIDTH = 180
"""Of the table where there is no terminal to ask."""
LIBRARIES = ("meshkit", "grpcio", "protobuf", "uvloop")


@attrs.frozen(kw_only=True)
class Line:
    """One figure, beside its peer or ceiling of the same run."""

    id: str
    what: str
    value: float
    unit: str
    peer: str = ""
    """What it is compared with, and that one's figure."""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    """Whether the target was met; None where there is none, or too little was run to tell."""
    why: str = ""
    """What the figure was limited by, as measured in the same run."""


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile by the nearest-rank method; values need not be sorted."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


def machine() -> dict[str, object]:
    """Return the facts of the machine and the versions that the figures were made with."""
    return {
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "etcd": find_etcd().version,
        "load_before": os.getloadavg()[0],
        **{name: version(name) for name in LIBRARIES},
    }


def write_report(lines: Sequence[Line], facts: dict[str, object]) -> Path:
    """Write the report as JSON and return its path."""
    OUT.mkdir(exist_ok=True)
    path = OUT / "report.json"
    plain = {"machine": facts, "lines": [attrs.asdict(line) for line in lines]}
    path.write_text(json.dumps(plain, indent=1) + "\n")
    return path


def write_series(name: str, data: object) -> Path:
    """Write the measurements behind a figure, for `bench.plots`, and return the path."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(data) + "\n")
    return path


def print_table(lines: Sequence[Line], facts: dict[str, object]) -> None:
    """Print the lines as a table for people."""
    table = Table("ID", "WHAT", "VALUE", "UNIT", "PEER", "RATIO", "TARGET", "MET")
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        met = {True: "yes", False: "NO", None: "-"}[line.met]
        value = f"{line.value:,.1f}"
        table.add_row(line.id, line.what, value, line.unit, line.peer, ratio, line.target, met)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table)
    for why in dict.fromkeys(f"{line.id}: {line.why}" for line in lines if line.why):
        console.print(why, soft_wrap=True)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), soft_wrap=True)
