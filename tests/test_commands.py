"""Every command that a document or a hint shows is one that `mesh` takes, arguments included.

A person on call pastes what the runbook says. What is parsed is click's own tree of commands.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import attrs
import click
import pytest

from cli.main import mesh
from tests.test_docs import DOCS, PAGES, ROOT, shown

NO_COMMANDS = ("mesh doctor", "mesh <")
"""Named where the architecture says what is not built yet, and the pattern of all commands."""

PROGRAMS = ("cli", "coordinator", "replicator", "fencing", "meshkit")
SOURCES = sorted(path for name in PROGRAMS for path in (ROOT / name).rglob("*.py"))


@attrs.frozen
class Shown:
    """A command as a document shows it."""

    text: str
    is_mention: bool = False
    """In running text: may name a command without saying to what it is applied."""
    is_choice: bool = False
    """Stands for several commands, each of which takes more than is shown."""


# --- what is shown ------------------------------------------------------------------------------


def of_page(text: str) -> Iterator[Shown]:
    """Return the commands of a page: fenced, indented, and in running text."""
    fenced = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    for block in fenced.findall(text):
        yield from (Shown(line) for line in lines_of(block))
    rest = fenced.sub("", text)
    indented = "\n".join(re.findall(r"^(?:    |\t)(.*(?:\\\n.*)*)$", rest, re.MULTILINE))
    yield from (Shown(line) for line in lines_of(indented))
    for code in re.findall(
        r"`(mesh [^`]+)`", re.sub(r"^(?:    |\t)mesh .*$", "", rest, flags=re.MULTILINE)
    ):
        if "\n\n" not in code:
            yield Shown(" ".join(code.split()), is_mention=True)


def lines_of(block: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", block)
    lines = [line.strip().removeprefix("$ ") for line in joined.splitlines()]
    return [re.sub(r"\s+#\s.*$", "", line) for line in lines if line.startswith("mesh ")]


def variants(shown: Shown) -> list[Shown]:
    """Return what a command stands for: `list|show` is either, `[--to X]` may be there."""
    text = re.sub(r"\[(\[?[^\]]*\]?)\]", r"\1", shown.text)
    choice = re.search(r"(\S+\|\S+)", text)
    if choice is None:
        return [attrs.evolve(shown, text=text)]
    return [
        each
        for word in choice[1].split("|")
        for each in variants(Shown(text.replace(choice[1], word, 1), is_choice=True))
    ]


# --- what is wrong with it ----------------------------------------------------------------------


def fault(shown: Shown) -> str:
    """Return why `mesh` would not take a command, or nothing."""
    if shown.text.startswith(NO_COMMANDS):
        return ""
    words = shlex.split(shown.text)
    is_elided = "..." in words[-1]
    words = [re.sub(r"^(N|S|NUMBER|SEQUENCE)$", "1", word) for word in words if "..." not in word]
    command, path, rest = reached(words)
    if command is None:
        return f"there is no {' '.join(path)}"
    if isinstance(command, click.Group):
        return f"{' '.join(path)} has no {rest[0]}" if rest else ""
    try:
        command.make_context(path[-1], list(rest), resilient_parsing=False)
    except click.exceptions.Exit:
        return ""
    except click.MissingParameter as error:
        is_named_only = not rest or rest[0].startswith("-")
        if is_elided or shown.is_choice or (shown.is_mention and is_named_only):
            return ""
        return error.format_message()
    except click.ClickException as error:
        return error.format_message()
    return ""


def reached(words: list[str]) -> tuple[click.Command | None, list[str], list[str]]:
    command: click.Command | None = mesh
    path, rest = words[:1], words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        path, rest = [*path, rest[0]], rest[1:]
        command = command.get_command(click.Context(command), path[-1])
    return command, path, rest


# --- claims -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [p for p in PAGES if p != DOCS / "cli.md"], ids=shown)
def test_every_command_that_a_document_shows_is_one_that_mesh_takes(page: Path) -> None:
    problems = [
        f"{each.text}: {why}"
        for each in of_page(page.read_text())
        for variant in variants(each)
        if (why := fault(variant))
    ]

    assert problems == []


def test_every_command_that_a_hint_gives_is_one_that_mesh_takes() -> None:
    """What to do next is pasted by somebody who has just been refused."""
    problems = [
        f"{shown(path)}:{line}: {command}: {why}"
        for path in SOURCES
        for line, text in hints(ast.parse(path.read_text()))
        for command in re.findall(r"\bmesh (?=[a-z])[^;,()\n]*", text)
        if (why := hinted_fault(command))
    ]

    assert problems == []


def hints(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Return every text that is given as a hint, or as what to do next, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in {"hint", "next"}:
            for part in ast.walk(node.value):
                if isinstance(part, ast.JoinedStr):
                    yield node.value.lineno, "".join(map(literal, part.values))
                elif isinstance(part, ast.Constant) and part not in pieces(node.value):
                    yield node.value.lineno, str(part.value)


def pieces(text: ast.expr) -> set[ast.AST]:
    """Return the parts of f-strings, which are no text for themselves."""
    joined = [part for part in ast.walk(text) if isinstance(part, ast.JoinedStr)]
    return {piece for each in joined for piece in ast.walk(each) if piece is not each}


def literal(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "NAME"


def hinted_fault(command: str) -> str:
    """Return why no beginning of what follows `mesh` is taken: prose may go on after a command."""
    words = command.replace(": ", " : ").rstrip(" .:").split()
    tries = [" ".join(words[:count]) for count in range(len(words), 1, -1)]
    faults = [
        fault(Shown(text))
        for text in tries
        if balanced(text) and not isinstance(reached(shlex.split(text))[0], click.Group)
    ]
    return "names no command" if not faults else "" if "" in faults else faults[0]


def balanced(text: str) -> bool:
    return text.count('"') % 2 == 0 and text.count("'") % 2 == 0


@pytest.mark.parametrize(
    "text",
    [
        "    mesh audit list mesh\n",
        "say `mesh audit list GROUP` then",
        "```console\n$ mesh clusters promote eu-west --grop orders\n```\n",
        "```\nmesh failovers approve f-1 \\\n    --accept-los unknown\n```\n",
        "- first\n\n  ```sh\n  mesh quarantine list\n  ```\n",
        "`mesh groups frob orders`",
    ],
)
def test_what_mesh_would_refuse_is_found(text: str) -> None:
    assert [why for each in of_page(text) if (why := fault(each))] != []


@pytest.mark.parametrize(
    "text",
    [
        "    mesh audit list -g orders   # who did what\n",
        "as `mesh failovers show` says, or `mesh pause`",
        "`mesh quarantine replay GROUP ID... --reason TEXT`, `mesh clusters evacuate CLUSTER [--to X]`",
        "`mesh quarantine list|export GROUP`",
    ],
)
def test_what_mesh_takes_is_let_pass(text: str) -> None:
    found = list(of_page(text))

    assert found
    assert [why for each in found for one in variants(each) if (why := fault(one))] == []
