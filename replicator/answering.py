"""Putting a region's answers where the coordinator reads them, each once and in order."""

from __future__ import annotations

from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.errors import RevisionConflict
from meshkit.keys import CoordinationKeys
from meshkit.mirror import PrefixMirror
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Token
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Delete, KeyValue, ModRevisionIs, Operation, Put, Txn

_STOPPING = (CommandStep.DRAIN, CommandStep.SEAL)
"""Commands after which no permit of the group is alive here: the holder goes with the answer."""


class Answering:
    """Puts the answers of one cluster; `answered` mirrors those that stand."""

    def __init__(self, cluster: ClusterName, coordination: Store, answered: PrefixMirror) -> None:
        self._cluster = cluster
        self._coordination = coordination
        self._answered = answered

    def is_answered(self, command: Command, token: Token) -> bool:
        """Return whether the answer stands already: a successor does not do old commands again."""
        stored = self._answered.entries.get(self._key(command.group))
        return stored is not None and decode(Answer, stored.value).token >= token

    def _key(self, group: GroupName) -> bytes:
        return CoordinationKeys.answer(self._cluster, group)

    async def put(self, answer: Answer) -> None:
        """Put the answer, never over one to a newer command; drained also lets the holder go.

        The guard is the answer as it was last seen; only if that is old news it is read anew.
        """
        key = self._key(answer.group)
        if await self._put_over(self._answered.entries.get(key), answer):
            return
        if not await self._put_over(await self._coordination.get(key), answer):
            raise RevisionConflict("another replicator answered meanwhile")

    async def _put_over(self, stored: KeyValue | None, answer: Answer) -> bool:
        """Put the answer if `stored` is what stands; return whether that settled it."""
        if stored is not None and decode(Answer, stored.value).token > answer.token:
            return True
        key = self._key(answer.group)
        operations: list[Operation] = [Put(key, encode(answer))]
        if answer.step in _STOPPING and answer.outcome is AnswerOutcome.DONE:
            operations.append(Delete(CoordinationKeys.holder(answer.group)))
        guard = ModRevisionIs(key, stored.mod_revision if stored else ABSENT)
        outcome = await self._coordination.commit(
            Txn(guards=(guard,), operations=tuple(operations))
        )
        return isinstance(outcome, Committed)
