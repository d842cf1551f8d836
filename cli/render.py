"""Results to stdout as table, JSON or YAML; everything else to stderr.

Colour never carries meaning alone, and is off without a terminal, with NO_COLOR or TERM=dumb
(rich sees to that).
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

import attrs
import yaml
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from cli.settings import OutputForm

_WIDTH_WITHOUT_TERMINAL = 250
_STYLES = {
    "active": "green",
    "streaming": "green",
    "succeeded": "green",
    "done": "green",
    "ok": "green",
    "equal": "green",
    "repaired": "yellow",
    "different": "red",
    "open": "green",
    "draining": "yellow",
    "maintenance": "yellow",
    "catching-up": "yellow",
    "reconciling": "yellow",
    "advancing": "yellow",
    "undoing": "yellow",
    "rolled_back": "yellow",
    "warning": "yellow",
    "running": "yellow",
    "paused": "yellow",
    "drained": "yellow",
    "held": "red",
    "refused": "red",
    "failed": "red",
    "stalled": "red",
    "fenced": "red",
    "unknown": "red",
}


def console_for(file: TextIO, *, stderr: bool = False) -> Console:
    """Return a console on `file` that does not fold lines where nobody looks at them."""
    width = None if file.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(file=file, stderr=stderr, width=width, highlight=False, soft_wrap=False)


@attrs.frozen(kw_only=True)
class Output:
    """Where results and everything else go, and in which form."""

    form: OutputForm
    is_quiet: bool = False
    out: Console = attrs.field(factory=lambda: console_for(sys.stdout))
    err: Console = attrs.field(factory=lambda: console_for(sys.stderr))

    def result(
        self, body: Any, table: Callable[[], RenderableType], *, compact: bool = False
    ) -> None:
        """Write a result: `body` as it is for machines, or what `table` makes of it."""
        match self.form:
            case OutputForm.JSON:
                self.plain(json.dumps(body, indent=None if compact else 2, ensure_ascii=False))
            case OutputForm.YAML:
                text = yaml.safe_dump(body, sort_keys=False, allow_unicode=True)
                self.plain(f"---\n{text}" if compact else text, end="")
            case OutputForm.TABLE:
                self.table(table())

    def table(self, content: RenderableType) -> None:
        """Write a table to stdout; where nobody looks, without the blanks that fill its lines."""
        if self.out.is_terminal:
            unbounded = self.out.options.update(width=_WIDTH_WITHOUT_TERMINAL)
            needed = Measurement.get(self.out, unbounded, content)
            if needed.minimum <= self.out.width:
                self.out.print(content)
            else:
                # Lines that the terminal folds can still be read; cells cut short cannot.
                wide = Console(
                    file=self.out.file,
                    width=needed.maximum,
                    force_terminal=True,
                    no_color=self.out.no_color,
                    highlight=False,
                )
                wide.print(content, crop=False)
            return
        with self.out.capture() as captured:
            self.out.print(content)
        self.plain("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def plain(self, text: str, *, end: str = "\n") -> None:
        """Write text to stdout as it is."""
        self.out.file.write(text + end)
        self.out.file.flush()

    def note(self, message: RenderableType = "") -> None:
        """Tell the person something, on stderr, unless asked to be quiet."""
        if not self.is_quiet:
            self.err.print(message)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a plain table; columns that begin with `>` are aligned to the right.

    Only the last column is folded where there is little room.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    titles = [column.removeprefix(">") for column in columns]
    cells = [[c if isinstance(c, Text) else Text(shown(c)) for c in row] for row in rows]
    for number, (column, title) in enumerate(zip(columns, titles, strict=True)):
        is_last = number == len(columns) - 1
        width = max([len(title), *(row[number].cell_len for row in cells)])
        made.add_column(
            title,
            justify="right" if column.startswith(">") else "left",
            min_width=None if is_last else width,
            no_wrap=not is_last,
            overflow="fold",
        )
    for row in cells:
        made.add_row(*row)
    return made


def shown(value: Any) -> str:
    """Return a cell: what is unknown or not there is a dash, lists are joined by commas."""
    if value is None or value in ("", [], ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join("-" if v is None else str(v) for v in value)
    return str(value)


def word(text: str | None) -> Text:
    """Return a word of state in its colour."""
    return Text(shown(text), style=_STYLES.get(text or "", ""))


def shown_ms(duration_ms: float | None) -> str:
    """Return a duration for people: `12ms`, `3.4s`, `2m05s`, `3h12m`, `12d03h`."""
    if duration_ms is None:
        return "-"
    if duration_ms < 1_000:
        return f"{duration_ms:.0f}ms"
    seconds = duration_ms / 1_000
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"


def shown_lag(lag_ms: int | None, error_ms: int | None) -> str:
    """Return a lag with its error bound, or that it is at least so much; else `unknown`."""
    if lag_ms is None:
        return "unknown"
    if error_ms is None:
        return f"at least {shown_ms(lag_ms)}"
    return f"{shown_ms(lag_ms)} ±{shown_ms(error_ms)}"


def shown_time(at_ms: int | None, *, now_ms: int | None = None) -> str:
    """Return a moment as UTC ISO 8601, with its age when `now_ms` is given."""
    if at_ms is None:
        return "-"
    moment = dt.datetime.fromtimestamp(at_ms / 1000, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if now_ms is None:
        return moment
    return f"{moment} ({shown_ms(max(0, now_ms - at_ms))} ago)"


def shown_bytes(size: float | None) -> str:
    """Return a size for people."""
    if size is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}GiB"


def fields(pairs: Mapping[str, Any]) -> Table:
    """Return names and values below each other."""
    made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column()
    for name, value in pairs.items():
        made.add_row(name, value if isinstance(value, Text) else Text(shown(value)))
    return made


def took_ms(step: Mapping[str, Any]) -> int | None:
    """Return how long a step took, once it has ended."""
    if step.get("started_ms") is None or step.get("ended_ms") is None:
        return None
    return int(step["ended_ms"]) - int(step["started_ms"])
