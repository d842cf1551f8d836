"""A guarded writer as a process of its own, so that it can be stopped and woken.

`python -m chaos.writer --sandbox DIR --name N` writes until SIGTERM and prints one JSON line per
write: what it did and what it was told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

import structlog

from chaos.history import History, Outcome, Write
from chaos.traffic import GuardedWriter
from cli.sandbox.sandbox import Sandbox
from fencing.write_gate import WriteGate
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Revision


class PrintedHistory(History):
    """Prints each write as it ends, beside keeping nothing."""

    def record(self, write: Write) -> None:
        """Print one finished write."""
        sys.stdout.write(json.dumps(to_json(write)) + "\n")
        sys.stdout.flush()


def to_json(write: Write) -> dict[str, object]:
    """Return a write as plain data."""
    return {
        "writer": write.writer,
        "key": write.key.decode(),
        "value": write.value.decode(),
        "call_ns": write.call_ns,
        "return_ns": write.return_ns,
        "outcome": write.outcome.value,
        "cluster": write.cluster,
        "epoch": write.epoch,
        "revision": write.revision,
    }


def from_json(line: str) -> Write:
    """Return the write that `to_json` made plain."""
    plain = json.loads(line)
    return Write(
        writer=plain["writer"],
        key=plain["key"].encode(),
        value=plain["value"].encode(),
        call_ns=plain["call_ns"],
        return_ns=plain["return_ns"],
        outcome=Outcome(plain["outcome"]),
        cluster=ClusterName(plain["cluster"]) if plain["cluster"] else None,
        epoch=Epoch(plain["epoch"]) if plain["epoch"] else None,
        revision=Revision(plain["revision"]) if plain["revision"] else None,
    )


async def run(sandbox: Sandbox, *, name: str, group: str, prefix: str) -> None:
    """Write until SIGTERM."""
    stores = {ClusterName(c): sandbox.store(c) for c in sandbox.spec.clusters}
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    gate = WriteGate(GroupName(group), routing=tuple(stores.values()), members=stores)
    async with gate:
        writer = GuardedWriter(name=name, gate=gate, prefix=prefix, history=PrintedHistory())
        writing = asyncio.create_task(writer.run())
        await stopping.wait()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    await asyncio.gather(*(store.close() for store in stores.values()))


def main() -> None:
    """Run the writer that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sandbox", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--group", default="orders")
    parser.add_argument("--prefix", default="/orders/")
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(
        run(
            Sandbox.load(arguments.sandbox),
            name=arguments.name,
            group=arguments.group,
            prefix=arguments.prefix,
        )
    )


if __name__ == "__main__":
    main()
