"""Which side streams a connection asks for, and which groups have to wait with that. Pure.

A group out of step is asked for once. It is asked for anew when the checkpoint was set back behind
what was asked, or when what arrives does not continue it. A group that cannot be applied here as it
is (this cluster is active for some of its keys, or etcd refuses a value) waits, longer each time,
until something about it has changed; the other groups go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs

from meshkit.names import ClusterName, GroupName
from meshkit.pauses import ReplicationPause
from meshkit.regional import GroupCheckpoint, JoinPhase
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.receiver import Receiver
from replicator.record import Record
from replicator.region_state import RegionState
from replicator.shield import Shield


@attrs.frozen
class _Wait:
    """A group that could not be applied. Remembered while it is out of step, for longer waits."""

    until_ms: int
    wait_ms: int
    shield: Shield
    """What this cluster was active for at the time: if that changes the wait is over."""
    is_over: bool = False


class SideRequests:
    """The requests of one stream; `problems` says what is wrong with which group."""

    def __init__(
        self,
        source: ClusterName,
        *,
        paused: Callable[[], Mapping[GroupName, ReplicationPause]] = dict,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.problems: dict[GroupName, str] = {}
        self._source = source
        self._paused = paused
        self._seen_paused: Mapping[GroupName, ReplicationPause] = {}
        self._limits = limits
        self._seen: int | None = None
        self._copying: set[GroupName] = set()
        self._stale: set[GroupName] = set()
        self._waits: dict[GroupName, _Wait] = {}

    def reset(self) -> None:
        """The connection ended: nothing is asked for any more."""
        self.problems.clear()
        self._seen = None
        self._copying.clear()
        self._stale.clear()
        self._waits.clear()

    # --- what became of them -------------------------------------------------------------------

    def on_page(self, group: GroupName) -> None:
        """A page of the copy arrived."""
        self._copying.add(group)
        if group not in self._waits:
            self.problems.pop(group, None)

    def on_stale(self, group: GroupName) -> None:
        """What arrived does not continue the group's checkpoint."""
        self._stale.add(group)
        self._seen = None

    def on_held(
        self, receiver: Receiver, group: GroupName, reason: str, *, shield: Shield, now_ms: int
    ) -> None:
        """The group cannot be applied as it is; its checkpoint was set back to the beginning."""
        before = self._waits.get(group)
        limits = self._limits
        wait_ms = min(2 * before.wait_ms, limits.held_ms_max) if before else limits.held_ms_min
        self._waits[group] = _Wait(now_ms + wait_ms, wait_ms, shield)
        self.problems[group] = reason
        self._leave(receiver, group)

    def on_refused(self, group: GroupName, reason: str) -> None:
        """The source cannot serve the group (yet)."""
        self.problems[group] = reason

    def on_records(self, records: Iterable[Record]) -> None:
        """Records of the main stream were applied: a mark ends the wait of its group."""
        for record in records:
            for mark in record.marks:
                if self._waits.pop(mark.group, None) is not None:
                    self._seen = None

    # --- asking --------------------------------------------------------------------------------

    def is_due(self, version: int, *, now_ms: int) -> bool:
        """Return whether `look` has something to do; `version` counts changes of the state."""
        is_moved = version != self._seen or self._paused() != self._seen_paused
        return is_moved or any(
            not wait.is_over and now_ms >= wait.until_ms for wait in self._waits.values()
        )

    def look(
        self, receiver: Receiver, state: RegionState, *, version: int, now_ms: int
    ) -> list[GroupName]:
        """Ask for every group that is out of step with this source; return those asked for.

        Nothing is asked for a group that is paused, and what was asked is given back.
        """
        self._seen = version
        paused = self._seen_paused = self._paused()
        self._end_waits(state, now_ms)
        wanted = {
            key[1]: own
            for key in state.joins
            if key[0] == self._source
            and key[1] not in paused
            and (own := state.followed(key)) is not None
        }
        for group in (receiver.joined_groups | self.problems.keys()) - wanted.keys():
            self._leave(receiver, group)
            self.problems.pop(group, None)
            self._waits.pop(group, None)
        return [own.group for own in wanted.values() if self._ask(receiver, own)]

    def _end_waits(self, state: RegionState, now_ms: int) -> None:
        if not self._waits:
            return
        shield = state.shield()
        for group, wait in self._waits.items():
            if now_ms >= wait.until_ms or wait.shield != shield:
                self._waits[group] = attrs.evolve(wait, is_over=True)

    def _ask(self, receiver: Receiver, own: GroupCheckpoint) -> bool:
        group = own.group
        wait = self._waits.get(group)
        if wait is not None and not wait.is_over:
            return False
        asked = receiver.joined(group)
        # The side stream asked for is past its beginning, and the checkpoint is back there.
        has_begun = group in self._copying or (asked and asked.phase is not JoinPhase.JOINING)
        is_set_back = own.phase is JoinPhase.JOINING and has_begun
        if asked and asked.epoch == own.epoch and not is_set_back and group not in self._stale:
            return False
        self._copying.discard(group)
        self._stale.discard(group)
        receiver.join(own)
        return True

    def _leave(self, receiver: Receiver, group: GroupName) -> None:
        self._copying.discard(group)
        self._stale.discard(group)
        receiver.leave(group)
