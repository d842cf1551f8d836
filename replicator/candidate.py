"""A replicator process as a candidate: stands by, and leads its region when elected."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog

from fencing.election import Election
from fencing.patience import give_way
from fencing.term import Term
from meshkit.asking import (
    Answer,
    AskPromises,
    DeclineCode,
    Declined,
    EndPromises,
    Question,
    ReadStanding,
)
from meshkit.errors import MeshError, StoreReplaced
from meshkit.names import ClusterName
from meshkit.peer import PeerIdentity
from replicator.desk import not_leading as nobody_at_desk
from replicator.examiner import not_leading
from replicator.leadership import Home, Leadership, begin_leadership
from replicator.link.port import SourceEnd
from replicator.local_history import LocalHistory
from replicator.messages import Refusal, RefusalCode
from replicator.metrics import Reading
from replicator.promising import answer_about_promises
from replicator.testimony import testify
from replicator.together import together
from replicator.verify_messages import ToVerifier, VerifyRequest

_log = structlog.get_logger()

RETRY_MS = 500
"""Between terms that could not begin."""


class Replicator:
    """One replicator process of a region.

    Invariant: at most one leadership at a time, and only while its term lasts.
    """

    def __init__(self, home: Home, election: Election) -> None:
        self._home = home
        self._election = election
        self._leadership: Leadership | None = None
        self._replaced = ""
        """Why this process may not promise anything: it has seen that an etcd went back."""
        self._history = LocalHistory(
            cluster=home.cluster,
            regional=home.regional,
            coordination=home.coordination,
            clock=home.clock,
            spool=home.spool,
            limits=home.limits,
        )

    def reading(self) -> Reading | None:
        """Return what the leading replicator knows at this moment; None while standing by."""
        return self._leadership.reporter.reading() if self._leadership is not None else None

    async def serve(self, connection: SourceEnd, peer: ClusterName | None) -> None:
        """Serve a target's connection, or say that another replicator leads."""
        leadership = self._leadership
        if leadership is not None:
            await leadership.outbound.serve(connection, peer)
            return
        text = f"{self._home.replicator} stands by: another replicator of this cluster leads"
        try:
            await connection.send(Refusal(code=RefusalCode.NOT_LEADING, text=text))
        except MeshError as error:
            _log.info("target.lost", why=str(error), peer=peer)
        finally:
            await connection.close()

    async def answer(
        self, request: VerifyRequest, peer: ClusterName | None
    ) -> AsyncIterator[ToVerifier]:
        """Answer a target that compares its copy, or say that another replicator leads."""
        leadership = self._leadership
        if leadership is None:
            yield not_leading(f"{self._home.replicator} stands by: another replicator leads")
            return
        async for message in leadership.examiner.answer(request, peer):
            yield message

    async def advise(self, question: Question, peer: PeerIdentity) -> Answer:
        """Answer a question about this region, or say that another replicator leads."""
        if isinstance(question, ReadStanding):
            return await testify(self._home.regional, question, peer)
        if isinstance(question, AskPromises) and self._replaced:
            return Declined(code=DeclineCode.REFUSED, text=self._replaced)
        if isinstance(question, AskPromises | EndPromises):
            return await answer_about_promises(
                self._home.regional, question, peer, me=self._home.cluster
            )
        leadership = self._leadership
        if leadership is None:
            return nobody_at_desk(f"{self._home.replicator} stands by: another replicator leads")
        return await leadership.desk.answer(question, peer)

    async def run(self) -> None:
        """Campaign and lead, term after term, until cancelled; then resign at once."""
        await together(self._history.run(), self._lead_terms())

    async def _lead_terms(self) -> None:
        while True:
            term = await self._election.campaign()
            try:
                await self._lead(term)
            except MeshError as error:
                if isinstance(error, StoreReplaced):
                    self._replaced = str(error)
                _log.error("region.not_led", why=str(error), next=error.hint or "tries again")
            finally:
                self._leadership = None
                await term.resign()
            give_way()
            await self._home.clock.sleep_ms(RETRY_MS)

    async def hand_over(self) -> None:
        """Prepare for a planned end: cancel `run` next, and a successor leads without a gap.

        A round of the chain is completed first, so that permits and beats outlast the change of
        leaders. A replicator that stands by has nothing to hand over. Never raises a `MeshError`.
        """
        leadership = self._leadership
        if leadership is None:
            return
        try:
            await leadership.hand_over()
        except MeshError as error:
            _log.warning("region.handed_over_late", why=str(error))
        else:
            _log.info("region.handed_over", cluster=self._home.cluster)

    async def _lead(self, term: Term) -> None:
        try:
            self._leadership = await begin_leadership(self._home, term, self._history)
            self._replaced = ""
            await self._leadership.run()
        except BaseExceptionGroup as failures:
            expected, bugs = failures.split(MeshError)
            if bugs is not None or expected is None:
                raise
            raise _first(expected.subgroup(StoreReplaced) or expected) from failures


def _first(failures: BaseExceptionGroup[MeshError]) -> MeshError:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
