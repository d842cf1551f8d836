"""A transaction that only reads, as single reads of one revision: for an etcd that it would kill.

Before 3.5.5 etcd panics when the caller of such a transaction hangs up, dies or runs out of time
in the moment in which it is served (etcd #14110). A single read is given up without harm, and so is
a transaction within a transaction, which etcd takes for one that writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from meshkit.errors import Compacted
from meshkit.etcd_binary import version_parts
from meshkit.store.etcd_codec import decode_outcome, encode_evidence, encode_reads, is_held_by
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.txn import Get, Outcome, Txn

_SOUND_SINCE = (3, 5, 5)

_ATTEMPTS_MAX = 3
"""How often the reads begin anew when their revision is compacted between two of them."""

_APART_MAX = 12
"""Of more reads than this, the log is the cheaper way."""

Read = Callable[[wire.RangeRequest], Awaitable[Any]]


def only_reads(txn: Txn) -> bool:
    """Return whether a transaction consists of guards and plain reads."""
    is_plain = all(isinstance(operation, Get) for operation in txn.operations)
    return is_plain and bool(txn.guards or txn.operations)


def is_long(txn: Txn) -> bool:
    """Return whether reading a transaction apart would take many requests."""
    return len(txn.guards) + len(txn.operations) + len(txn.otherwise) > _APART_MAX


def is_reading_sound(version: str) -> bool:
    """Return whether an etcd survives it when a transaction that only reads is given up.

    One that does not tell its version to everybody is newer.
    """
    return not version or version_parts(version) >= _SOUND_SINCE


async def read_apart(txn: Txn, read: Read) -> Outcome:
    """Return the outcome of a transaction that only reads, all of it at one revision.

    Raises:
        Compacted: again and again the revision was gone before everything was read.
        Refused: what `read` raises.
    """
    attempts_left = _ATTEMPTS_MAX
    while True:
        attempts_left -= 1
        try:
            return await _read_once(txn, read)
        except Compacted:
            if attempts_left == 0:
                raise


async def _read_once(txn: Txn, read: Read) -> Outcome:
    snapshot = _Snapshot(read)
    shown = await snapshot.all(encode_evidence(txn.guards))
    if is_held_by(txn.guards, shown):
        answers = await snapshot.all(encode_reads(txn.operations))
        return decode_outcome(txn, snapshot.answer(answers, succeeded=True))
    others = await snapshot.all(encode_reads(txn.otherwise))
    return decode_outcome(txn, snapshot.answer([*shown, *others], succeeded=False))


@attrs.define
class _Snapshot:
    """Reads at the revision that the first one found, linearizably."""

    _read: Read
    _header: Any = None

    async def all(self, requests: list[wire.RangeRequest]) -> list[wire.ResponseOp]:
        """Return the answers, in the order of the requests."""
        answers: list[Any] = []
        if requests and self._header is None:
            answers.append(await self._read(requests[0]))
            self._header = answers[0].header
        for request in requests[len(answers) :]:
            request.revision = self._header.revision
        rest = [asyncio.ensure_future(self._read(r)) for r in requests[len(answers) :]]
        try:
            answers += await asyncio.gather(*rest)
        finally:
            for task in rest:
                task.cancel()
        return [wire.ResponseOp(response_range=answer) for answer in answers]

    def answer(self, responses: list[wire.ResponseOp], *, succeeded: bool) -> wire.TxnResponse:
        """Return what etcd would have answered to the whole."""
        return wire.TxnResponse(header=self._header, succeeded=succeeded, responses=responses)
