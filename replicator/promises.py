"""Asking other clusters for promises, at every endpoint at once. Satisfies `fencing.keeping`.

Any replicator of a cluster may answer, and to be promised a thing twice does no harm; so whoever
answers first is believed, and one that hangs costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from collections.abc import Set as AbstractSet

import attrs
import structlog

from meshkit.asker import AskRegion, RegionSilent
from meshkit.asking import AboutPromises, Answer, AskPromises, Declined, EndPromises, Promised
from meshkit.errors import MeshError, Refused
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Revision
from meshkit.store.port import Store
from replicator.promising import known_coordination

_log = structlog.get_logger()


@attrs.frozen(kw_only=True, eq=False)
class AskedPromises:
    """Promises asked for over whatever reaches other clusters' replicators."""

    asker: AskRegion
    regional: Store
    endpoints: Callable[[ClusterName], tuple[str, ...]]
    on_overtaken: Callable[[GroupName, Epoch], Coroutine[None, None, None]]
    """Awaited for each group that a member knows a newer epoch of: we were superseded unseen. It
    is stored, because nobody may ever promise again what that member refuses today."""

    async def ask(
        self,
        member: ClusterName,
        groups: Mapping[GroupName, Epoch],
        *,
        term: Revision,
        number: int,
        ttl_s: int,
    ) -> AbstractSet[GroupName]:
        """Return which of the groups `member` has promised not to open, for `ttl_s` from now on.

        Raises:
            MeshError: it does not answer, or not as it was asked.
        """
        question = AskPromises(
            groups=groups,
            coordination=await known_coordination(self.regional),
            term=term,
            round=number,
            ttl_s=ttl_s,
        )
        answer = await self._first(member, question)
        if not isinstance(answer, Promised) or answer.cluster != member:
            raise Refused(f"{member} answered with {answer}")
        if answer.groups and answer.ttl_s < ttl_s:
            raise Refused(f"{member} promised only {answer.ttl_s} s, not {ttl_s}")
        if answer.refused:
            group, why = next(iter(answer.refused.items()))
            _log.warning(
                "promise.refused", member=member, count=len(answer.refused), group=group, why=why
            )
        for group in sorted(answer.overtaken.keys() & groups.keys()):
            await self._obey(group, answer.overtaken[group], member)
        return frozenset(answer.groups) & groups.keys()

    async def _obey(self, group: GroupName, epoch: Epoch, member: ClusterName) -> None:
        _log.warning("promise.overtaken", group=group, epoch=epoch, member=member)
        try:
            await self.on_overtaken(group, epoch)
        except MeshError as error:
            _log.warning("promise.overtaken_not_obeyed", group=group, why=str(error))

    async def end(
        self, member: ClusterName, groups: AbstractSet[GroupName], *, term: Revision, number: int
    ) -> None:
        """Tell `member` that what was asked for in this term up to `number` is not relied on."""
        question = EndPromises(groups=tuple(sorted(groups)), term=term, round=number)
        await self._first(member, question)

    async def _first(self, member: ClusterName, question: AboutPromises) -> Answer:
        """Return the first answer that is none from somebody who cannot answer."""
        asking = [
            asyncio.ensure_future(self.asker.ask(member, endpoint, question))
            for endpoint in self.endpoints(member)
        ]
        problems = []
        try:
            for answered in asyncio.as_completed(asking):
                try:
                    answer = await answered
                except MeshError as error:
                    problems.append(str(error))
                    continue
                if not isinstance(answer, Declined):
                    return answer
                problems.append(answer.text)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        why = "; ".join(problems) or "no endpoint of it is known"
        raise RegionSilent(f"{member} does not answer: {why}")
