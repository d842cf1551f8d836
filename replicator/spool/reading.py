"""Reads a spool from a position on, block by block, beside whoever appends to it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Protocol, TypeVar

import structlog

from meshkit.errors import Compacted
from meshkit.ordinals import Sequence
from meshkit.store.port import RevisionChanges
from replicator.segments import SegmentMap
from replicator.spool.blocks import Block, BlockDamaged
from replicator.spool.files import SpoolFiles

_log = structlog.get_logger()

T = TypeVar("T")


class Blocking(Protocol):
    """Runs what waits for the disk where it holds up nobody."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]:
        """Return what the call returned."""


async def on_a_thread(call: Callable[[], T]) -> T:
    """Run `call` on a thread. Also when cancelled it has ended when this returns."""
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


class SpoolReading:
    """A place in the spool to go on from: the fold at `position`, and what follows.

    Invariant: `segments` is the fold up to `position`, whatever etcd still has.
    """

    def __init__(
        self,
        files: SpoolFiles,
        position: Sequence,
        segments: SegmentMap,
        rest: Iterator[Block],
        *,
        blocking: Blocking,
    ) -> None:
        self.position = position
        self.segments = segments
        self._files = files
        self._rest = rest
        self._blocking = blocking

    async def blocks(self) -> AsyncIterator[Block]:
        """Yield what follows `position`, block by block without a gap, to the spool's end.

        Raises:
            Compacted: part of it was dropped or damaged in between.
        """
        at = self.position
        while True:
            try:
                block = await self._blocking(lambda: next(self._rest, None))
            except BlockDamaged as error:
                raise _gone(at) from error
            if block is None:
                if self._files.through is None or self._files.through <= at:
                    return
                # It has grown while it was read.
                found = self._files.blocks(at)
                if found is None:
                    raise _gone(at)
                self._rest = found[1]
            elif block.through > at:
                if block.after > at:
                    raise _gone(at)
                yield block.past(at)
                at = block.through


async def begin_reading(
    files: SpoolFiles, position: Sequence, *, blocking: Blocking
) -> SpoolReading | None:
    """Return a reading that goes on after `position`; None: it is not there."""
    found = files.blocks(position)
    if found is None:
        return None
    header, blocks = found
    segments = SegmentMap.from_segments(header.segments)

    def fold() -> Iterator[Block]:
        for block in blocks:
            for changes in block.revisions:
                if changes.revision <= position:
                    segments.advance(changes)
            if block.through > position:
                return itertools.chain((block,), blocks)
        return iter(())

    try:
        rest = await blocking(fold)
    except BlockDamaged as error:
        _log.warning("spool.damaged", position=position, why=str(error))
        return None
    return SpoolReading(files, position, segments, rest, blocking=blocking)


async def log_between(
    files: SpoolFiles, after: Sequence, through: Sequence, *, blocking: Blocking = on_a_thread
) -> AsyncIterator[RevisionChanges]:
    """Yield a cluster's own log in `(after, through]`: every change under a scope of its segments.

    Also changes that came after a cut, which belong to no epoch; applies are left out, and so is
    what lies outside every scope. Values and names are as they were written.

    Raises:
        Compacted: the spool has not all of it; what was yielded is whole up to there.
    """
    reading = await begin_reading(files, after, blocking=blocking)
    if reading is None:
        raise _gone(after)
    reached = after
    async for block in reading.blocks():
        for changes in block.revisions:
            if changes.revision <= through:
                yield changes
        reached = block.through
        if reached >= through:
            return
    if reached < through:
        raise _gone(reached)


def _gone(position: Sequence) -> Compacted:
    return Compacted(revision=position, compact_revision=position + 1)
