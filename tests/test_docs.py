"""The documents are true where a program can tell: generated parts, links, names, commands."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from chaos.sim.planted import PLANTED
from scripts import cli_reference, keyspace

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "changes").glob("*.md")])

SCHEDULES = 28


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def commands() -> dict[str, str]:
    return {path: command.__class__.__name__ for path, command in cli_reference.commands()}


# --- generated ----------------------------------------------------------------------------------


def test_generated_documents_are_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "scripts.generate_docs", "--check"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_keyspace_says_what_lies_at_every_key() -> None:
    """Else: RECORD_AT in scripts/keyspace.py."""
    assert keyspace.forgotten() == []


def test_every_command_is_in_the_reference() -> None:
    text = (DOCS / "cli.md").read_text()

    assert [path for path in commands() if f"# {path}\n" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_row_of_a_table_belongs_to_one_that_has_a_head(page: Path) -> None:
    """A blank line ends a table: the rows after it are shown as text with bars."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)

    headless = [table for table in tables if not re.match(r"\|.*\n\|[\s:|-]+\|\s*\n", table)]
    assert headless == []


# --- links and names ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page: Path) -> None:
    problems = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.exists():
            problems.append(f"{target}: there is no {name}")
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked):
            problems.append(f"{target}: no such heading")

    assert problems == []


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", [DOCS / "invariants.md", DOCS / "schedules.md"], ids=shown)
def test_every_test_that_a_promise_names_exists(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())

    assert named
    assert [f"{path}::{test}" for path, test in named if test not in functions(ROOT / path)] == []


@pytest.mark.parametrize("plan", ["planned", "emergency", "rejoin"])
def test_every_planted_bug_is_listed(plan: str) -> None:
    """And every one that is listed is planted."""
    source = (ROOT / f"tests/model/test_{plan}_model.py").read_text()
    planted = re.findall(r"^def (\w+)\(_?patch: Patch, rules: Rules\)", source, re.MULTILINE)

    assert sorted(bugs_listed(f"`{plan}/1`")) == sorted(planted)


def test_every_bug_planted_in_the_simulation_is_listed() -> None:
    assert sorted(bugs_listed("the simulation")) == sorted(PLANTED)


def bugs_listed(where: str) -> list[str]:
    text = (DOCS / "invariants.md").read_text()
    row = re.search(rf"^\| {re.escape(where)}, `[\w/.]+` \| (.*) \|$", text, re.MULTILINE)
    assert row is not None, f"no row lists the planted bugs of {where}"
    return re.findall(r"`([\w-]+)`", row[1])


@cache
def functions(path: Path) -> set[str]:
    if not path.exists():
        return set()
    nodes = ast.walk(ast.parse(path.read_text()))
    return {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_schedule_whose_parts_are_built_has_a_test() -> None:
    rows = dict(
        re.findall(r"^\| (S\d+) \|.*\| (.*) \|$", (DOCS / "schedules.md").read_text(), re.MULTILINE)
    )

    assert list(rows) == [f"S{number}" for number in range(1, SCHEDULES + 1)]
    assert [name for name, tests in rows.items() if "test_" not in tests] == []


@pytest.mark.parametrize("page", [DOCS / "architecture.md", DOCS / "glossary.md"], ids=shown)
def test_every_file_that_a_document_names_exists(page: Path) -> None:
    """STYLE 59: a moved file moves there in the same change."""
    text = page.read_text()
    named = re.findall(
        r"`((?:meshkit|fencing|replicator|coordinator|cli|docs|tests)/[\w/.-]+)`", text
    )

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("package", ["meshkit", "fencing", "replicator", "coordinator", "cli"])
def test_the_architecture_names_every_package(package: str) -> None:
    assert f"| `{package}/` |" in (DOCS / "architecture.md").read_text()


# --- dependencies, make -------------------------------------------------------------------------


def test_every_dependency_has_a_reason_and_every_reason_a_dependency() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "adr/0003-libraries.md").read_text(), re.MULTILINE)
    reasoned = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}

    assert reasoned == dependencies()


def test_every_dependency_is_pinned() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }

    assert {name.lower() for name in dependencies()} - pinned == set()


def dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = itertools.chain(project["dependencies"], *extras)
    return {re.split(r"[<>=;~! \[]", requirement)[0] for requirement in wanted}


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    problems = []
    for page in PAGES:
        text = page.read_text()
        named = re.findall(r"`make ([a-z]+)", text) + re.findall(
            r"^(?:\$ )?make ([a-z]+)", text, re.MULTILINE
        )
        problems += [f"{shown(page)}: make {name}" for name in named if name not in targets]

    assert problems == []


def test_ci_runs_what_the_readme_says() -> None:
    """A newcomer's first command must be one that CI has just run."""
    ci = (ROOT / ".ci/run").read_text()
    readme = (ROOT / "README.md").read_text()

    for command in ("make check", "make test", "make demo"):
        assert command in ci
        assert command in readme


def test_every_page_of_the_documentation_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", without_code(page.read_text())):
            linked.add((page.parent / target).resolve())

    problems = [
        shown(page)
        for page in DOCS.rglob("*.md")
        if page not in linked and page.parent not in linked
    ]
    assert problems == []
