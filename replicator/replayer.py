"""Carries out requests to have a group's history sent again to the copy here.

Runs in the leading replicator of the copy's region. It may die anywhere: its successor finds the
request without a result, and asks again; what came twice, or three times, changes nothing.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import structlog

from fencing.patience import within
from meshkit.codec import decode, encode
from meshkit.errors import CorruptRecord, MeshError, OutcomeUnknown, Refused
from meshkit.keys import CoordinationKeys, parts_below
from meshkit.mirror import PrefixMirror
from meshkit.model import Authority
from meshkit.names import ClusterName
from meshkit.ordinals import Revision, Sequence
from meshkit.replay import Replay, ReplayResult, ResentOutcome
from meshkit.store.txn import KeyValue, ModRevisionIs, Put, Txn
from replicator.agent_ports import Region
from replicator.resend import Resend
from replicator.together import Scope

_log = structlog.get_logger()

PATIENCE_MS = 10 * 60 * 1000
"""How long history may take to come again."""
RETRY_MS = 500


class Streams(Protocol):
    """Who can have a source send something again."""

    async def resend(self, source: ClusterName, after: Sequence) -> Resend:
        """Have everything past `after` sent again, and return what came."""


class Replayer:
    """One request after the other."""

    def __init__(self, region: Region, streams: Streams, *, authorities: PrefixMirror) -> None:
        self._region = region
        self._streams = streams
        self._authorities = authorities
        self._prefix = CoordinationKeys.replays_at(region.cluster)
        self._mirror = PrefixMirror(region.coordination, self._prefix, clock=region.clock)

    async def run(self) -> None:
        """Carry out requests until cancelled."""
        tasks = Scope()
        tasks.start(self._mirror.run())
        tasks.start(self._work())
        await tasks.wait()

    async def _work(self) -> None:
        await self._authorities.ready.wait()
        async for _ in self._mirror.changes():
            for key, item in sorted(self._mirror.entries.items()):
                parts = parts_below(self._prefix, key)
                if parts is None or len(parts) != 1:
                    continue
                try:
                    await self._settle(decode(Replay, item.value), item.mod_revision)
                except CorruptRecord as error:
                    _log.error("replay.unreadable", key=key.decode(), why=str(error))

    async def _settle(self, request: Replay, revision: Revision) -> None:
        key = CoordinationKeys.replay_result(request.target, request.group)
        if self._is_done(request, self._mirror.entries.get(key)):
            return
        began_ms = self._region.clock.wall_ms()
        try:
            result = await self._replayed(request)
        except MeshError as error:
            result = _refused(request, str(error))
        ended_ms = self._region.clock.wall_ms()
        result = attrs.evolve(result, began_ms=began_ms, ended_ms=ended_ms)
        _log.info("replay.ended", group=request.group, id=request.id, outcome=result.outcome.value)
        asked = ModRevisionIs(CoordinationKeys.replay(request.target, request.group), revision)
        txn = Txn(guards=(asked,), operations=(Put(key, encode(result)),))
        while True:
            try:
                await self._region.coordination.commit(txn)
            except MeshError as error:
                # Putting the same result again changes nothing.
                _log.warning("replay.result_delayed", group=request.group, why=str(error))
                await self._region.clock.sleep_ms(RETRY_MS)
            else:
                return

    def _is_done(self, request: Replay, item: KeyValue | None) -> bool:
        return item is not None and decode(ReplayResult, item.value).id == request.id

    async def _replayed(self, request: Replay) -> ReplayResult:
        item = self._authorities.entries.get(CoordinationKeys.authority(request.group))
        if item is None:
            raise Refused(f"nobody is active for {request.group} yet")
        source = decode(Authority, item.value).active
        if source == self._region.cluster:
            raise Refused(f"{source} is active for {request.group}: it follows nobody")
        try:
            came = await within(
                self._region.clock,
                PATIENCE_MS,
                self._streams.resend(source, Sequence(request.start - 1)),
            )
        except OutcomeUnknown as error:
            raise Refused(f"the history did not come again in time: {error}") from error
        if came.refused:
            raise Refused(f"{source} does not send it again: {came.refused}")
        count = came.records.get(request.group, 0)
        return ReplayResult(
            id=request.id,
            group=request.group,
            target=request.target,
            outcome=ResentOutcome.DONE,
            source=source,
            start=request.start,
            through=came.through,
            records=count,
            duplicates=count,
        )


def _refused(request: Replay, reason: str) -> ReplayResult:
    return ReplayResult(
        id=request.id,
        group=request.group,
        target=request.target,
        outcome=ResentOutcome.REFUSED,
        start=request.start,
        reason=reason,
    )
