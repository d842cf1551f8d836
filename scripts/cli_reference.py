"""Writes `docs/cli.md` from the commands of `mesh` themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

import meshkit.errors
from cli.main import EXIT_CODES, mesh
from cli.options import common_options

INTRODUCTION = """\
# The command line

`mesh` talks only to the automation API ([api](api.md)); `mesh sandbox` and `mesh demo` start
everything on this machine. Results go to stdout; progress, prompts and errors to stderr. `-o json`
is a documented contract: the JSON of the API. Shell completion: `mesh completion --help`.
"""


def text() -> str:
    """Return the document."""
    parts = [
        INTRODUCTION,
        _exit_codes(),
        _errors(),
        "## Options of every command\n\n" + _options(common_options()),
    ]
    parts += [_section(path, command) for path, command in commands()]
    return "\n".join(parts)


def _errors() -> str:
    lines = ["## Errors", "", "| Code | Exit code | Means |", "|---|---|---|"]
    classes = [c for c in vars(meshkit.errors).values() if isinstance(c, type)]
    errors = [c for c in classes if issubclass(c, meshkit.errors.MeshError)]
    for error in sorted(errors, key=lambda cls: cls.code):
        sentence = (error.__doc__ or "").strip().splitlines()[0]
        lines.append(f"| `{error.code}` | {error.exit_code} | {sentence} |")
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Return every command with its full name, groups before their members."""
    yield from _below("mesh", mesh)


def _below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if path != "mesh":
        yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, f"{path} lists {name} and does not have it"
            if not found.hidden:
                yield from _below(f"{path} {name}", found)


def _exit_codes() -> str:
    lines = [line for line in EXIT_CODES.splitlines() if line.strip("\b ")]
    return "## Exit codes\n\n```\n" + inspect.cleandoc("\n".join(lines[1:])) + "\n```\n"


def _section(path: str, command: click.Command) -> str:
    is_group = isinstance(command, click.Group)
    context = click.Context(command, info_name=path)
    pieces = " ".join(p for p in command.collect_usage_pieces(context) if p != "[OPTIONS]")
    parts = [f"{'##' if is_group else '###'} {path}\n"]
    if not is_group:
        parts.append(f"```\n{path} {pieces}".rstrip() + "\n```\n")
    parts.append(_prose(command.help or ""))
    own = [p for p in command.params if isinstance(p, click.Option)]
    shared = {option for common in common_options() for option in common.opts}
    own = [option for option in own if not shared.intersection(option.opts)]
    if own and not is_group:
        parts.append(_options(own))
    return "\n".join(parts)


def _prose(text_of_help: str) -> str:
    """Return click's help as Markdown: paragraphs it may not wrap are shown as code."""
    paragraphs = inspect.cleandoc(text_of_help).split("\n\n")
    shown = []
    for paragraph in paragraphs:
        if paragraph.lstrip().startswith("\b"):
            code = paragraph.replace("\b\n", "").replace("\b", "")
            shown.append(f"```\n{inspect.cleandoc(code)}\n```")
        else:
            shown.append(paragraph)
    return "\n\n".join(shown) + "\n"


def _options(options: list[click.Option]) -> str:
    rows = ["| Option | Means |", "|---|---|"]
    for option in options:
        if option.hidden:
            continue
        names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
        off = "".join(f", `{name}`" for name in option.secondary_opts)
        value = "" if option.is_flag else f" {_value(option)}"
        needed = " Required." if option.required else ""
        rows.append(f"| {names}{off}{value} | {option.help or ''}{needed} |")
    return "\n".join(rows) + "\n"


def _value(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return "\\|".join(str(choice) for choice in option.type.choices)
    return option.metavar or option.type.name.upper()
