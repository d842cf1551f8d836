"""The demo's clients: two kinds of guarded writers, each noting what it was told.

Every key has one writer, which waits for the answer before it goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from cli.demo.history import ClientWrite, History, Told
from cli.demo.objects import StoredObject
from fencing.write_gate import WriteGate
from meshkit.codec import decode
from meshkit.errors import MeshError, OutcomeUnknown, Refused
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.regional import Permit
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Put, Txn, ValueIs

_PATIENCE_MS = 20_000
_LOOK_AGAIN_S = 0.005


class Writer(Protocol):
    """Something that writes until it is told to stop."""

    name: str

    async def run(self, stopping: asyncio.Event) -> None:
        """Write until `stopping` is set; the write under way is ended first."""


@attrs.define(kw_only=True)
class GuardedWriter:
    """An application on the SDK, which follows the active cluster by itself."""

    name: str
    gate: WriteGate
    history: History
    prefix: str
    interval_s: float

    async def run(self, stopping: asyncio.Event) -> None:
        """Put one new key after another until `stopping` is set."""
        for number in itertools.count():
            if stopping.is_set():
                return
            key = f"{self.prefix}{self.name}/{number:06d}".encode()
            await _write_through(self.gate, self.history, self.name, Put(key, b"order %d" % number))
            await _pause(stopping, self.interval_s)


@attrs.define(kw_only=True)
class ObjectWriter:
    """An application on the SDK that changes the objects of the first load, one after another."""

    name: str
    gate: WriteGate
    history: History
    objects: Sequence[StoredObject]
    interval_s: float

    async def run(self, stopping: asyncio.Event) -> None:
        """Change one object after another until `stopping` is set."""
        for number in itertools.count():
            if stopping.is_set():
                return
            obj = self.objects[number % len(self.objects)]
            put = Put(obj.key.encode(), changed(obj.value, number).encode())
            await _write_through(self.gate, self.history, self.name, put)
            await _pause(stopping, self.interval_s)


@attrs.define(kw_only=True)
class CompareWriter:
    """An ordinary etcd client: it reads the permit and compares it in each write. No SDK."""

    name: str
    group: GroupName
    stores: Mapping[ClusterName, Store]
    history: History
    prefix: str
    interval_s: float

    async def run(self, stopping: asyncio.Event) -> None:
        """Put one new key after another until `stopping` is set."""
        numbers = itertools.count()
        while not stopping.is_set():
            found = await self._permit()
            if found is None:
                await _pause(stopping, _LOOK_AGAIN_S)
                continue
            is_good = True
            while is_good and not stopping.is_set():
                is_good = await self._write(next(numbers), *found)
                await _pause(stopping, self.interval_s if is_good else 0)

    async def _write(self, number: int, cluster: ClusterName, permit: bytes) -> bool:
        """Write once; return whether the permit was still the one we know."""
        put = Put(f"{self.prefix}{self.name}/{number:06d}".encode(), b"order %d" % number)
        guard = ValueIs(RegionalKeys.permit(self.group), permit)
        called_ns = time.monotonic_ns()
        try:
            outcome = await self.stores[cluster].commit(Txn(guards=(guard,), operations=(put,)))
            told = Told.DONE if isinstance(outcome, Committed) else Told.NOT_DONE
        except OutcomeUnknown:
            told = Told.UNKNOWN
        except Refused:
            told = Told.NOT_DONE
        self.history.record(
            ClientWrite(
                writer=self.name,
                key=put.key,
                value=put.value,
                called_ns=called_ns,
                returned_ns=time.monotonic_ns(),
                told=told,
                cluster=cluster,
                epoch=decode(Permit, permit).epoch,
            )
        )
        return told is Told.DONE

    async def _permit(self) -> tuple[ClusterName, bytes] | None:
        for cluster, store in self.stores.items():
            try:
                item = await store.get(RegionalKeys.permit(self.group))
            except MeshError:
                continue
            if item is not None:
                return cluster, item.value
        return None


def changed(value: str, number: int) -> str:
    """Return an object's value with a mark of the `number`-th change; JSON stays JSON."""
    try:
        fields = json.loads(value)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return f"{value} #{number}"
    return json.dumps({**fields, "x-demo-change": number}, separators=(",", ":"))


async def _write_through(gate: WriteGate, history: History, writer: str, put: Put) -> None:
    called_ns = time.monotonic_ns()
    cluster, epoch = "", 0
    try:
        written = await gate.write((put,), deadline_ms=_PATIENCE_MS)
        told, cluster, epoch = Told.DONE, written.cluster, written.epoch
    except OutcomeUnknown:
        told = Told.UNKNOWN
    except Refused:
        told = Told.NOT_DONE
    history.record(
        ClientWrite(
            writer=writer,
            key=put.key,
            value=put.value,
            called_ns=called_ns,
            returned_ns=time.monotonic_ns(),
            told=told,
            cluster=cluster,
            epoch=epoch,
        )
    )


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
