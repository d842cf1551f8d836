"""Answers what is asked of a region beside its streams: its quarantine, its keys, a replay.

A coordinator may ask about the quarantine, for foreign writes and for replays, because an operator
asked it; another cluster may read keys of a group, which it may stream anyhow, and tell of a seal.
Nobody else is answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from meshkit import asking
from meshkit.asking import (
    Answer,
    Change,
    Counted,
    DeclineCode,
    Declined,
    EntriesPage,
    EpochStart,
    ForeignKey,
    ForeignListed,
    KeyState,
    KeyStates,
    Question,
    ReplayOutcome,
    ReplayResult,
    ReplayResults,
    WholeEntries,
    WholeEntry,
)
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import MeshError, NotFound, OutcomeUnknown, Refused
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT
from meshkit.peer import PeerIdentity
from meshkit.regional import SegmentScope
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Delete, Guard, Operation, Put, Txn, ValueIs, absent
from replicator.foreign_watch import ForeignWrites
from replicator.quarantine import Quarantine
from replicator.source import load_segments
from replicator.tail import head_of, read_at, read_now

_log = structlog.get_logger()

STATE_KEYS_MAX = 500
STATE_BYTES_MAX = 2 * 1024 * 1024
VALUES_BYTES_MAX = 2 * 1024 * 1024
"""Of entries in one answer; a single one may be larger."""

_OF_COORDINATORS = (
    asking.ListEntries,
    asking.ReadEntries,
    asking.DiscardEntries,
    asking.MarkReplayed,
    asking.ReplayChanges,
    asking.ReadForeign,
)


OnSealed = Callable[[asking.TellSealed, ClusterName], Awaitable[bool]]
"""Obeys a seal that a cluster tells of, and returns whether the log ends here."""


class Desk:
    """Answers while this replicator leads its region."""

    def __init__(
        self,
        *,
        store: Store,
        leader: Guard,
        clock: Clock,
        is_leading: Callable[[], bool],
        on_sealed: OnSealed,
    ) -> None:
        self._store = store
        self._on_sealed = on_sealed
        self._clock = clock
        self._is_leading = is_leading
        self._quarantine = Quarantine(regional=store, leader=leader)

    async def answer(self, question: Question, peer: PeerIdentity) -> Answer:
        """Return the answer to a verified peer."""
        wanted = "coordinator" if isinstance(question, _OF_COORDINATORS) else "cluster"
        if peer.role != wanted:
            text = f"{peer} may not ask for {type(question).__name__}"
            return Declined(code=DeclineCode.NOT_ALLOWED, text=text)
        if not self._is_leading():
            return not_leading("this replicator does not lead")
        try:
            return await self._answered(question, peer)
        except NotFound as error:
            return Declined(code=DeclineCode.NOT_FOUND, text=str(error))
        except MeshError as error:
            return Declined(code=DeclineCode.REFUSED, text=str(error))

    async def _answered(self, question: Question, peer: PeerIdentity) -> Answer:
        match question:
            case asking.ReadKeys() | asking.ReadState() | asking.ReadEpoch() | asking.TellSealed():
                return await self._of_cluster(question, ClusterName(peer.name))
            case asking.ReplayChanges():
                return await self._replay(question)
            case asking.ReadForeign():
                return await self._foreign(question)
            case asking.ReadStanding() | asking.AskPromises() | asking.EndPromises():
                raise Refused("this is for the replicator itself, whoever leads")
            case _:
                return await self._about_quarantine(question)

    async def _of_cluster(self, question: asking.OfClusters, peer: ClusterName) -> Answer:
        match question:
            case asking.ReadKeys():
                return await self._keys(question)
            case asking.ReadState():
                return await self._state(question)
            case asking.ReadEpoch():
                return await self._epoch(question)
            case asking.TellSealed():
                return asking.SealHeard(is_cut=await self._on_sealed(question, peer))

    # --- quarantine ----------------------------------------------------------------------------

    async def _about_quarantine(self, question: asking.AboutQuarantine) -> Answer:
        match question:
            case asking.ListEntries():
                page = await self._quarantine.page(
                    question.group,
                    epoch=question.epoch,
                    start=question.start,
                    limit=question.limit,
                )
                return EntriesPage(entries=page.entries, next_key=page.next_key)
            case asking.ReadEntries():
                return await self._whole(question)
            case asking.DiscardEntries():
                return await self._discard(question)
            case asking.MarkReplayed():
                return await self._mark(question)

    async def _whole(self, question: asking.ReadEntries) -> WholeEntries:
        found: list[WholeEntry] = []
        size = 0
        for name in question.entries[: asking.NAMES_MAX]:
            one = await self._quarantine.whole(question.group, name.epoch, name.name)
            size += len(one.here or b"") + len(one.there or b"")
            if found and size > VALUES_BYTES_MAX:
                break
            found.append(WholeEntry(entry=one.entry, here=one.here, there=one.there))
        return WholeEntries(entries=tuple(found))

    async def _discard(self, question: asking.DiscardEntries) -> Counted:
        count = 0
        for entry in question.entries[: asking.NAMES_MAX]:
            count += await self._quarantine.discard(question.group, entry.epoch, entry.name)
        _log.warning("quarantine.discarded", group=question.group, entries=count)
        return Counted(count=count)

    async def _mark(self, question: asking.MarkReplayed) -> Counted:
        count = 0
        for entry in question.entries[: asking.NAMES_MAX]:
            found = await self._quarantine.whole(question.group, entry.epoch, entry.name)
            now_ms = self._clock.wall_ms()
            await self._quarantine.mark_replayed(found.entry, by=question.by, now_ms=now_ms)
            count += 1
        return Counted(count=count)

    # --- replay --------------------------------------------------------------------------------

    async def _replay(self, question: asking.ReplayChanges) -> ReplayResults:
        """Make each change through the permit, as any guarded write is made.

        Raises:
            Refused: this cluster does not accept writes of the group.
        """
        group = question.group
        prefixes = await self._scope(group)
        permit = await self._store.get(RegionalKeys.permit(group))
        if permit is None:
            raise Refused(f"no permit of {group} is here: this cluster does not accept its writes")
        gate = ValueIs(RegionalKeys.permit(group), permit.value)
        results = []
        for change in question.changes[: asking.NAMES_MAX]:
            if not change.key.startswith(prefixes):
                reason = "the group does not cover this key"
                results.append(_result(change, ReplayOutcome.REFUSED, reason))
            else:
                results.append(await self._make(change, gate))
        return ReplayResults(results=tuple(results))

    async def _make(self, change: Change, gate: ValueIs) -> ReplayResult:
        as_it_was: Guard = (
            absent(change.key) if change.there is None else ValueIs(change.key, change.there)
        )
        operation: Operation = (
            Delete(change.key) if change.here is None else Put(change.key, change.here)
        )
        has_unknown = False
        try:
            outcome = await self._store.commit(
                Txn(guards=(gate, as_it_was), operations=(operation,))
            )
        except OutcomeUnknown:
            has_unknown = True
        else:
            if isinstance(outcome, Committed):
                return _result(change, ReplayOutcome.REPLAYED)
            if gate in outcome.broken:
                reason = "writes were given away meanwhile: the permit is gone"
                return _result(change, ReplayOutcome.REFUSED, reason)
        now = await self._store.get(change.key)
        if (now.value if now else None) == change.here:
            done = ReplayOutcome.REPLAYED if has_unknown else ReplayOutcome.ALREADY
            return _result(change, done)
        if has_unknown:
            return _result(change, ReplayOutcome.UNKNOWN, "the reply was lost; look at the key")
        reason = "the key has another value than when this was set aside"
        return _result(change, ReplayOutcome.REFUSED, reason)

    # --- keys ----------------------------------------------------------------------------------

    async def _scope(self, group: GroupName) -> tuple[bytes, ...]:
        segment = (await load_segments(self._store, await head_of(self._store))).newest(group)
        if segment is None or not segment.is_open:
            raise Refused(f"{group} is not active here")
        return segment.prefixes

    async def _keys(self, question: asking.ReadKeys) -> KeyStates:
        prefixes = await self._scope(question.group)
        keys = [key for key in question.keys[: asking.NAMES_MAX] if key.startswith(prefixes)]
        revision = question.revision or await head_of(self._store)
        if question.revision is None:
            found = await read_now(self._store, keys)
        else:
            found = await read_at(self._store, keys, revision)
        items = (
            KeyState(
                key=key,
                value=found[key].value if key in found else None,
                modified=found[key].mod_revision if key in found else ABSENT,
            )
            for key in keys
        )
        return KeyStates(revision=revision, items=tuple(items))

    async def _foreign(self, question: asking.ReadForeign) -> ForeignListed:
        """Return what is listed of writes that bypassed the permit: keys, never values."""
        item = await self._store.get(RegionalKeys.foreign(question.group))
        if item is None:
            return ForeignListed()
        writes = decode(ForeignWrites, item.value)
        latest = (
            ForeignKey(key=one.key, revision=one.revision, deleted=one.deleted)
            for one in writes.latest
        )
        return ForeignListed(count=writes.count, latest=tuple(latest))

    async def _epoch(self, question: asking.ReadEpoch) -> EpochStart:
        group, epoch = question.group, question.epoch
        item = await self._store.get(RegionalKeys.segment_opened(group, epoch))
        scope = await self._store.get(RegionalKeys.segment_scope(group, epoch))
        if item is None or scope is None:
            raise NotFound(f"epoch {epoch} of {group} did not begin here")
        prefixes = decode(SegmentScope, scope.value).prefixes
        return EpochStart(
            opened=item.mod_revision, prefixes=tuple(prefix.encode() for prefix in prefixes)
        )

    async def _state(self, question: asking.ReadState) -> KeyStates:
        prefixes = await self._scope(question.group)
        if not question.start.startswith(prefixes):
            raise Refused(f"{question.group} does not cover {question.start!r}")
        result = await self._store.range(
            (question.start, question.end), revision=question.revision, limit=STATE_KEYS_MAX
        )
        items: list[KeyState] = []
        size = 0
        for item in result.items:
            if items and size > STATE_BYTES_MAX:
                return KeyStates(revision=result.revision, items=tuple(items), next_key=item.key)
            items.append(KeyState(key=item.key, value=item.value, modified=item.mod_revision))
            size += len(item.key) + len(item.value)
        more = items[-1].key + b"\x00" if result.more else None
        return KeyStates(revision=result.revision, items=tuple(items), next_key=more)


def not_leading(text: str) -> Declined:
    """Return the answer by which whoever asks tries the next endpoint."""
    return Declined(code=DeclineCode.NOT_LEADING, text=text)


def _result(change: Change, outcome: ReplayOutcome, reason: str = "") -> ReplayResult:
    return ReplayResult(key=change.key, outcome=outcome, reason=reason)
