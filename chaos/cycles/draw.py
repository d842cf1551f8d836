"""What is different from one cycle to the next, drawn from one seed. Pure."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import attrs

T = TypeVar("T")


class End(enum.Enum):
    """How a region goes."""

    KILLED = "killed"
    """SIGKILL for everything in it; what is on disk stays."""
    STOPPED = "stopped"
    """SIGSTOP for everything in it; sockets stay open, and it wakes as it was."""


class Third(enum.Enum):
    """How the cluster that is neither lost nor promoted stands to the promoted one."""

    LEVEL = "level"
    AHEAD = "ahead"
    BEHIND = "behind"


class Delay(enum.Enum):
    """What makes one standby have less than the other."""

    PAUSED = "its stream is paused"
    ASLEEP = "its replicators are stopped"


class Consent(enum.Enum):
    """How the operator accepts the loss."""

    UNKNOWN = "unknown"
    BOUND = "a bound given beforehand"
    SHOWN = "exactly what is shown"


class Back(enum.Enum):
    """In which order what was killed comes back."""

    TOGETHER = "all at once"
    ETCD_FIRST = "etcd long before its replicators"


class Fate(enum.Enum):
    """What the operator does with what is in quarantine."""

    DISCARDED = "discarded"
    REPLAYED = "replayed"
    KEPT = "kept"


@attrs.frozen(kw_only=True)
class Variation:
    """One cycle, before it is run."""

    number: int
    end: End
    third: Third
    delay: Delay
    consent: Consent
    back: Back
    fate: Fate
    home: int
    """Which cluster is lost."""
    away: int
    """Which of the two others is promoted."""
    has_tail: bool
    """Whether the lost cluster has acknowledged writes that nobody else has."""
    fails_back_at_once: bool
    """Whether failback is asked for as soon as the region is back, so that it has to rejoin."""
    no_fence_wait: bool

    def __str__(self) -> str:
        words = [
            f"region {self.end.value}",
            f"third {self.third.value}" + (f" ({self.delay.value})" if self.lags else ""),
            "a tail" if self.has_tail else "no tail made",
            f"accepts {self.consent.value}" + (", no fence wait" if self.no_fence_wait else ""),
            f"back {self.back.value}" if self.end is End.KILLED else "woken",
            "failback at once" if self.fails_back_at_once else "failback after the rejoin",
            self.fate.value,
        ]
        return "; ".join(words)

    @property
    def lags(self) -> bool:
        """Whether one standby is made to have less than the other."""
        return self.third is not Third.LEVEL


def variations(seed: int) -> Iterator[Variation]:
    """Yield cycles for ever; the same for the same seed.

    Every three of them have each way the third cluster may stand, every two each end.
    """
    rng = random.Random(seed)
    home = rng.randrange(3)
    ends: list[End] = []
    thirds: list[Third] = []
    number = 0
    while True:
        number += 1
        ends = ends or _shuffled(rng, list(End))
        thirds = thirds or _shuffled(rng, list(Third))
        if rng.random() < 0.25:
            home = rng.randrange(3)
        no_fence_wait = rng.random() < 0.15
        yield Variation(
            number=number,
            end=ends.pop(),
            third=thirds.pop(),
            delay=rng.choice(list(Delay)),
            consent=Consent.UNKNOWN if no_fence_wait else rng.choice(list(Consent)),
            back=rng.choice(list(Back)),
            fate=rng.choice(list(Fate)),
            home=home,
            away=rng.randrange(2),
            has_tail=rng.random() < 0.7,
            fails_back_at_once=rng.random() < 0.4,
            no_fence_wait=no_fence_wait,
        )


def _shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    return rng.sample(items, len(items))
