"""The port through which the coordinator's parts know whether they still lead."""

from __future__ import annotations

from typing import Protocol

import attrs

from meshkit.errors import TermEnded
from meshkit.ordinals import Revision
from meshkit.store.port import Commits
from meshkit.store.txn import CreateRevisionIs, Outcome, Rejected, Txn


class Term(Protocol):
    """One unbroken leadership. Implemented by `fencing.term.Term`."""

    @property
    def created_at(self) -> Revision:
        """The revision that created the leader key: the term's name."""

    def guard(self) -> CreateRevisionIs:
        """Return the guard that demands that this term still lasts."""

    def end(self, reason: str) -> None:
        """Note that the term has ended."""

    async def lost(self) -> str:
        """Return, with the reason, once the term has ended or may have."""

    async def resign(self) -> None:
        """Give leadership up, so that the next one leads at once."""


async def commit_under(term: Term | None, store: Commits, txn: Txn) -> Outcome:
    """Commit, and only while the term lasts if there is one.

    Raises:
        TermEnded: another coordinator leads, or nobody does; nothing was written.
        OutcomeUnknown: the reply was lost.
    """
    if term is None:
        return await store.commit(txn)
    leading = term.guard()
    outcome = await store.commit(attrs.evolve(txn, guards=(leading, *txn.guards)))
    if isinstance(outcome, Rejected) and leading in outcome.broken:
        term.end("the leader key is no longer ours")
        raise TermEnded("another coordinator leads, or nobody does")
    return outcome
