"""Asks the cluster that is active for a group, through its leading replicator."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence

import attrs

from meshkit import asking
from meshkit.asker import AskRegion, NobodyToAsk, ask_leader
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Revision
from meshkit.ordinals import Sequence as LogSequence
from meshkit.store.txn import prefix_range
from replicator.tail import Theirs

KEYS_AT_ONCE_MAX = 64


@attrs.frozen(kw_only=True)
class StatePage:
    """All keys of the other side in `[start, end)`."""

    start: bytes
    end: bytes
    values: dict[bytes, bytes]


@attrs.frozen(kw_only=True)
class Elsewhere:
    """What other clusters hold, and the one thing they are told: that a group is sealed."""

    asker: AskRegion
    endpoints: Callable[[ClusterName], tuple[str, ...]]

    async def epoch_start(
        self, cluster: ClusterName, group: GroupName, epoch: Epoch
    ) -> asking.EpochStart:
        """Return where an epoch began at the cluster that opened it.

        Raises:
            NotFound: it did not begin there.
            Unreachable: it does not answer.
        """
        question = asking.ReadEpoch(group=group, epoch=epoch)
        return await ask_leader(
            self.asker, cluster, self.endpoints(cluster), question, asking.EpochStart
        )

    async def tell_sealed(self, cluster: ClusterName, told: asking.TellSealed) -> bool:
        """Tell a cluster that a group is sealed; return whether the epoch's log has ended there.

        Raises:
            Refused, Unreachable: it did not hear, or does not obey; tell it again.
        """
        endpoints = self.endpoints(cluster)
        heard = await ask_leader(self.asker, cluster, endpoints, told, asking.SealHeard)
        return heard.is_cut

    async def keys(
        self,
        cluster: ClusterName,
        group: GroupName,
        keys: Sequence[bytes],
        revision: Revision | None = None,
    ) -> Theirs:
        """Return what some keys have there, now or at a revision.

        Raises:
            Refused, Unreachable: it does not say.
        """
        values: dict[bytes, bytes | None] = {}
        at = revision
        for start in range(0, len(keys), KEYS_AT_ONCE_MAX):
            some = tuple(keys[start : start + KEYS_AT_ONCE_MAX])
            question = asking.ReadKeys(group=group, keys=some, revision=revision)
            found = await ask_leader(
                self.asker, cluster, self.endpoints(cluster), question, asking.KeyStates
            )
            values |= {item.key: item.value for item in found.items}
            at = at or found.revision
        sequence = LogSequence(at) if at is not None else None
        return Theirs(values=values, cluster=cluster, sequence=sequence)

    async def state(
        self,
        cluster: ClusterName,
        group: GroupName,
        prefixes: tuple[bytes, ...],
        revision: Revision | None,
    ) -> AsyncGenerator[StatePage, None]:
        """Yield the whole state of a group there, page by page, leaving no key range out.

        Raises:
            Refused, Unreachable: it does not say, or no longer (compacted).
        """
        for start, end in map(prefix_range, sorted(prefixes)):
            at = start
            while at < end:
                question = asking.ReadState(group=group, start=at, end=end, revision=revision)
                found = await ask_leader(
                    self.asker, cluster, self.endpoints(cluster), question, asking.KeyStates
                )
                upto = found.next_key or end
                values = {i.key: i.value for i in found.items if i.value is not None}
                yield StatePage(start=at, end=upto, values=values)
                at = upto


NOWHERE = Elsewhere(asker=NobodyToAsk(), endpoints=lambda _: ())
"""Reaches nobody."""
