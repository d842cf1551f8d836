"""Putting a region's answers where the coordinator reads them, each once and in order."""

from __future__ import annotations

from meshkit.codec import decode, encode
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.errors import RevisionConflict
from meshkit.keys import CoordinationKeys
from meshkit.mirror import PrefixMirror
from meshkit.model import Holder
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Token
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Delete, KeyValue, ModRevisionIs, Put, Txn, ValueIs

_STOPPING = (CommandStep.DRAIN, CommandStep.SEAL)
"""Commands after which no permit of the group is alive here: our holder goes with the answer."""


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

    async def put(self, answer: Answer, *, epoch: Epoch) -> None:
        """Put the answer, never over one to a newer command.

        With it goes our proof of life for `epoch`, the one of the command, if that was ended by it.
        The guard is the answer as it was last seen; only if that is old news it is read anew.
        """
        key = self._key(answer.group)
        if await self._put_over(self._answered.entries.get(key), answer, epoch):
            return
        if not await self._put_over(await self._coordination.get(key), answer, epoch):
            raise RevisionConflict("another replicator answered meanwhile")

    async def _put_over(self, stored: KeyValue | None, answer: Answer, epoch: Epoch) -> bool:
        """Put the answer if `stored` is what stands; return whether that settled it."""
        if stored is not None and decode(Answer, stored.value).token > answer.token:
            return True
        key = self._key(answer.group)
        guard = ModRevisionIs(key, stored.mod_revision if stored else ABSENT)
        put = Txn(guards=(guard,), operations=(Put(key, encode(answer)),))
        if answer.step in _STOPPING and answer.outcome is AnswerOutcome.DONE:
            outcome = await self._coordination.commit(self._letting_go(put, answer.group, epoch))
            if isinstance(outcome, Committed) or guard in outcome.broken:
                return isinstance(outcome, Committed)
        return isinstance(await self._coordination.commit(put), Committed)

    def _letting_go(self, put: Txn, group: GroupName, epoch: Epoch) -> Txn:
        """Return the transaction that also deletes the holder, if that is ours and of this epoch.

        Whoever was cut off obeys late. Another cluster may hold the group by then, and without its
        proof of life it would be taken for dead while it serves.
        """
        key = CoordinationKeys.holder(group)
        ours = ValueIs(key, encode(Holder(group=group, epoch=epoch, cluster=self._cluster)))
        return Txn(guards=(*put.guards, ours), operations=(*put.operations, Delete(key)))
