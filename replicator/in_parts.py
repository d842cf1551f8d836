"""Applies a record that one transaction of this region does not take: in parts, or parked.

What etcd refuses as it is, is tried again in halves. Down to a single write: that one is refused
for good, and its group is parked, which is to be out of step, with the reason stored and shown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from meshkit.errors import InvalidInput, NotAllowed, TooLarge
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Sequence
from meshkit.regional import ParkedWrite
from meshkit.store.txn import Put
from replicator.draft import ApplyPlan, Hold, Standpoint
from replicator.portions import Portion, TakenWrite, plan_parked, plan_portion
from replicator.record import Record, Write
from replicator.region_state import RegionState
from replicator.room import Room
from replicator.transaction import Prepared

_log = structlog.get_logger()

REFUSALS = (InvalidInput, NotAllowed, TooLarge)
"""What etcd says of a request that it will never take as it is."""

KEY_BYTES_MAX = 400
"""Of a key that is told of: a longer one is cut off."""

Settle = Callable[[Callable[[RegionState], "Prepared | Hold | None"]], Awaitable[object]]
Prepare = Callable[[RegionState, ApplyPlan, bool], Prepared]
"""A plan as a transaction, which moves the main checkpoint or does not."""


class InParts:
    """Applies one record, or one piece of one, whole by its last part."""

    def __init__(
        self,
        *,
        source: ClusterName,
        settle: Settle,
        prepare: Prepare,
        at: Callable[[], Standpoint],
        room: Callable[[], Room],
    ) -> None:
        self._source = source
        self._settle = settle
        self._prepare = prepare
        self._at = at
        self._room = room

    async def apply(self, record: Record) -> Hold | None:
        """Apply what is still to come of a record; a hold stops where it is.

        Raises:
            NotAllowed: etcd refuses even to be told what it refuses.
        """
        room = self._room()
        while True:
            portion: Portion | None = None

            def build(state: RegionState, room: Room = room) -> Prepared | Hold | None:
                nonlocal portion
                portion = None
                own = state.checkpoints.get(self._source)
                if own is not None and own.sequence >= record.sequence:
                    return None
                planned = plan_portion(state, record, self._at(), room=room)
                if isinstance(planned, Hold):
                    return planned
                portion = planned
                if planned.plan is None:
                    return None
                return self._prepare(state, planned.plan, planned.plan.parts is None)

            try:
                result = await self._settle(build)
            except REFUSALS as error:
                taken = _refused(portion)
                if len(taken) == 1:
                    await self._park(record, taken[0], error)
                room = room.less(len(taken)) if len(taken) > 1 else self._room()
                continue
            if isinstance(result, Hold):
                return result
            if portion is None or portion.is_end:
                return None
            room = room.more(self._room())

    async def _park(
        self, record: Record, refused: TakenWrite, error: InvalidInput | NotAllowed | TooLarge
    ) -> None:
        group = refused.group
        write = parked(group, self._source, record.sequence, refused.write, str(error))

        def build(state: RegionState) -> Prepared | None:
            plan = plan_parked(state, group, refused.epoch, self._at(), write=write)
            return self._prepare(state, plan, False) if plan.is_durable else None

        await self._settle(build)
        _log.error("write.parked", group=group, source=self._source, why=write.problem)


def _refused(portion: Portion | None) -> tuple[TakenWrite, ...]:
    """Return the writes that were refused; without any there is nothing to halve."""
    assert portion is not None
    assert portion.taken, "a transaction without writes is never too large"
    return portion.taken


def parked(
    group: GroupName, source: ClusterName, sequence: Sequence, write: Write, reason: str
) -> ParkedWrite:
    """Return what is told of a write that etcd here refuses."""
    return ParkedWrite(
        group=group,
        source=source,
        sequence=sequence,
        key=write.key[:KEY_BYTES_MAX].decode(errors="backslashreplace"),
        value_bytes=len(write.value) if isinstance(write, Put) else 0,
        reason=reason,
    )
