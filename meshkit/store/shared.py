"""Transactions that wait at the same moment share one request and one revision.

Thousands of groups that move together would otherwise pay a round trip and a raft entry each for
every transition. Each transaction keeps its own guards and its own outcome: one that is refused
does not hold the others. A transaction that waits alone is sent as it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import attrs

from meshkit.errors import MeshError, OutcomeUnknown, Unreachable
from meshkit.store.port import Commits
from meshkit.store.shape import guard_range, request_bytes, written_keys
from meshkit.store.txn import Attempt, Committed, Delete, Nest, Operation, Outcome, Put, Txn

SHARED_MAX = 64
"""Transactions in one request; leaves half of etcd's 128 operations a level to each of them."""
SHARED_BYTES_MAX = 1_000_000
"""Below etcd's default request size of 1.5 MiB."""


@attrs.define(eq=False)
class _Waiting:
    txn: Txn
    timeout_ms: int | None
    outcome: asyncio.Future[Outcome]


@attrs.define(kw_only=True, eq=False)
class SharedCommits:
    """Commits through `store`, one request at a time. Commits only while `run` runs.

    `index` names a key that many transactions rewrite only so that it changes: it is put once for
    all that do, under the guards that all those have, even if none of them is applied in the end.

    Invariant: no two transactions of a request write the same key, or one what another compares.
    """

    store: Commits
    index: bytes = b""
    _queue: deque[_Waiting] = attrs.field(factory=deque, init=False)
    _arrived: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _is_over: bool = attrs.field(default=False, init=False)

    async def commit(self, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        """Apply the transaction at most once, perhaps together with others; see the port.

        Cancelling leaves its outcome unknown, as with any commit.

        Raises:
            Unreachable: also after `run` has ended.
        """
        if self._is_over:
            raise Unreachable("nobody sends transactions here any more")
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(txn, timeout_ms, outcome))
        self._arrived.set()
        return await outcome

    async def run(self) -> None:
        """Send what waits until cancelled; what waits then is refused or unknown."""
        batch: list[_Waiting] = []
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while batch := self._next_batch():
                    await self._send(batch)
        finally:
            self._is_over = True
            for waiting in batch:
                _fail(waiting, OutcomeUnknown("stopped while the transaction was under way"))
            for waiting in self._queue:
                _fail(waiting, Unreachable("stopped before the transaction was sent"))
            self._queue.clear()

    def _next_batch(self) -> list[_Waiting]:
        """Take what fits into one request, in order, each key in one transaction only."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        written: set[bytes] = set()
        compared: set[bytes] = set()
        size = 0
        while self._queue and len(batch) < SHARED_MAX:
            waiting = self._queue.popleft()
            if waiting.outcome.done():
                continue
            size += request_bytes(waiting.txn)
            if batch and size > SHARED_BYTES_MAX:
                self._queue.appendleft(waiting)
                break
            if _has_ranges(waiting.txn):
                if not batch:
                    return [waiting]
                left.append(waiting)
                continue
            keys = written_keys(waiting.txn.operations)
            guarded = {guard_range(guard)[0] for guard in waiting.txn.guards}
            is_twice = keys & written - {self.index}
            if is_twice or keys & compared or guarded & written:
                left.append(waiting)
                continue
            written |= keys
            compared |= guarded
            batch.append(waiting)
        self._queue.extendleft(reversed(left))
        return batch

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        if len(batch) == 1:
            await self._send_alone(batch[0])
            return
        shared = self._merged([waiting.txn for waiting in batch])
        limits = [w.timeout_ms for w in batch if w.timeout_ms is not None]
        timeout_ms = max(limits) if len(limits) == len(batch) else None
        try:
            outcome = await self.store.commit(shared, timeout_ms=timeout_ms)
        except (OutcomeUnknown, Unreachable) as error:
            for waiting in batch:
                _fail(waiting, type(error)(str(error)))
            return
        except MeshError:
            # etcd refuses the whole for one of them (a lost lease, its size): each for itself.
            for waiting in batch:
                await self._send_alone(waiting)
            return
        for number, waiting in enumerate(batch):
            settled = outcome.attempts[number] if isinstance(outcome, Committed) else outcome
            if not waiting.outcome.done():
                waiting.outcome.set_result(settled)

    async def _send_alone(self, waiting: _Waiting) -> None:
        try:
            outcome = await self.store.commit(waiting.txn, timeout_ms=waiting.timeout_ms)
        except MeshError as error:
            _fail(waiting, error)
        else:
            if not waiting.outcome.done():
                waiting.outcome.set_result(outcome)

    def _merged(self, txns: Sequence[Txn]) -> Txn:
        attempts = tuple(Attempt(_without_put(txn, self.index)) for txn in txns)
        moving = [txn for txn in txns if any(_is_put(o, self.index) for o in txn.operations)]
        if not self.index or not moving:
            return Txn(operations=attempts)
        common = [g for g in moving[0].guards if all(g in txn.guards for txn in moving[1:])]
        put = next(o for o in reversed(moving[-1].operations) if _is_put(o, self.index))
        index = Attempt(Txn(guards=tuple(common), operations=(put,)))
        return Txn(operations=(*attempts, index))


def _without_put(txn: Txn, key: bytes) -> Txn:
    if not key:
        return txn
    return attrs.evolve(txn, operations=tuple(o for o in txn.operations if not _is_put(o, key)))


def _is_put(operation: Operation, key: bytes) -> bool:
    return isinstance(operation, Put) and operation.key == key


def _has_ranges(txn: Txn) -> bool:
    """Return whether it compares or deletes more than single keys, or nests."""
    return any(guard_range(guard)[1] for guard in txn.guards) or any(
        isinstance(o, Nest | Attempt) or (isinstance(o, Delete) and o.end) for o in txn.operations
    )


def _fail(waiting: _Waiting, error: MeshError) -> None:
    if not waiting.outcome.done():
        waiting.outcome.set_exception(error)
