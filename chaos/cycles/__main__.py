"""`python -m chaos.cycles --cycles 30 --seed 7` loses regions and wins them back, and judges."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import sys
import tempfile
import time
from pathlib import Path

import structlog

from chaos.cycles.draw import variations
from chaos.cycles.run import live, started


async def run(*, cycles: int, seed: int, first: int, directory: Path) -> int:
    """Run cycles and return how many of them were wrong; stops at the first."""
    began = time.monotonic()
    print(f"seed {seed}, {cycles} cycles, in {directory}")
    async with started(directory) as sandbox:
        drawn = itertools.islice(variations(seed), first - 1, first - 1 + cycles)
        async for lived in live(sandbox, drawn, say=say):
            for verdict in lived.offences:
                say(f"WRONG: {verdict.check}: {verdict.detail}")
            if lived.offences:
                return 1
            say(
                f"cycle {lived.variation.number} of seed {seed} is right: {lived.acknowledged}"
                f" acknowledged, {lived.lost} lost, {lived.excess} ahead"
            )
    say(f"{cycles} cycles in {time.monotonic() - began:.0f} s")
    return 0


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--first", type=int, default=1, help="Begin with this cycle of the seed.")
    parser.add_argument("--dir", type=Path, help="Keep the sandbox there.")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="cycles-") as made:
        directory = (arguments.dir or Path(made)) / "sandbox"
        wrong = run(
            cycles=arguments.cycles,
            seed=arguments.seed,
            first=arguments.first,
            directory=directory,
        )
        sys.exit(asyncio.run(wrong))


if __name__ == "__main__":
    main()
