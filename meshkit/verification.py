"""Comparing a copy with its source: what is asked for and what was found. Pure.

The request and the result lie in the coordination etcd, which application data never enters: they
hold numbers. The keys that differed stay in the etcd of the cluster whose copy it is.
"""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, NOTHING, Epoch, Revision, Sequence


class VerifyOutcome(enum.Enum):
    """What came of comparing a copy with its source."""

    EQUAL = "equal"
    DIFFERENT = "different"
    REPAIRED = "repaired"
    """It differed, was copied anew, and was equal then."""
    REFUSED = "refused"
    """It could not be compared; `reason` says why."""


@attrs.frozen(kw_only=True)
class Verify(Stored):
    """Asks a cluster to compare its copy of a group with the group's active cluster."""

    SCHEMA: ClassVar[str] = "verify"

    id: str
    group: GroupName
    target: ClusterName
    repair: bool
    """Whether the copy is to be made anew if it differs."""
    requested_by: str
    requested_ms: int


@attrs.frozen(kw_only=True)
class Counts:
    """How many keys were compared, and how many of them differ in which way."""

    source_keys: int = 0
    target_keys: int = 0
    only_source: int = 0
    only_target: int = 0
    different: int = 0
    """There on both sides, with different values."""

    @property
    def differing(self) -> int:
        """How many keys differ in any way."""
        return self.only_source + self.only_target + self.different


@attrs.frozen(kw_only=True)
class VerifyResult(Stored):
    """What came of one request. The counts are those of the first comparison, before a repair."""

    SCHEMA: ClassVar[str] = "verify-result"

    id: str
    """Of the request."""
    group: GroupName
    target: ClusterName
    outcome: VerifyOutcome
    source: ClusterName | None = None
    epoch: Epoch | None = None
    source_sequence: Sequence = NOTHING
    """The revision of the source's etcd that was compared with..."""
    target_revision: Revision = ABSENT
    """...this revision of the target's etcd, at which exactly that much was applied."""
    counts: Counts = attrs.field(factory=Counts)
    reason: str = ""
    where: str = ""
    """The key in the target's etcd that lists the keys that differ."""
    began_ms: int = 0
    ended_ms: int = 0


@attrs.frozen(kw_only=True)
class VerifyFindings(Stored):
    """The keys that differed when the copy here was last compared; as many as fit."""

    SCHEMA: ClassVar[str] = "verify-findings"

    id: str
    """Of the request."""
    group: GroupName
    source: ClusterName
    epoch: Epoch
    source_sequence: Sequence
    target_revision: Revision
    counts: Counts
    only_source: tuple[bytes, ...] = ()
    only_target: tuple[bytes, ...] = ()
    different: tuple[bytes, ...] = ()
    more: int = 0
    """How many more keys differ than are listed here."""
    repairing: bool = False
    """Whether it was stored with the join by which the copy is made anew."""
    began_ms: int = 0
