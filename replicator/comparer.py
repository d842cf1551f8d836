"""Compares this cluster's copy of a group with its source, at an exact pair of revisions.

The checkpoint here says how far the source's log is applied, and it is read together with the
revision of this etcd at which it says so. Both states are then read as of those revisions, so
writes that go on meanwhile cannot look like differences. What was written here past an apply by
something else is one: it is there at that revision, and not at the source.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import attrs

from fencing.fence_view import FenceView, view_of, view_reads
from meshkit.codec import decode
from meshkit.errors import Refused, Unreachable
from meshkit.keys import CoordinationKeys, RegionalKeys, parts_below
from meshkit.model import Authority
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Revision, Sequence
from meshkit.regional import Checkpoint, FenceMode
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Get, KeyValue, Txn, prefix_range
from replicator.comparison import Differences, differences
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.link.port import Dialer
from replicator.region_state import torn_groups
from replicator.scan import digest_at, entries_at
from replicator.verify_messages import (
    Entries,
    GroupDigest,
    VerifyRefusal,
    VerifyRefusalCode,
    VerifyRequest,
)


class NotComparable(Refused):
    """The copy and its source cannot be compared as they stand; a little later they may be."""

    code = "not_comparable"


class NoCopy(Refused):
    """This cluster holds no copy of the group that follows another cluster."""

    code = "no_copy"


@attrs.frozen(kw_only=True)
class Standing:
    """At `revision` of this etcd, exactly `sequence` of the source's log was applied here."""

    source: ClusterName
    incarnation: Incarnation
    epoch: Epoch
    sequence: Sequence
    revision: Revision
    view: FenceView
    index_revision: Revision
    """Of the fence index: whoever changes what is in step moves it."""


@attrs.frozen(kw_only=True)
class Compared:
    """What one comparison found."""

    at: Standing
    found: Differences

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not self.found.counts.differing


class Comparer:
    """Compares, and changes nothing."""

    def __init__(
        self,
        *,
        cluster: ClusterName,
        regional: Store,
        coordination: Store,
        dialer: Dialer,
        endpoints: Callable[[ClusterName], tuple[str, ...]],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._cluster = cluster
        self._regional = regional
        self._coordination = coordination
        self._dialer = dialer
        self._endpoints = endpoints
        self._limits = limits

    async def compare(self, group: GroupName) -> Compared:
        """Compare the copy of a group with its source, once.

        Raises:
            NoCopy: there is nothing to compare here.
            NotComparable, Compacted, Unreachable: not now; try again.
        """
        at = await self._standing(group)
        request = VerifyRequest(
            target=self._cluster,
            source=at.source,
            incarnation=at.incarnation,
            group=group,
            epoch=at.epoch,
            sequence=at.sequence,
        )
        theirs = await self._digest(request)
        ours = await digest_at(self._regional, theirs.prefixes, at.revision, limits=self._limits)
        try:
            buckets = ours.differing(theirs.digest)
        except ValueError as error:
            raise NotComparable(f"{at.source} speaks another version: {error}") from error
        found = Differences()
        if buckets:
            asked = attrs.evolve(request, buckets=buckets)
            here = entries_at(
                self._regional, theirs.prefixes, at.revision, buckets, limits=self._limits
            )
            async with aclosing(self._entries(asked)) as there:
                found = await differences(there, here)
        found.counts = attrs.evolve(
            found.counts, source_keys=theirs.digest.keys_count, target_keys=ours.keys_count
        )
        if bool(buckets) is not bool(found.counts.differing):
            raise NotComparable(f"{at.source} answered twice about one revision, and not the same")
        return Compared(at=at, found=found)

    # --- where the copy stands -----------------------------------------------------------------

    async def _standing(self, group: GroupName) -> Standing:
        source, epoch = await self._followed(group)
        reads = (*view_reads(group), Get(*prefix_range(RegionalKeys.checkpoints)))
        outcome = await self._regional.commit(Txn(operations=reads))
        assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
        view = view_of(group, outcome.reads[:-1])
        _check_follows(view, epoch)
        checkpoint = _checkpoint_in_step(outcome.reads[-1], group, source)
        index = outcome.reads[1]
        return Standing(
            source=source,
            incarnation=checkpoint.incarnation,
            epoch=epoch,
            sequence=checkpoint.sequence,
            revision=outcome.revision,
            view=view,
            index_revision=index[0].mod_revision if index else ABSENT,
        )

    async def _followed(self, group: GroupName) -> tuple[ClusterName, Epoch]:
        item = await self._coordination.get(CoordinationKeys.authority(group))
        if item is None:
            raise NoCopy(f"nobody is active for {group} yet")
        authority = decode(Authority, item.value)
        if authority.active == self._cluster:
            raise NoCopy(f"{self._cluster} is active for {group}: it is what copies compare with")
        return authority.active, authority.epoch

    # --- asking the source ---------------------------------------------------------------------

    async def _digest(self, request: VerifyRequest) -> GroupDigest:
        async with aclosing(self._ask(request)) as answers:
            async for message in answers:
                if isinstance(message, GroupDigest):
                    return message
        raise NotComparable(f"{request.source} gave no digest")

    async def _entries(
        self, request: VerifyRequest
    ) -> AsyncGenerator[tuple[tuple[bytes, bytes], ...], None]:
        async with aclosing(self._ask(request)) as answers:
            async for message in answers:
                if isinstance(message, Entries):
                    yield message.entries

    async def _ask(self, request: VerifyRequest) -> AsyncGenerator[GroupDigest | Entries, None]:
        """Yield the answer of the source's leading replicator, wherever that is."""
        problems: list[str] = []
        has_begun = False
        for endpoint in self._endpoints(request.source):
            try:
                async with aclosing(self._dialer.ask(request.source, endpoint, request)) as answers:
                    async for message in answers:
                        if isinstance(message, VerifyRefusal):
                            problems.append(_refused(message))
                            break
                        has_begun = True
                        yield message
                    else:
                        return
            except Unreachable as error:
                if has_begun:
                    raise
                problems.append(str(error))
        why = "; ".join(problems) or "no endpoint of it is known"
        raise Unreachable(f"{request.source} does not answer: {why}")


def _refused(refusal: VerifyRefusal) -> str:
    """Return why this endpoint does not answer.

    Raises:
        NotComparable: no other endpoint would either.
    """
    if refusal.code is VerifyRefusalCode.NOT_LEADING:
        return refusal.text
    raise NotComparable(refusal.text)


def _check_follows(view: FenceView, epoch: Epoch) -> None:
    """Refuse a copy that does not follow the present epoch.

    Raises:
        NotComparable: it does not, or not yet.
    """
    fence = view.fence
    if fence is None:
        raise NotComparable(f"this cluster has not had to do with {view.group} yet")
    if fence.mode is not FenceMode.SUPERSEDED or fence.epoch != epoch:
        raise NotComparable(
            f"the fence of {view.group} is {fence.mode.value} in epoch {fence.epoch} here,"
            f" and the present epoch is {epoch}"
        )


def _checkpoint_in_step(
    items: tuple[KeyValue, ...], group: GroupName, source: ClusterName
) -> Checkpoint:
    """Return the main checkpoint of `source`, if it speaks for the group.

    Raises:
        NotComparable: it does not: the group is out of step, or the stream has not begun.
    """
    for item in items:
        parts = parts_below(RegionalKeys.checkpoints, item.key)
        if parts is not None and len(parts) == 2 and parts[1] == group:
            raise NotComparable(f"the copy of {group} is not in step: it is being made")
    if group in torn_groups(items):
        raise NotComparable(f"{group} holds a part of a transaction here, and not yet the whole")
    for item in items:
        if item.key == RegionalKeys.checkpoint(source):
            return decode(Checkpoint, item.value)
    raise NotComparable(f"nothing of {source} has been applied here yet")
