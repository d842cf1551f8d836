"""Runs things side by side until the first one fails, and raises just that failure.

A task group of the standard library would do, but that one (Python 3.11) forgets its own
cancellation when a task fails at the same moment, and a stream that redials after failures would
then live on after its term.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from collections.abc import Sequence as Ordered
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Scope:
    """Tasks that end together: with the first failure, or when the one who waits is cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None

    def start(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run one more part; cancelling it is no failure."""
        task = asyncio.get_running_loop().create_task(part)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def wait(self) -> None:
        """Return when every part has ended; raise the first failure.

        Either way, and when cancelled, no part is left running.
        """
        try:
            if self._tasks:
                await self._ended.wait()
        finally:
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None and self._failure is None:
            self._failure = failure
        if failure is not None or not self._tasks:
            self._ended.set()


async def together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all parts until they have ended, or until the first one fails, and raise that failure."""
    scope = Scope()
    for part in parts:
        scope.start(part)
    await scope.wait()


async def in_parallel(
    call: Callable[[T], Coroutine[Any, Any, R]], items: Ordered[T], *, at_most: int
) -> list[R]:
    """Return what `call` gives for each item, in their order, with so many calls under way.

    The first failure is raised; no call is left running.
    """
    results: list[R] = []
    for start in range(0, len(items), at_most):
        tasks = [asyncio.ensure_future(call(item)) for item in items[start : start + at_most]]
        try:
            results += await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return results
