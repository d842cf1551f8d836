"""How long the disk took while something was measured: what etcd says of its own fsyncs.

Every write waits for at least one. A figure that is limited by the disk shows here, and nowhere in
CPU times.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Mapping

import attrs

from cli.sandbox.sandbox import Sandbox

_METRIC = "etcd_disk_wal_fsync_duration_seconds"
_TIMEOUT_S = 5.0


@attrs.frozen(kw_only=True)
class Fsyncs:
    """A histogram of fsyncs: how many took at most so many seconds, and how long all took."""

    counts: Mapping[float, int]
    """By upper bound, each with everything below it."""
    sum_s: float

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Fsyncs:
        """Return what etcd's metrics say. Pure."""
        counts: dict[float, int] = {}
        sum_s = 0.0
        for line in lines:
            if line.startswith(f"{_METRIC}_bucket"):
                bound, _, count = line.partition('le="')[2].partition('"} ')
                counts[float(bound)] = int(float(count))
            elif line.startswith(f"{_METRIC}_sum"):
                sum_s = float(line.split()[1])
        return cls(counts=counts, sum_s=sum_s)

    @property
    def count(self) -> int:
        """How many there were."""
        return max(self.counts.values(), default=0)

    @property
    def mean_ms(self) -> float:
        """What one took on average."""
        return 1000 * self.sum_s / max(1, self.count)

    def since(self, before: Fsyncs) -> Fsyncs:
        """Return those that came after `before` was read."""
        counts = {bound: n - before.counts.get(bound, 0) for bound, n in self.counts.items()}
        return Fsyncs(counts=counts, sum_s=self.sum_s - before.sum_s)

    def at_most_ms(self, share: float) -> float:
        """Return what this share of them took at most: the bound of a bucket, so no less."""
        wanted = share * self.count
        return 1000 * min((b for b, n in self.counts.items() if n >= wanted), default=0.0)

    def told(self) -> str:
        """Put into words how long they took."""
        if not self.count:
            return "none"
        p99, most = self.at_most_ms(0.99), self.at_most_ms(1.0)
        return (
            f"{self.count:,}, mean {self.mean_ms:.1f} ms, p99 <= {p99:.0f} ms, max <= {most:.0f} ms"
        )


class Disk:
    """The fsyncs of the regions' etcds since it was made, or since `again`."""

    def __init__(self, sandbox: Sandbox, clusters: Iterable[str] = ()) -> None:
        names = tuple(clusters) or sandbox.spec.clusters
        self._urls = {name: sandbox.etcd(name).metrics_url for name in names}
        self._before: dict[str, Fsyncs] = {}
        self.again()

    def again(self) -> None:
        """Begin anew."""
        self._before = self._read()

    def since(self) -> dict[str, Fsyncs]:
        """Return the fsyncs of each region."""
        return {name: found.since(self._before[name]) for name, found in self._read().items()}

    def why(self) -> str:
        """Say how long the fsyncs took."""
        told = (f"{name} {fsyncs.told()}" for name, fsyncs in self.since().items())
        return f"fsyncs of etcd's log: {'; '.join(told)}"

    def _read(self) -> dict[str, Fsyncs]:
        return {name: Fsyncs.parse(_metrics(url)) for name, url in self._urls.items()}


def _metrics(url: str) -> list[str]:
    """Return an etcd's metrics; nothing of one that does not answer (it is stopped, or paused)."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as answer:  # noqa: S310
            text: str = answer.read().decode()
    except OSError:
        return []
    return text.splitlines()
