"""Asking a region's leading replicator, wherever it is: the port, and trying its endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from meshkit.asking import (
    Answer,
    Counted,
    DeclineCode,
    Declined,
    EntriesPage,
    EpochStart,
    ForeignListed,
    KeyStates,
    Promised,
    Question,
    RegionStanding,
    ReplayResults,
    SealHeard,
    WholeEntries,
)
from meshkit.errors import NotFound, Refused, Unreachable
from meshkit.names import ClusterName

A = TypeVar(
    "A",
    EntriesPage,
    WholeEntries,
    Counted,
    ReplayResults,
    KeyStates,
    EpochStart,
    ForeignListed,
    Promised,
    RegionStanding,
    SealHeard,
)


class AskRegion(Protocol):
    """Asks replicators, wherever they are."""

    async def ask(self, cluster: ClusterName, endpoint: str, question: Question) -> Answer:
        """Return the answer of the replicator of `cluster` at `endpoint`.

        Raises:
            Unreachable: nobody answered there. What was asked may have been done.
            NotAllowed: it is not a replicator of that cluster, or it does not accept us.
        """


class RegionSilent(Unreachable):
    """No replicator that leads the region answers; what was asked may have been done."""


class NobodyToAsk:
    """Reaches no replicator: for a process that was given no way to."""

    async def ask(self, cluster: ClusterName, endpoint: str, question: Question) -> Answer:
        """Reach nobody.

        Raises:
            Unreachable: always.
        """
        del endpoint, question
        raise Unreachable(f"this process has no way to ask {cluster}")


async def ask_leader(
    asker: AskRegion,
    cluster: ClusterName,
    endpoints: Sequence[str],
    question: Question,
    expected: type[A],
) -> A:
    """Return what the leading replicator of a cluster answers, at whichever endpoint that is.

    Raises:
        RegionSilent: no replicator that leads answered.
        NotFound, Refused: it declined.
    """
    problems: list[str] = []
    for endpoint in endpoints:
        try:
            answer = await asker.ask(cluster, endpoint, question)
        except Unreachable as error:
            problems.append(str(error))
            continue
        if isinstance(answer, expected):
            return answer
        if not isinstance(answer, Declined):
            raise Refused(f"{cluster} answered with {type(answer).__name__}")
        if answer.code is not DeclineCode.NOT_LEADING:
            raise (NotFound if answer.code is DeclineCode.NOT_FOUND else Refused)(answer.text)
        problems.append(answer.text)
    why = "; ".join(problems) or "no endpoint of it is known"
    raise RegionSilent(
        f"{cluster} does not answer: {why}",
        hint=f"see how its replicators stand: mesh clusters show {cluster}",
    )
