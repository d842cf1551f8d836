"""`python -m bench.writing`: writes at a rate, in a process of its own, and says what each took.

Times are those of the machine's monotonic clock, so that another process may compare them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import attrs
import uvloop

from bench.puts import Puts
from meshkit.config import EtcdConfig

BEHIND_MAX = 4_096
"""So many puts may be under way: a stalled etcd is not to be sent all that is due."""
STEP_S = 0.001
NUMBER_DIGITS = 8
"""A key ends with the number of its put."""


@attrs.frozen(kw_only=True)
class Load:
    """What to write: `count` puts at `rate` a second (0: as fast as etcd takes them)."""

    prefix: bytes
    count: int
    rate: int
    value_bytes: int
    keys: int = 0
    """How many keys there are, written over and over; 0: each put has its own."""
    seconds: float = 0.0
    """Stop after so long, whatever is left; 0: never."""
    together: int = BEHIND_MAX
    """How many may be under way at once."""

    def key(self, number: int) -> bytes:
        """Return the key of a put."""
        return self.prefix + b"%0*d" % (NUMBER_DIGITS, number % self.keys if self.keys else number)


@attrs.frozen(kw_only=True)
class Written:
    """When each put was sent and acknowledged, in nanoseconds, by its number."""

    sent_ns: array[int]
    acknowledged_ns: array[int]

    @property
    def took_ms(self) -> list[float]:
        """What each put took."""
        pairs = zip(self.sent_ns, self.acknowledged_ns, strict=True)
        return [(acknowledged - sent) / 1e6 for sent, acknowledged in pairs]

    @property
    def rate(self) -> float:
        """Puts per second, from the first that was sent to the last that was acknowledged."""
        return len(self.sent_ns) * 1e9 / max(1, max(self.acknowledged_ns) - self.sent_ns[0])


@attrs.define(kw_only=True)
class Writing:
    """Puts that a process of its own makes. Begin it, and ask for what came of it."""

    process: asyncio.subprocess.Process

    @classmethod
    async def begin(cls, config: EtcdConfig, load: Load) -> Writing:
        """Start the process; it writes at once."""
        given = [
            *("--endpoint", config.endpoints[0], "--ca", str(config.ca)),
            *("--cert", str(config.cert), "--key", str(config.key)),
            *("--prefix", load.prefix.decode(), "--count", str(load.count)),
            *("--rate", str(load.rate), "--value-bytes", str(load.value_bytes)),
            *("--keys", str(load.keys), "--seconds", str(load.seconds)),
            *("--together", str(load.together)),
        ]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.writing", *given, stdout=asyncio.subprocess.PIPE
        )
        return cls(process=process)

    async def end(self) -> Written:
        """Wait until everything is written, and return when it was."""
        out, _ = await self.process.communicate()
        assert self.process.returncode == 0, "the writer has failed"
        times = array("q", out)
        half = len(times) // 2
        return Written(sent_ns=times[:half], acknowledged_ns=times[half:])


async def write(puts: Puts, load: Load) -> Written:
    """Write through one connection."""
    sent, acknowledged = array("q"), array("q")
    value = b"v" * load.value_bytes
    now = time.perf_counter_ns
    began = now()
    open_count = 0
    moved = asyncio.Event()

    puts.ended.add_done_callback(lambda _: moved.set())

    def put(number: int) -> None:
        nonlocal open_count

        def done() -> None:
            nonlocal open_count
            open_count -= 1
            acknowledged[number] = now()
            moved.set()

        open_count += 1
        sent.append(now())
        acknowledged.append(0)
        puts.put(load.key(number), value, done)

    while len(sent) < load.count and not puts.ended.done():
        spent_s = (now() - began) / 1e9
        if load.seconds and spent_s > load.seconds:
            break
        due = min(load.count, int(spent_s * load.rate) + 1) if load.rate else load.count
        while len(sent) < due and open_count < load.together:
            put(len(sent))
        if open_count >= load.together or not load.rate:
            moved.clear()
            await moved.wait()
        else:
            await asyncio.sleep(STEP_S)
    while open_count and not puts.ended.done():
        moved.clear()
        await moved.wait()
    if puts.ended.done():
        puts.ended.result()
    return Written(sent_ns=sent, acknowledged_ns=acknowledged)


async def _run(given: Any) -> Written:
    config = EtcdConfig(endpoints=(given.endpoint,), ca=given.ca, cert=given.cert, key=given.key)
    load = Load(
        prefix=given.prefix.encode(),
        count=given.count,
        rate=given.rate,
        value_bytes=given.value_bytes,
        keys=given.keys,
        seconds=given.seconds,
        together=given.together,
    )
    puts = await Puts.connect(config)
    try:
        return await write(puts, load)
    finally:
        puts.close()


def main() -> int:
    """Write, and put both times of each put on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    for file in ("--ca", "--cert", "--key"):
        parser.add_argument(file, type=Path, required=True)
    parser.add_argument("--prefix", required=True)
    for number in ("--count", "--rate", "--value-bytes", "--keys", "--together"):
        parser.add_argument(number, type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    written = uvloop.run(_run(parser.parse_args()))
    sys.stdout.buffer.write(written.sent_ns.tobytes() + written.acknowledged_ns.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
