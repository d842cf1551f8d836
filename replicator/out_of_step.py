"""Which groups are out of step here with one source, for that source to know. Pure.

Its lag counts what these groups lack, which only this cluster knows: the main stream skips them and
goes on. So whoever acknowledges the main stream says of which groups that is no acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from types import MappingProxyType

from meshkit.names import ClusterName, GroupName
from meshkit.regional import FenceMode, GroupCheckpoint, JoinPhase
from meshkit.status import WhyBehind
from replicator.messages import OutOfStep
from replicator.region_state import RegionState

LOOK_MS = 100
"""How far a group has come is told at most so often; that one has fallen out of step, at once."""

TEXT_MAX = 300

NONE: Mapping[GroupName, OutOfStep] = MappingProxyType({})


class OutOfStepHere:
    """What is out of step with one source, as last looked at.

    Invariant: every group with a checkpoint of its own is in it. How far one has come may be older
    than the truth, never newer.
    """

    def __init__(
        self, source: ClusterName, *, paused: Callable[[], Container[GroupName]] = frozenset
    ) -> None:
        self._source = source
        self._paused = paused
        self._last = NONE
        self._looked_ms = 0

    def look(self, state: RegionState, *, now_ms: int) -> Mapping[GroupName, OutOfStep]:
        """Return the groups out of step as this state of the region shows them."""
        main = state.checkpoints.get(self._source)
        own = {g: at for (source, g), at in state.joins.items() if source == self._source}
        if own.keys() != self._last.keys() or now_ms - self._looked_ms >= LOOK_MS:
            self._looked_ms = now_ms
            paused = self._paused()
            self._last = {
                group: OutOfStep(
                    group=group,
                    why=_why(state, at, is_paused=group in paused).value,
                    position=at.contained if main and at.incarnation == main.incarnation else None,
                    text=_text(state, at)[:TEXT_MAX],
                )
                for group, at in own.items()
            }
        return self._last


def _why(state: RegionState, own: GroupCheckpoint, *, is_paused: bool) -> WhyBehind:
    fence = state.fences.get(own.group)
    if is_paused:
        return WhyBehind.PAUSED
    if fence is not None and fence.mode is FenceMode.HELD:
        return WhyBehind.HELD
    if own.group in state.parked:
        return WhyBehind.PARKED
    match own.phase:
        case JoinPhase.AHEAD:
            return WhyBehind.AHEAD
        case JoinPhase.JOINING:
            return WhyBehind.JOINING
        case JoinPhase.COPYING | JoinPhase.FOLLOWING:
            return WhyBehind.RECONCILING


def _text(state: RegionState, own: GroupCheckpoint) -> str:
    parked = state.parked.get(own.group)
    return parked.problem if parked is not None else own.reason
