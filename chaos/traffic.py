"""Writers that record what they were told. Every write goes to a key of its own.

`GuardedWriter` is an application on the SDK. `CompareWriter` is any other etcd client that adds the
one compare: it reads the routing record and the permit, and knows nothing of beats.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping

import attrs
import structlog

from chaos.history import History, Outcome, Write
from fencing.write_gate import WriteGate
from meshkit.codec import decode
from meshkit.errors import MeshError, OutcomeUnknown, Refused
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Revision
from meshkit.regional import Permit
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Put, Txn, ValueIs

_log = structlog.get_logger()

PATIENCE_MS = 20_000
"""How long a guarded write waits for a cluster that accepts writes."""


@attrs.define(kw_only=True)
class _Attempt:
    """One write under way."""

    writer: str
    key: bytes
    value: bytes
    call_ns: int = attrs.field(factory=time.monotonic_ns)

    def ended(
        self,
        outcome: Outcome,
        *,
        cluster: ClusterName | None = None,
        epoch: Epoch | None = None,
        revision: Revision | None = None,
    ) -> Write:
        """Return what became of it."""
        return Write(
            writer=self.writer,
            key=self.key,
            value=self.value,
            call_ns=self.call_ns,
            return_ns=time.monotonic_ns(),
            outcome=outcome,
            cluster=cluster,
            epoch=epoch,
            revision=revision,
        )


@attrs.define(kw_only=True)
class GuardedWriter:
    """Writes through the SDK, which redirects by itself."""

    name: str
    gate: WriteGate
    prefix: str
    history: History
    interval_s: float = 0.01

    async def run(self) -> None:
        """Write until cancelled."""
        for number in itertools.count():
            await self.write_once(number)
            await asyncio.sleep(self.interval_s)

    async def write_once(self, number: int) -> None:
        """Write one key and record what came of it; what is interrupted is unknown."""
        key = f"{self.prefix}{self.name}/{number:08d}".encode()
        attempt = _Attempt(writer=self.name, key=key, value=f"{self.name}-{number}".encode())
        ended = attempt.ended(Outcome.INFO)
        try:
            written = await self.gate.write((Put(key, attempt.value),), deadline_ms=PATIENCE_MS)
            ended = attempt.ended(
                Outcome.OK,
                cluster=written.cluster,
                epoch=written.epoch,
                revision=written.revision,
            )
        except OutcomeUnknown:
            ended = attempt.ended(Outcome.INFO)
        except Refused:
            ended = attempt.ended(Outcome.FAIL)
        finally:
            self.history.record(ended)


@attrs.define(kw_only=True)
class CompareWriter:
    """An ordinary etcd client: looks for a permit, and compares it in each write."""

    name: str
    group: GroupName
    stores: Mapping[ClusterName, Store]
    prefix: str
    history: History
    interval_s: float = 0.02

    async def run(self) -> None:
        """Write until cancelled."""
        for number in itertools.count():
            await self._write_once(number)
            await asyncio.sleep(self.interval_s)

    async def _write_once(self, number: int) -> None:
        key = f"{self.prefix}{self.name}/{number:08d}".encode()
        found = await self._permit()
        if found is None:
            return
        cluster, raw = found
        permit = decode(Permit, raw)
        attempt = _Attempt(writer=self.name, key=key, value=f"{self.name}-{number}".encode())
        ended = attempt.ended(Outcome.INFO)
        guard = ValueIs(RegionalKeys.permit(self.group), raw)
        try:
            outcome = await self.stores[cluster].commit(
                Txn(guards=(guard,), operations=(Put(key, attempt.value),))
            )
            ended = attempt.ended(Outcome.FAIL)
            if isinstance(outcome, Committed):
                ended = attempt.ended(
                    Outcome.OK, cluster=cluster, epoch=permit.epoch, revision=outcome.revision
                )
        except OutcomeUnknown:
            ended = attempt.ended(Outcome.INFO)
        except Refused:
            ended = attempt.ended(Outcome.FAIL)
        finally:
            self.history.record(ended)

    async def _permit(self) -> tuple[ClusterName, bytes] | None:
        for cluster, store in self.stores.items():
            try:
                item = await store.get(RegionalKeys.permit(self.group))
            except MeshError as error:
                _log.debug("permit.unread", cluster=cluster, why=str(error))
                continue
            if item is not None:
                return cluster, item.value
        return None
