"""Runs a long-running process of the mesh until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger(__name__)


YOUNG_OBJECTS_MAX = 20_000
"""So many new objects before Python looks for cycles among them; its own 700 are reached by every
frame, and looking costs a replicator about a sixth of what it does for a record."""


def run_until_stopped(serve: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `serve` until it ends or SIGTERM or SIGINT cancels it; return the exit code.

    Raises:
        MeshError: it ended by itself with one.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, *before[1:])
    try:
        return run_on_fast_loop(_serve(serve))
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; SIGINT and SIGTERM cancel it and end in `KeyboardInterrupt`.

    Both are heard even where they were ignored when this process began (a shell's background job).
    """
    return run_on_fast_loop(_interruptible(work))


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, working.cancel)
    try:
        return await working
    except asyncio.CancelledError:
        if working.cancelled():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def run_on_fast_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end on uvloop where there is one, else on asyncio's own loop."""
    try:
        import uvloop

        new_loop: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        new_loop = None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)


async def _serve(serve: Callable[[], Coroutine[Any, Any, None]]) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    serving = asyncio.ensure_future(serve())
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            return 0
        _log.info("process.stopping")
        serving.cancel()
        try:
            await serving
        except asyncio.CancelledError:
            _log.info("process.stopped")
        return 0
    finally:
        stopped.cancel()
        serving.cancel()
