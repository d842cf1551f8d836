"""What the demo's clients were told, and what follows from it: pauses, one writer, nothing lost.

Pure. Times are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

import attrs

from meshkit.errors import MeshError

NS_PER_MS = 1_000_000


class ProofFailed(MeshError):
    """A promise of MeshKit did not hold in this run."""

    code = "proof_failed"


class Told(enum.Enum):
    """What a client was told about a write."""

    DONE = "done"
    NOT_DONE = "not done"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class ClientWrite:
    """One write as its client saw it."""

    writer: str
    key: bytes
    value: bytes
    called_ns: int
    returned_ns: int
    told: Told
    cluster: str = ""
    epoch: int = 0


@attrs.frozen(kw_only=True)
class Pause:
    """The longest time one writer had no acknowledgement, and between which two."""

    writer: str
    from_ns: int
    to_ns: int

    @property
    def pause_ms(self) -> float:
        """How long it was."""
        return (self.to_ns - self.from_ns) / NS_PER_MS


@attrs.define
class History:
    """Every write of one group, in the order in which clients learned of them."""

    writes: list[ClientWrite] = attrs.field(factory=list)

    def record(self, write: ClientWrite) -> None:
        """Remember a write."""
        self.writes.append(write)

    def done(self) -> list[ClientWrite]:
        """Return the acknowledged writes."""
        return [w for w in self.writes if w.told is Told.DONE]

    def count(self, told: Told) -> int:
        """Return how many writes were told so."""
        return sum(1 for w in self.writes if w.told is told)


def longest_pauses(writes: Iterable[ClientWrite], *, from_ns: int, to_ns: int) -> dict[str, Pause]:
    """Return for each writer its longest pause between two acknowledgements that touches a span."""
    found: dict[str, Pause] = {}
    last: dict[str, int] = {}
    for write in sorted(writes, key=lambda w: w.returned_ns):
        if write.told is not Told.DONE:
            continue
        before = last.get(write.writer)
        last[write.writer] = write.returned_ns
        if before is None or write.returned_ns < from_ns or before > to_ns:
            continue
        pause = Pause(writer=write.writer, from_ns=before, to_ns=write.returned_ns)
        if write.writer not in found or pause.pause_ms > found[write.writer].pause_ms:
            found[write.writer] = pause
    return found


def second_writer(writes: Iterable[ClientWrite]) -> str:
    """Return how two epochs overlapped, or nothing if they did not.

    They overlap when a write of a lower epoch was begun after one of a higher had been
    acknowledged, and was acknowledged too.
    """
    done = sorted((w for w in writes if w.told is Told.DONE), key=lambda w: w.returned_ns)
    higher: ClientWrite | None = None
    for write in done:
        if higher is None or write.epoch > higher.epoch:
            higher = write
        elif write.epoch < higher.epoch and write.called_ns > higher.returned_ns:
            return (
                f"{write.cluster} acknowledged {write.key.decode()} under epoch {write.epoch}"
                f" after {higher.cluster} had acknowledged under epoch {higher.epoch}"
            )
    return ""


def lost_writes(writes: Iterable[ClientWrite], stored: Mapping[bytes, bytes]) -> list[ClientWrite]:
    """Return the acknowledged writes that are neither stored nor overwritten by a later one.

    A key has one writer, which waits for each answer; so its writes are in order, and what may be
    stored is the last acknowledged value or one of unknown outcome after it.
    """
    possible: dict[bytes, list[bytes]] = {}
    last: dict[bytes, ClientWrite] = {}
    for write in sorted(writes, key=lambda w: w.called_ns):
        if write.told is Told.DONE:
            possible[write.key] = [write.value]
            last[write.key] = write
        elif write.told is Told.UNKNOWN:
            possible.setdefault(write.key, []).append(write.value)
    return [w for key, w in last.items() if stored.get(key) not in possible[key]]


def differing_keys(
    copies: Mapping[str, Mapping[bytes, bytes]],
) -> dict[str, list[bytes]]:
    """Return for each copy but the first the keys in which it differs from the first."""
    (_, reference), *others = copies.items()
    return {
        name: sorted(
            key for key in reference.keys() | copy.keys() if reference.get(key) != copy.get(key)
        )
        for name, copy in others
    }


_BARS = {True: " ▁▂▃▄▅▆▇█", False: " .:-=+*#@"}


def timeline(
    writes: Iterable[ClientWrite],
    clusters: Sequence[str],
    *,
    from_ns: int,
    to_ns: int,
    columns: int = 60,
    unicode: bool = True,
) -> list[str]:
    """Return one line for each cluster: how many writes it acknowledged, over time."""
    width_ns = max(1, (to_ns - from_ns) // columns)
    counts = {cluster: [0] * columns for cluster in clusters}
    for write in writes:
        column = (write.returned_ns - from_ns) // width_ns
        if write.told is Told.DONE and write.cluster in counts and 0 <= column < columns:
            counts[write.cluster][column] += 1
    most = max((n for row in counts.values() for n in row), default=0) or 1
    bars = _BARS[unicode]
    label = max(len(cluster) for cluster in clusters)
    lines = []
    for cluster, row in counts.items():
        line = "".join(bars[-(-n * (len(bars) - 1) // most)] for n in row)
        lines.append(f"{cluster:>{label}} |{line}|")
    scale = f"{(to_ns - from_ns) / NS_PER_MS:.0f} ms, {width_ns / NS_PER_MS:.0f} ms a column"
    return [*lines, f"{'':>{label}}  {scale}"]
