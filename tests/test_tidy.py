"""Keeps the code as docs/STYLE.md says it is. A rule that no test keeps is a wish.

When a rule is wrong, change the rule (and STYLE.md), not the exception.
"""

from __future__ import annotations

import ast
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("meshkit", "fencing", "replicator", "coordinator", "cli")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 400
TEST_MODULE_LINES_MAX = 600
"""Many small claims about one thing belong together; a screen is no measure for them."""

IMPURE = {"asyncio", "time", "datetime", "random", "secrets", "uuid", "os", "grpc", "socket"}
HOMELESS_NAMES = {"util", "utils", "helper", "helpers", "common", "base", "manager", "misc"}
BANNED_WORDS = {
    "master",
    "slave",
    "manager",
    "util",
    "utils",
    "helper",
    "helpers",
    "info",
    "misc",
    "stuff",
}
SLEEPS_LITERAL_MAX_S = 0.2


# --- what there is ------------------------------------------------------------------------------


@cache
def files() -> tuple[Path, ...]:
    """Every file that is, or could be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


def is_generated(path: Path) -> bool:
    return re.search(r"_pb2(_grpc)?\.pyi?$", path.name) is not None


def modules(*packages: str) -> list[Path]:
    """Python files written by hand; of these top-level folders, or of all."""
    found = [p for p in files() if p.suffix == ".py" and not is_generated(p)]
    return [p for p in found if not packages or shown(p).split("/")[0] in packages]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module imported anywhere in a file, with the line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@cache
def by_module_name() -> dict[str, Path]:
    names = {}
    for path in modules(*PRODUCT):
        dotted = shown(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        names[dotted] = path
    return names


def is_pure(path: Path) -> bool:
    return re.search(r"\bPure\.", ast.get_docstring(tree(path)) or "") is not None


def must_be_none(problems: list[str], rule: str) -> None:
    assert not problems, f"{rule}\n  " + "\n  ".join(problems)


# --- shape --------------------------------------------------------------------------------------


def test_a_function_fits_on_a_screen() -> None:
    problems = [
        f"{shown(path)}:{node.lineno} {node.name}: {lines} lines"
        for path in modules()
        for node in functions(path)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]

    must_be_none(problems, f"STYLE 18: at most {FUNCTION_LINES_MAX} lines")


def test_a_module_has_one_idea() -> None:
    problems = []
    for path in modules():
        lines = len(path.read_text().splitlines())
        is_test = shown(path).startswith("tests/")
        if lines > (TEST_MODULE_LINES_MAX if is_test else MODULE_LINES_MAX):
            problems.append(f"{shown(path)}: {lines} lines")

    must_be_none(problems, f"STYLE 19: at most {MODULE_LINES_MAX} lines")


def test_a_module_says_what_it_is_for() -> None:
    problems = [shown(p) for p in modules(*PRODUCT) if not ast.get_docstring(tree(p))]

    must_be_none(problems, "STYLE 34: a module docstring")


def test_no_module_is_named_for_having_no_home() -> None:
    problems = [
        shown(path) for path in modules() if HOMELESS_NAMES & {path.stem, *path.parent.parts[-1:]}
    ]

    must_be_none(problems, "STYLE 17: if it has no better name it has no home yet")


def test_no_name_uses_a_banned_word() -> None:
    """docs/glossary.md: one word, one meaning."""
    problems = []
    for path in modules():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                words = {w.lower() for w in re.findall(r"[A-Z]?[a-z]+", node.name)}
                if words & BANNED_WORDS and not node.name.startswith("test_"):
                    problems.append(f"{shown(path)}:{node.lineno} {node.name}")

    must_be_none(problems, "glossary: banned words")


# --- purity -------------------------------------------------------------------------------------


def test_there_are_pure_modules() -> None:
    assert len([path for path in modules(*PRODUCT) if is_pure(path)]) > 8


def test_pure_modules_neither_wait_nor_ask_the_time_nor_roll_dice() -> None:
    problems = []
    for path in filter(is_pure, modules(*PRODUCT)):
        problems += [
            f"{shown(path)}:{line} imports {name}"
            for line, name in imports(path)
            if name.split(".")[0] in IMPURE
        ]
        problems += [
            f"{shown(path)}:{node.lineno} is asynchronous: {node.name}"
            for node in functions(path)
            if isinstance(node, ast.AsyncFunctionDef)
        ]

    must_be_none(sorted(set(problems)), "STYLE 3: pure modules import no such thing")


def test_pure_modules_stand_on_modules_that_do_not_wait_either() -> None:
    """Purity that ends at the first import of ours is none."""
    problems = []
    for start in filter(is_pure, modules(*PRODUCT)):
        seen, todo = {start}, [start]
        while todo:
            path = todo.pop()
            for _, name in imports(path):
                below = by_module_name().get(name)
                if below is not None and below not in seen:
                    seen.add(below)
                    todo.append(below)
                if path is not start and name.split(".")[0] in IMPURE:
                    problems.append(f"{shown(start)} stands on {shown(path)}, which uses {name}")

    must_be_none(sorted(set(problems)), "STYLE 3: pure modules import pure modules")


def test_time_is_read_in_one_place() -> None:
    """Elsewhere it comes as `now_ms` or from a Clock, so that tests and simulation can set it."""
    problems = [
        f"{shown(path)}:{line} imports {name}"
        for path in modules("meshkit", "fencing", "replicator", "coordinator")
        for line, name in imports(path)
        if name == "time" and shown(path) != "meshkit/clock.py"
    ]

    must_be_none(problems, "STYLE 4: time comes in from meshkit/clock.py")


def test_waiting_goes_through_the_clock() -> None:
    problems = [
        f"{shown(path)}:{node.lineno} asyncio.sleep"
        for path in modules("meshkit", "fencing", "replicator", "coordinator")
        if shown(path) != "meshkit/clock.py"
        for node in sleeps(tree(path))
        if not (isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]

    must_be_none(problems, "STYLE 4: wait with Clock.sleep_ms")


def test_no_test_waits_for_a_fixed_time() -> None:
    """Waiting for a condition, asking again after a little while, is fine."""
    problems = [
        f"{shown(path)}:{node.lineno} sleeps {node.args[0].value} s"
        for path in modules("tests")
        for test in functions(path)
        if test.name.startswith("test_")
        for node in sleeps(test)
        if isinstance(node.args[0], ast.Constant) and node.args[0].value > SLEEPS_LITERAL_MAX_S
    ]

    must_be_none(problems, "STYLE 41: no sleeps")


def sleeps(within: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(within):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="asyncio" | "time"), attr="sleep"), args=[_]
            ):
                yield node


# --- words --------------------------------------------------------------------------------------


def test_no_file_names_the_machine_it_was_written_on() -> None:
    places = r"(?<![\w}])/(work|root|home)/|bash" + "_jobs"
    host = socket.gethostname()
    if len(host) > 5 and re.search(r"\d", host):
        places += "|" + re.escape(host)
    problems = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        problems += [f"{shown(path)}: {found[0]}" for found in re.finditer(places, text)]

    must_be_none(problems, "no path or name of this machine in a file")


def test_what_is_left_to_do_names_an_issue() -> None:
    left = re.compile(r"#.*\b(TODO(?!\(#\d+\):)|FIXME|XXX|HACK)\b")
    problems = [
        f"{shown(path)}:{number}"
        for path in modules()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if left.search(line)
    ]

    must_be_none(problems, "STYLE 37: TODO(#123): or nothing")


def test_keys_are_built_in_one_place() -> None:
    """meshkit/keys.py; docs and messages may of course name a key."""
    problems = []
    for path in modules(*PRODUCT):
        if shown(path) == "meshkit/keys.py":
            continue
        for node in ast.walk(tree(path)):
            match node:
                case ast.Constant(value=bytes(key)) if key.startswith(b"/mesh/v"):
                    problems.append(f"{shown(path)}:{node.lineno} {key!r}")

    must_be_none(problems, "STYLE 23: only meshkit/keys.py builds a key")


# --- layers, tests, generated code --------------------------------------------------------------


def test_every_package_imports_only_what_lies_below_it() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run(
        [program, "--no-cache"], check=False, cwd=ROOT, capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_nothing_imports_the_tests() -> None:
    problems = [
        f"{shown(path)}:{line}"
        for path in modules(*PRODUCT, "chaos", "bench", "scripts")
        for line, name in imports(path)
        if name.split(".")[0] == "tests"
    ]

    must_be_none(problems, "nothing imports tests")


def test_test_modules_of_one_name_lie_in_packages() -> None:
    """Without, pytest takes the second for the first."""
    seen: dict[str, Path] = {}
    problems = []
    for path in modules("tests"):
        if path.name.startswith("test_") and not path.with_name("__init__.py").exists():
            if path.name in seen:
                problems.append(f"{shown(path)} and {shown(seen[path.name])}")
            seen[path.name] = path

    must_be_none(problems, "add __init__.py to both folders")


def test_generated_code_is_what_its_source_generates(tmp_path: Path) -> None:
    """`make proto` makes it so. Only where the generator is the one that made the checked-in code."""
    pytest.importorskip("grpc_tools")
    sources = [path for path in files() if path.suffix == ".proto"]
    assert sources
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, *map(shown, sources)]
    subprocess.run(command, cwd=ROOT, check=True)

    problems = []
    for made in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        checked_in = ROOT / made.relative_to(tmp_path)
        if not checked_in.exists() or stamped_out(checked_in) != stamped_out(made):
            problems.append(shown(checked_in))
    must_be_none(problems, "make proto")


def stamped_out(path: Path) -> str:
    """Generated code without the generator's version."""
    text = re.sub(r"# Protobuf Python Version: .*", "", path.read_text())
    return re.sub(r"ValidateProtobufRuntimeVersion\([^)]*\)", "", text)


def test_git_is_here_to_ask() -> None:
    """Everything above looks only at files git knows; without git it would look at nothing."""
    assert shutil.which("git")
    assert len(modules(*PRODUCT)) > 20
