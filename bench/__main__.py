"""`python -m bench [P1 P3 ...] [--smoke]`: run benchmarks, print a table, write bench/out/."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable

import structlog

from bench import backlog, commands, copying, delay, evacuation, lagging, pause, rescue, stalled
from bench.report import Line, machine, print_table, write_report

Benchmark = Callable[[bool], Awaitable[list[Line]]]

BENCHMARKS: dict[str, Benchmark] = {
    "P1": backlog.run,
    "P2": delay.run,
    "P3": pause.run,
    "P4": rescue.run,
    "P5": evacuation.run,
    "P6": lagging.run,
    "P7": copying.run,
    "P8": stalled.run,
    "P10": commands.run,
}


def main() -> int:
    """Run what was asked for; everything if nothing was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help=", ".join(BENCHMARKS))
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run at all?")
    arguments = parser.parse_args()
    unknown = set(arguments.ids) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}: {', '.join(BENCHMARKS)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    facts = machine()
    lines: list[Line] = []
    for name in arguments.ids or BENCHMARKS:
        sys.stderr.write(f"{name} ...\n")
        lines += asyncio.run(_run(BENCHMARKS[name], smoke=arguments.smoke))
    print_table(lines, facts)
    path = write_report(lines, facts)
    sys.stderr.write(f"written to {path}\n")
    return 0


async def _run(benchmark: Benchmark, *, smoke: bool) -> list[Line]:
    return await benchmark(smoke)


if __name__ == "__main__":
    sys.exit(main())
