"""Everything that one region consists of, to be killed, stopped, woken and started as one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import attrs

from chaos.cycles.draw import Back, End
from chaos.history import History
from chaos.writer import from_json
from cli.sandbox.etcd import EtcdProcess
from cli.sandbox.process import MeshProcess, wait_stopped
from cli.sandbox.sandbox import Sandbox
from meshkit.names import ClusterName

_EXIT_S = 10.0


@attrs.define(kw_only=True, eq=False)
class RegionWriter:
    """An application in the region, as a process of its own: it dies and sleeps with it."""

    process: asyncio.subprocess.Process
    history: History
    reading: asyncio.Task[None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            # What a killed process had half printed, it was not told: nobody knows of it.
            with contextlib.suppress(json.JSONDecodeError):
                self.history.record(from_json(line.decode()))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is there still."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def end(self) -> None:
        """End the process in an orderly way, and read what it still says."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_EXIT_S):
                await self.process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.process.wait()
        await self.reading


@contextlib.asynccontextmanager
async def writing_in(
    sandbox: Sandbox, *, name: str, group: str, prefix: str, history: History
) -> AsyncIterator[RegionWriter]:
    """Run a writer of the region until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chaos.writer", "--sandbox", str(sandbox.directory)),
        *("--name", name, "--group", group, "--prefix", prefix),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    writer = RegionWriter(process=process, history=history)
    try:
        yield writer
    finally:
        await writer.end()


@attrs.define(kw_only=True, eq=False)
class Region:
    """One cluster's etcd, its replicators, the coordinator that lives there, and its writer."""

    sandbox: Sandbox
    cluster: ClusterName

    @property
    def etcd(self) -> EtcdProcess:
        """The region's etcd."""
        return self.sandbox.etcd(self.cluster)

    @property
    def replicators(self) -> list[MeshProcess]:
        """The region's replicators."""
        return self.sandbox.replicators[self.cluster]

    @property
    def coordinator(self) -> MeshProcess:
        """The coordinator of the region: one lives in each."""
        return self.sandbox.coordinator(self.sandbox.spec.clusters.index(self.cluster) + 1)

    async def end(self, how: End, writer: RegionWriter) -> int:
        """Lose the region; return when, on the monotonic clock."""
        began_ns = time.monotonic_ns()
        await asyncio.to_thread(self._end, how, writer.process.pid)
        return began_ns

    def _end(self, how: End, writer: int) -> None:
        everything: tuple[MeshProcess | EtcdProcess, ...]
        everything = (*self.replicators, self.coordinator, self.etcd)
        if how is End.STOPPED:
            _signal(writer, signal.SIGSTOP)
            for process in everything:
                process.pause()
            wait_stopped(writer)
            return
        _signal(writer, signal.SIGKILL)
        for process in everything:
            process.kill()

    async def come_back(self, how: End, back: Back, writer: RegionWriter) -> None:
        """Start what was killed on what is on its disks, or wake what was stopped."""
        if how is End.STOPPED:
            self.etcd.resume()
            for process in (*self.replicators, self.coordinator):
                process.resume()
            writer.signal(signal.SIGCONT)
            return
        await asyncio.to_thread(self.etcd.start)
        if back is Back.ETCD_FIRST:
            await asyncio.to_thread(self.etcd.wait_ready)
            # Long enough for clients of the old permit to find it, which its lease kept.
            await asyncio.sleep(1)
        for process in (*self.replicators, self.coordinator):
            await asyncio.to_thread(process.start)

    async def fall_asleep(self) -> None:
        """Stop the replicators alone: the region takes in nothing."""
        for process in self.replicators:
            await asyncio.to_thread(process.pause)

    def wake(self) -> None:
        """Let the replicators go on."""
        for process in self.replicators:
            process.resume()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
