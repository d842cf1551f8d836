"""The spool's files on a disk: appended to, cut at a torn end, read, dropped from the oldest on.

`<directory>/<cluster>/<incarnation>/<after>.spool`. Everything here blocks; the caller decides on
which thread. Written is what `append` returned for, durable what `sync` returned for: a machine
that loses its power loses what came after the last sync, and reads it from etcd again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import attrs
import structlog

from meshkit.errors import CorruptRecord, InvalidConfig
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Sequence
from replicator.segments import Segment, SegmentMap
from replicator.spool.blocks import (
    FRAME,
    MAGIC,
    Block,
    BlockDamaged,
    SpoolHeader,
    block_bytes,
    block_of,
    header_bytes,
    header_of,
    range_of,
)

_log = structlog.get_logger()

_SUFFIX = ".spool"


@attrs.define(kw_only=True)
class SpoolFile:
    """One file: what it covers, and how much of it is whole."""

    path: Path
    header: SpoolHeader
    through: Sequence
    size_bytes: int

    @property
    def after(self) -> Sequence:
        """Where it begins."""
        return self.header.after


class SpoolFiles:
    """The files of one incarnation's log.

    Invariant: `files` cover `(after, through]` without a gap; whatever is not contiguous with the
    newest was deleted when it was found.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cluster: ClusterName,
        incarnation: Incarnation,
        file_bytes_max: int,
    ) -> None:
        self.files: list[SpoolFile] = []
        self._cluster = cluster
        self._incarnation = incarnation
        self._file_bytes_max = file_bytes_max
        self._folder = directory / cluster / incarnation
        self._out: FileIO | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._find()

    # --- what is there -------------------------------------------------------------------------

    @property
    def after(self) -> Sequence | None:
        """The position from which on everything is here; None if nothing is."""
        return self.files[0].after if self.files else None

    @property
    def through(self) -> Sequence | None:
        """Up to where everything is here."""
        return self.files[-1].through if self.files else None

    @property
    def size_bytes(self) -> int:
        """How much disk the files take."""
        return sum(file.size_bytes for file in self.files)

    def holds(self, position: Sequence) -> bool:
        """Whether whoever has applied `position` can go on from here."""
        return any(file.after <= position <= file.through for file in self.files)

    def _find(self) -> None:
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            file = _scan(path)
            if file is None or file.header.incarnation != self._incarnation:
                _log.warning("spool.file_dropped", file=path.name, why="its header is damaged")
                path.unlink()
                continue
            if self.files and file.after != self.files[-1].through:
                _log.warning("spool.gap", before=file.after, after=self.files[-1].through)
                self.clear()
            self.files.append(file)

    # --- writing -------------------------------------------------------------------------------

    def append(self, block: Block, *, before: tuple[Segment, ...]) -> None:
        """Add a block; `before` are the segments at its beginning, in case a file begins with it.

        Raises:
            OSError: nothing was added.
        """
        assert self.through in (None, block.after), "blocks follow each other"
        file = self.files[-1] if self.files else None
        if file is None or self._out is None or file.size_bytes >= self._file_bytes_max:
            file = self._begin(block.after, before)
        assert self._out is not None
        raw = block_bytes(block)
        try:
            _write(self._out, raw)
        except OSError:
            self._take_back(file)
            raise
        file.size_bytes += len(raw)
        file.through = block.through

    def _begin(self, after: Sequence, segments: tuple[Segment, ...]) -> SpoolFile:
        self.sync()
        self.close()
        header = SpoolHeader(
            cluster=self._cluster, incarnation=self._incarnation, after=after, segments=segments
        )
        path = self._folder / f"{after:020d}{_SUFFIX}"
        raw = header_bytes(header)
        # Unbuffered: what a failed write left in a buffer would come out later.
        out = path.open("wb", buffering=0)
        try:
            _write(out, raw)
            os.fsync(out.fileno())
            _sync_folder(self._folder)
        except OSError:
            out.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        # A file of the same name was empty: it began here too.
        self.files = [file for file in self.files if file.path != path]
        self._out = out
        self.files.append(SpoolFile(path=path, header=header, through=after, size_bytes=len(raw)))
        return self.files[-1]

    def _take_back(self, file: SpoolFile) -> None:
        """Cut off what of a block was written; where that fails too, a new file will begin."""
        try:
            os.truncate(file.path, file.size_bytes)
            if self._out is not None:
                self._out.seek(file.size_bytes)
        except OSError as error:
            _log.warning("spool.not_cut", file=file.path.name, why=str(error))
            self._out = None

    def sync(self) -> None:
        """Make what was appended durable."""
        if self._out is not None:
            os.fsync(self._out.fileno())

    def close(self) -> None:
        """Close the file that is appended to; the next block begins another."""
        if self._out is not None:
            self._out.close()
            self._out = None

    # --- dropping ------------------------------------------------------------------------------

    def drop_through(self, position: Sequence) -> None:
        """Delete files that nobody needs who has applied `position`; the newest stays."""
        while len(self.files) > 1 and self.files[0].through <= position:
            self.drop_oldest()

    def drop_oldest(self) -> None:
        """Delete the oldest file."""
        oldest = self.files.pop(0)
        if not self.files:
            self.close()
        oldest.path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete every file."""
        while self.files:
            self.drop_oldest()

    def others(self) -> list[Path]:
        """Return the folders of other incarnations of this cluster, the oldest first."""
        folders = [path for path in self._folder.parent.iterdir() if path.is_dir()]
        others = [path for path in folders if path != self._folder]
        return sorted(others, key=lambda path: path.stat().st_mtime)

    # --- reading -------------------------------------------------------------------------------

    def blocks(self, position: Sequence) -> tuple[SpoolHeader, Iterator[Block]] | None:
        """Return the header of the file that holds `position`, and its blocks and what follows.

        The blocks begin at the beginning of that file and end where it was written up to when they
        were asked for; None: the position is not here.
        """
        first = next((f for f in self.files if f.after <= position <= f.through), None)
        if first is None:
            return None
        known = [attrs.evolve(f) for f in self.files[self.files.index(first) :]]
        return first.header, _read_all(known)


def _read_all(files: list[SpoolFile]) -> Iterator[Block]:
    for file in files:
        try:
            with file.path.open("rb") as raw:
                for payload in _payloads(raw, file.size_bytes):
                    yield block_of(payload)
        except FileNotFoundError as error:
            raise BlockDamaged(f"{file.path.name} was dropped while it was read") from error


def _payloads(raw: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Yield the payloads after the header, up to `size_bytes`; end early where one is damaged."""
    raw.seek(len(MAGIC))
    is_header = True
    while raw.tell() < size_bytes:
        payload = _payload(raw)
        if payload is None:
            return
        if not is_header:
            yield payload
        is_header = False


def _payload(raw: BinaryIO) -> bytes | None:
    head = raw.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    length, checksum = FRAME.unpack(head)
    payload = raw.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def _scan(path: Path) -> SpoolFile | None:
    """Return what of a file is whole, cutting off the rest; None if not even its header is."""
    try:
        with path.open("rb") as raw:
            if raw.read(len(MAGIC)) != MAGIC:
                return None
            payload = _payload(raw)
            header = header_of(payload) if payload is not None else None
            if header is None:
                return None
            through, size_bytes = header.after, raw.tell()
            while (payload := _payload(raw)) is not None:
                begins, ends = range_of(payload)
                if begins != through:
                    break
                through, size_bytes = ends, raw.tell()
    except (CorruptRecord, AssertionError):
        return None
    if path.stat().st_size > size_bytes:
        _log.warning("spool.tail_cut", file=path.name, kept_bytes=size_bytes, through=through)
        os.truncate(path, size_bytes)
    return SpoolFile(path=path, header=header, through=through, size_bytes=size_bytes)


def segments_after(header: SpoolHeader, blocks: Iterator[Block]) -> SegmentMap:
    """Return the fold from a file's beginning over all of its blocks."""
    segments = SegmentMap.from_segments(header.segments)
    for block in blocks:
        for changes in block.revisions:
            segments.advance(changes)
    return segments


def folder_bytes(folder: Path) -> int:
    """Return how much disk a folder's files take."""
    return sum(path.stat().st_size for path in folder.glob(f"*{_SUFFIX}"))


def drop_folder(folder: Path) -> None:
    """Delete another incarnation's files."""
    shutil.rmtree(folder, ignore_errors=True)


def locked(directory: Path) -> BinaryIO:
    """Take the directory for this process, until the returned file is closed.

    Raises:
        InvalidConfig: another process has it, or it cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InvalidConfig(
            f"spool directory {directory} is used by another process",
            hint="give each replicator a spool directory of its own",
        ) from error
    except OSError as error:
        raise InvalidConfig(f"spool directory {directory}: {error.strerror}") from error
    return lock


def _write(out: FileIO, raw: bytes) -> None:
    left = memoryview(raw)
    while left:
        left = left[out.write(left) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
