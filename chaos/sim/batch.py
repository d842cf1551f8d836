"""Runs many seeds in several processes; results come in the order of the seeds."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from chaos.sim.run import Result, run_seed

SEEDS_AT_ONCE = 10


def results_of(seeds: range, *, workers: int) -> Iterator[Result]:
    """Yield the result of each seed."""
    chunks = [seeds[at : at + SEEDS_AT_ONCE] for at in range(0, len(seeds), SEEDS_AT_ONCE)]
    if workers <= 1:
        for chunk in chunks:
            yield from _run_chunk(chunk)
        return
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawning, initializer=_begin) as pool:
        for results in pool.map(_run_chunk, chunks):
            yield from results


def _begin() -> None:
    """Spare the collector what is there already: it is never garbage."""
    gc.freeze()


def _run_chunk(seeds: range) -> list[Result]:
    return [run_seed(seed) for seed in seeds]
