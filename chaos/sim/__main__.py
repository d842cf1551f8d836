"""`python -m chaos.sim --seeds N --first-seed M` runs seeds; `--seed N --trace` replays one."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

from chaos.sim.batch import results_of
from chaos.sim.plan import Act, Fault
from chaos.sim.run import Result, run_seed

EXIT_FAILED = 10
"""A promise was broken."""
EXIT_NO_EVIDENCE = 12
"""So many seeds, and yet some kind of event never came up: nothing is proven about it."""

KINDS: tuple[Fault | Act, ...] = (*Fault, *Act)

SEEDS_THAT_SHOW_ALL = 200
"""In so many seeds every kind of fault and some failovers must have taken place."""


def main() -> int:
    """Run what the command line asks for, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="print every event (with --seed)")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _replay(arguments.seed, is_live=arguments.trace)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    return _report(seeds, results_of(seeds, workers=arguments.workers))


def _replay(seed: int, *, is_live: bool) -> int:
    result = run_seed(seed, is_live=is_live)
    _print_result(result)
    return EXIT_FAILED if result.problems else 0


def _report(seeds: range, results: Iterable[Result]) -> int:
    began = time.monotonic()
    failed: list[int] = []
    total: Counter[str] = Counter()
    kinds: Counter[Fault | Act] = Counter()
    for result in results:
        if result.problems:
            failed.append(result.seed)
            _print_result(result)
        kinds.update(result.faults)
        kinds.update(result.acts)
        total["acknowledged writes"] += result.acknowledged
        total["moves of authority"] += result.moves
        total["rejoins"] += result.rejoins
        total["promises"] += result.promises
        total["writes in quarantine"] += result.set_aside
        total["seconds of virtual time"] += result.virtual_ms // 1000
    _say(f"{len(seeds)} seeds from {seeds[0]} in {time.monotonic() - began:.0f} s:")
    for what, count in (*total.items(), *((kind.value, kinds[kind]) for kind in KINDS)):
        _say(f"  {count:8}  {what}")
    if failed:
        _say(f"FAILED: {len(failed)} seeds: {' '.join(map(str, failed))}")
        return EXIT_FAILED
    missing = [kind.value for kind in KINDS if not kinds[kind]]
    missing += [what for what, count in total.items() if not count]
    if len(seeds) >= SEEDS_THAT_SHOW_ALL and missing:
        _say(f"NO EVIDENCE: never came up: {', '.join(missing)}")
        return EXIT_NO_EVIDENCE
    return 0


def _print_result(result: Result) -> None:
    _say(
        f"seed {result.seed}: {'FAILED' if result.problems else 'ok'}, digest {result.digest},"
        f" {result.acknowledged} writes, {result.moves} moves,"
        f" {sum(result.faults.values())} faults, well after {result.settled_ms} ms"
    )
    if not result.problems:
        return
    for problem in result.problems[:5]:
        _say(f"  {problem}")
    _say(f"  replay: python -m chaos.sim --seed {result.seed} --trace")
    _say("  last events:")
    for line in result.last_lines:
        _say(f"    {line}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
