"""Options that every command takes, before or after its name: context, API, output, timeout."""

from __future__ import annotations

import os
import re
from typing import Any

import click

OUTPUTS = ("table", "json", "yaml")
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "": 1_000}


def duration(value: Any) -> int:
    """Return the milliseconds in an option's value, for click's `type=`."""
    try:
        return value if isinstance(value, int) else duration_ms(str(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def duration_ms(text: str) -> int:
    """Return the milliseconds in `text`; `ValueError` says what a duration looks like."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 30s or 2m")
    return round(float(match[1]) * _UNITS_MS[match[2]])


def common_options() -> list[click.Option]:
    """Return the options every command takes. They are kept in the context, not passed."""
    given: dict[str, Any] = {"expose_value": False, "callback": _keep, "help": ""}
    return [
        click.Option(["--config"], metavar="FILE", **given | {"help": "Contexts file."}),
        click.Option(["--context"], metavar="NAME", **given | {"help": "Context to use."}),
        click.Option(
            ["--api"], metavar="URL", multiple=True, **given | {"help": "API URL; may be repeated."}
        ),
        click.Option(["--ca"], metavar="FILE", hidden=True, **given),
        click.Option(["--cert"], metavar="FILE", hidden=True, **given),
        click.Option(["--key"], metavar="FILE", hidden=True, **given),
        click.Option(
            ["--timeout"],
            type=duration,
            metavar="DURATION",
            **given | {"help": "How long to wait, such as 30s."},
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(OUTPUTS),
            **given | {"help": "Form of the output."},
        ),
        click.Option(["-q", "--quiet"], is_flag=True, **given | {"help": "No progress."}),
    ]


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value not in (None, (), False) and param.name is not None:
        given(ctx)[param.name] = value
    return value


def given(ctx: click.Context) -> dict[str, Any]:
    """Return the common options given anywhere on this command line."""
    kept = ctx.find_root().meta.setdefault("mesh.options", {})
    assert isinstance(kept, dict), "only options.py writes this"
    return kept


def shown_outputs(ctx: click.Context | None) -> str:
    """Return the form of output asked for so far: flag, then environment, then table."""
    flag = given(ctx).get("output") if ctx is not None else None
    return str(flag or os.environ.get("MESH_OUTPUT") or "table")


class MeshCommand(click.Command):
    """A command that takes the common options beside its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return its own parameters, then the common ones it does not define itself."""
        params = super().get_params(ctx)
        taken = {opt for p in params for opt in (*p.opts, *p.secondary_opts)}
        common = [o for o in _COMMON if not taken.intersection(o.opts)]
        help_option = [p for p in params if p.name == "help"]
        own = [p for p in params if p.name != "help"]
        return [*own, *common, *help_option]


_COMMON = common_options()
