"""The real command line, as an operator runs it: a process of its own, against the real API."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import attrs

from cli.sandbox.sandbox import Sandbox

Json = dict[str, Any]

PATIENCE_S = 120.0


@attrs.frozen(kw_only=True)
class Said:
    """What a command said, and the code it ended with."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def body(self) -> Json:
        """What it printed as JSON."""
        found: Json = json.loads(self.out)
        return found

    @property
    def problem(self) -> str:
        """What it complained of, in one line."""
        return " ".join(self.err.split())[-500:]

    def __str__(self) -> str:
        words = " ".join(self.arguments)
        return f"mesh {words}\nexit code {self.code}\n{self.out[-2000:]}\n{self.err[-2000:]}"


async def mesh(sandbox: Sandbox, *arguments: str) -> Said:
    """Run a command against a sandbox and return what it said."""
    context = sandbox.context()
    files = ("--ca", str(context.ca), "--cert", str(context.cert), "--key", str(context.key))
    apis = [part for url in context.api for part in ("--api", url)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", *arguments, "-o", "json", *files, *apis),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    code = process.returncode
    assert code is not None, "it has ended"
    return Said(arguments=arguments, code=code, out=out.decode(), err=err.decode())


async def done(sandbox: Sandbox, *arguments: str) -> Said:
    """Run a command that has to succeed.

    Raises:
        AssertionError: it did not; says all that it said.
    """
    said = await mesh(sandbox, *arguments)
    assert said.code == 0, str(said)
    return said


async def insist(
    sandbox: Sandbox,
    *arguments: str,
    say: Callable[[str], None],
    codes: tuple[int, ...] = (0,),
) -> Said:
    """Run a command again and again, as a person would, until it ends with one of the codes.

    What it says otherwise is told once.

    Raises:
        AssertionError: it never did; says what it said last.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    told: set[str] = set()
    while True:
        said = await mesh(sandbox, *arguments)
        if said.code in codes:
            return said
        if said.err not in told:
            told.add(said.err)
            say(f"          {' '.join(arguments[:2])}: exit code {said.code}: {said.problem}")
        assert loop.time() < deadline, str(said)
        await asyncio.sleep(0.2)
