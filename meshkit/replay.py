"""Sending a group's history again: what is asked for and what came of it. Pure."""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NOTHING, Sequence

FIRST_SEQUENCE = Sequence(2)
"""The first revision of an etcd that can hold a record: revision 1 is the empty store."""


class ResentOutcome(enum.Enum):
    """What came of sending history again."""

    DONE = "done"
    """All of it came again, and was recognised as applied."""
    REFUSED = "refused"
    """It could not be sent, or not to the end; `reason` says why. Nothing was changed."""


@attrs.frozen(kw_only=True)
class Replay(Stored):
    """Asks a cluster to have a group's history sent again, from a place in its source's log on."""

    SCHEMA: ClassVar[str] = "replay"

    id: str
    group: GroupName
    target: ClusterName
    start: Sequence
    """The first sequence that is to come again."""
    requested_by: str
    requested_ms: int


@attrs.frozen(kw_only=True)
class ReplayResult(Stored):
    """What came of one request."""

    SCHEMA: ClassVar[str] = "replay-result"

    id: str
    """Of the request."""
    group: GroupName
    target: ClusterName
    outcome: ResentOutcome
    source: ClusterName | None = None
    start: Sequence = NOTHING
    through: Sequence = NOTHING
    """Up to here was applied when it was asked, and came again."""
    records: int = 0
    """Records of the group that came again..."""
    duplicates: int = 0
    """...and were recognised as applied, by their sequence. Always all of them."""
    reason: str = ""
    began_ms: int = 0
    ended_ms: int = 0
