"""What one asks a region's replicators beside their streams: quarantine, keys, promises. Pure.

Application data passes through here on its way to an operator, and never through the coordination
etcd. How messages look on the wire: `meshkit.asking_codec`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from meshkit.incarnations import Suspension
from meshkit.model import Lineage, Routing
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.quarantine import QuarantineEntry
from meshkit.regional import Fence

NAMES_MAX = 100
"""Entries that one message may be about."""


@attrs.frozen(kw_only=True)
class ListEntries:
    """Asks for the next entries of a group's quarantine."""

    group: GroupName
    epoch: Epoch | None = None
    start: bytes | None = None
    limit: int = 100


@attrs.frozen(kw_only=True)
class EntryName:
    """Names one entry of a group."""

    epoch: Epoch
    name: str


@attrs.frozen(kw_only=True)
class ReadEntries:
    """Asks for entries with their values whole: as many of the first ones as one answer holds."""

    group: GroupName
    entries: tuple[EntryName, ...]


@attrs.frozen(kw_only=True)
class DiscardEntries:
    """Asks to remove entries for ever."""

    group: GroupName
    entries: tuple[EntryName, ...]


@attrs.frozen(kw_only=True)
class MarkReplayed:
    """Says that entries were replayed at the active cluster."""

    group: GroupName
    entries: tuple[EntryName, ...]
    by: str


@attrs.frozen(kw_only=True)
class Change:
    """One change to be made again, if the key still has what it had when it was set aside."""

    key: bytes
    here: bytes | None = None
    """The value to write; None deletes."""
    there: bytes | None = None
    """What the key must have; None: it must not be there."""


@attrs.frozen(kw_only=True)
class ReplayChanges:
    """Asks the active cluster to make changes through its permit, each for itself."""

    group: GroupName
    changes: tuple[Change, ...]


@attrs.frozen(kw_only=True)
class ReadKeys:
    """Asks what some keys of a group have at one revision (None: now)."""

    group: GroupName
    keys: tuple[bytes, ...]
    revision: Revision | None = None


@attrs.frozen(kw_only=True)
class ReadState:
    """Asks for the keys of a group in `[start, end)`, at one revision (None: now)."""

    group: GroupName
    start: bytes
    end: bytes
    revision: Revision | None = None


@attrs.frozen(kw_only=True)
class ReadEpoch:
    """Asks where an epoch of a group began at the cluster that opened it."""

    group: GroupName
    epoch: Epoch


@attrs.frozen(kw_only=True)
class ReadStanding:
    """Asks what a region's fences prove: to rebuild a coordination etcd that was lost.

    Answered by any replicator of the region, because nobody leads a region that is suspended.
    """

    after: GroupName | None = None
    """Go on after this group."""


@attrs.frozen(kw_only=True)
class AskPromises:
    """Asks a passive cluster to promise, and store, that it does not open some groups.

    Answered by any replicator of the region: whoever restarts while the coordination etcd is lost
    does not lead, and the promise is a transaction that compares all it rests on.
    """

    groups: Mapping[GroupName, Epoch]
    """The epoch in which whoever asks is active."""
    coordination: Incarnation
    """The coordination etcd's incarnation that whoever asks knows."""
    term: Revision
    round: int
    ttl_s: int
    """How long each promise has to last."""


@attrs.frozen(kw_only=True)
class EndPromises:
    """Says that promises asked for in this term, up to a round, are not relied on any more."""

    groups: tuple[GroupName, ...]
    term: Revision
    round: int


@attrs.frozen(kw_only=True)
class ReadForeign:
    """Asks what was written to a passive copy of a group beside MeshKit."""

    group: GroupName


@attrs.frozen(kw_only=True)
class TellSealed:
    """Tells the active cluster that a group is sealed: it may not hear of that in any other way."""

    group: GroupName
    epoch: Epoch
    """The one that the seal ends."""
    seal: Token
    failover: FailoverId


AboutPromises = AskPromises | EndPromises
AboutQuarantine = ListEntries | ReadEntries | DiscardEntries | MarkReplayed
OfCoordinators = AboutQuarantine | ReplayChanges | ReadForeign
OfClusters = ReadKeys | ReadState | ReadEpoch | TellSealed
Question = OfCoordinators | AboutPromises | OfClusters | ReadStanding


@attrs.frozen(kw_only=True)
class EntriesPage:
    """Some entries; `next_key` is where the next page begins."""

    entries: tuple[QuarantineEntry, ...] = ()
    next_key: bytes | None = None


@attrs.frozen(kw_only=True)
class WholeEntry:
    """One entry with its values."""

    entry: QuarantineEntry
    here: bytes | None = None
    there: bytes | None = None


@attrs.frozen(kw_only=True)
class WholeEntries:
    """At least one of the entries that were asked for, in that order; ask again for the others."""

    entries: tuple[WholeEntry, ...]


@attrs.frozen(kw_only=True)
class Counted:
    """How many entries were discarded or marked; those that were not there are not counted."""

    count: int


class ReplayOutcome(enum.Enum):
    """What came of making one change again."""

    REPLAYED = "replayed"
    ALREADY = "already"
    """The key has that value, or is gone, already."""
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """Its reply was lost and the key has another value by now."""


@attrs.frozen(kw_only=True)
class ReplayResult:
    """What came of one change, in the order in which they were asked for."""

    key: bytes
    outcome: ReplayOutcome
    reason: str = ""


@attrs.frozen(kw_only=True)
class ReplayResults:
    """What came of all of them."""

    results: tuple[ReplayResult, ...]


@attrs.frozen(kw_only=True)
class EpochStart:
    """Where an epoch began: its state then was exactly what it stands on."""

    opened: Revision
    prefixes: tuple[bytes, ...]


@attrs.frozen(kw_only=True)
class KeyState:
    """What one key has; None if it is not there."""

    key: bytes
    value: bytes | None = None
    modified: Revision = ABSENT


@attrs.frozen(kw_only=True)
class KeyStates:
    """Keys at `revision`; `next_key` is where to go on, None if that was all."""

    revision: Revision
    items: tuple[KeyState, ...]
    next_key: bytes | None = None


@attrs.frozen(kw_only=True)
class GroupStanding:
    """What a region's etcd proves about one group, read at one revision."""

    fence: Fence
    lineage: Lineage | None = None
    """What the fence's epoch stands on, if it was opened here."""
    cut: Sequence | None = None
    prefixes: tuple[str, ...] = ()
    """What the segment of the fence's epoch covers, if it was opened here."""
    routing: Routing | None = None
    """The newest that was copied here: it was put with a pivot, whether that was opened or not."""
    has_permit: bool = False


@attrs.frozen(kw_only=True)
class RegionStanding:
    """What a region's fences prove; `next_group` is where to go on, None if that was all."""

    incarnation: Incarnation
    suspension: Suspension | None
    """Of this region because of the coordination etcd, as stored in the region."""
    coordination: Incarnation
    """The coordination etcd's incarnation that this region knows."""
    groups: tuple[GroupStanding, ...]
    next_group: GroupName | None = None


@attrs.frozen(kw_only=True)
class Promised:
    """What a cluster promises, is stored; and why it does not promise the rest."""

    cluster: ClusterName
    groups: tuple[GroupName, ...] = ()
    ttl_s: int = 0
    """For how long at least, from when it was asked."""
    refused: Mapping[GroupName, str] = attrs.field(factory=dict)
    overtaken: Mapping[GroupName, Epoch] = attrs.field(factory=dict)
    """Of those refused: which newer epoch there is. Whoever asked was superseded unseen."""


@attrs.frozen(kw_only=True)
class ForeignKey:
    """One key that was written or deleted beside MeshKit, and at which revision there."""

    key: str
    revision: Revision
    deleted: bool = False


@attrs.frozen(kw_only=True)
class ForeignListed:
    """What was found and is not put right yet: how many, and the last of them, oldest first."""

    count: int = 0
    latest: tuple[ForeignKey, ...] = ()


@attrs.frozen(kw_only=True)
class SealHeard:
    """What came of telling of a seal."""

    is_cut: bool
    """Whether the epoch's log has ended here. Which seal ended it is said by the log alone."""


class DeclineCode(enum.Enum):
    """Why a replicator does not answer."""

    NOT_LEADING = "not-leading"
    """Another replicator of this cluster leads: try the next endpoint."""
    NOT_ALLOWED = "not-allowed"
    NOT_FOUND = "not-found"
    REFUSED = "refused"
    UNKNOWN_QUESTION = "unknown-question"
    """It is older than whoever asks."""


@attrs.frozen(kw_only=True)
class Declined:
    """It is not answered."""

    code: DeclineCode
    text: str = ""


AboutKeys = ReplayResults | KeyStates | EpochStart | ForeignListed
Told = EntriesPage | WholeEntries | Counted | AboutKeys | RegionStanding | Promised | SealHeard
Answer = Told | Declined
