"""The messages of a link between two replicators. Pure; `wire/convert.py` puts them into bytes.

The target dials the source. Its side speaks `ToSource`, the source's side `ToTarget`; both arrive
in the order in which they were sent, or the connection is over.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NOTHING, Epoch, Incarnation, LeaseId, Revision, Sequence, Token
from meshkit.regional import JoinPhase
from replicator.record import WRITE_OVERHEAD_BYTES, LeaseTerm, Record, records_bytes

MESSAGE_OVERHEAD_BYTES = 64
PLACE_BYTES = 4


class Verdict(enum.Enum):
    """How the target's copy of an outlined stretch compares with the source's."""

    EQUAL = "equal"
    DIFFERENT = "different"
    """`fingerprints` say what is there."""
    EMPTY = "empty"
    """The target holds nothing here nor behind it, up to the end of the prefix."""
    CROWDED = "crowded"
    """The target holds far more keys there than the source: it wants the stretch whole."""


# --- from the target to the source --------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Join:
    """The target asks for a side stream of a group that is out of step.

    `number` is the target's own and comes back in every message of the side stream, so that
    what belongs to an older request is recognised and dropped.
    """

    number: int
    group: GroupName
    phase: JoinPhase
    epoch: Epoch
    sequence: Sequence = NOTHING
    cursor: bytes = b""
    compares: bool = False
    """The target answers an `Outline`, so that only what differs need be sent."""
    compares_parts: bool = False
    """It takes an outline that tells of parts."""


@attrs.frozen(kw_only=True)
class Leave:
    """The target no longer wants the side stream of a group."""

    number: int
    group: GroupName


@attrs.frozen(kw_only=True)
class Hello:
    """First message of a connection: who dials, and from where it wants to go on."""

    target: ClusterName
    source: ClusterName
    """Whom the target believes to have dialled."""
    incarnation: Incarnation | None = None
    """Of the source's log that the target has a checkpoint of."""
    position: Sequence | None = None
    joins: tuple[Join, ...] = ()
    credit_bytes: int = 0
    takes_pieces: bool = False
    """Whether the target knows what to do with a record that comes in pieces."""
    takes_columns: bool = False
    """Whether it can read frames of plain puts by their columns."""
    resend_after: Sequence | None = None
    """Begin here, though everything up to `position` is applied: it is to come again."""
    tells_out_of_step: bool = False
    """Whether its acknowledgements say which groups they do not speak of."""


@attrs.frozen(kw_only=True)
class OutOfStep:
    """A group of which the main stream's acknowledgements say nothing: it has its own position."""

    group: GroupName
    why: str
    """A `WhyBehind`, or what a newer target calls it."""
    position: Sequence | None = None
    """Up to where the source's log is applied of it; None: the target does not know either."""
    text: str = ""


@attrs.frozen(kw_only=True)
class OutOfStepChange:
    """Which groups have fallen out of step, or stand elsewhere, and which are back in step.

    The first of a connection says all of it.
    """

    groups: tuple[OutOfStep, ...] = ()
    back: tuple[GroupName, ...] = ()


@attrs.frozen(kw_only=True)
class Ack:
    """How far the target has come, and how much it has taken in since the connection began."""

    applied: Sequence
    durable: Sequence
    credit_bytes: int
    """In total since Hello: the source may have sent so many bytes altogether."""
    stalled: str = ""
    """Why the target's etcd takes nothing at the moment; it goes on by itself."""
    apply_ms: int = 0
    """What a transaction takes there, so that frames come no faster than is of use; 0: unknown."""
    out_of_step: OutOfStepChange | None = None
    """What it does not speak of, if that has changed: `applied` is true of all other groups."""


@attrs.frozen(kw_only=True)
class Compared:
    """What the target holds of one outlined stretch. Each outline is answered, in order."""

    number: int
    group: GroupName
    start: bytes
    """Of the stretch."""
    verdict: Verdict
    fingerprints: bytes = b""
    """Of what the target holds there, in key order (`outline.fingerprints_in`): of everything, or
    of what lies in `parts`."""
    parts: tuple[int, ...] = ()
    """Which parts differ, if the outline told of parts."""


ToSource = Hello | Ack | Join | Leave | Compared


# --- from the source to the target --------------------------------------------------------------


class RefusalCode(enum.Enum):
    """Why a source does not serve a target."""

    NOT_LEADING = "not-leading"
    """Another replicator of this cluster leads: try the next endpoint."""
    WRONG_IDENTITY = "wrong-identity"
    WRONG_SOURCE = "wrong-source"
    WRONG_INCARNATION = "wrong-incarnation"
    """The source's etcd is not the one the checkpoint is of: it was restored."""
    AHEAD = "ahead"
    """The target's position is beyond the source's head: history went back."""


@attrs.frozen(kw_only=True)
class Refusal:
    """The source does not serve this target; the connection ends."""

    code: RefusalCode
    text: str = ""


@attrs.frozen(kw_only=True)
class SegmentStanding:
    """Where a group's newest segment stands at the source."""

    group: GroupName
    epoch: Epoch
    token: Token
    lineage: Lineage | None = None
    cut: Sequence | None = None


@attrs.frozen(kw_only=True)
class Welcome:
    """The source begins: frames follow that cover everything after `start`.

    `is_fresh`: the position asked for is gone (or there was none). `segments` then says what the
    target must copy, because the marks that would have told it are gone too.
    """

    source: ClusterName
    incarnation: Incarnation
    start: Sequence
    is_fresh: bool = False
    segments: tuple[SegmentStanding, ...] = ()
    resend_refused: str = ""
    """Why nothing comes again, although it was asked for."""


@attrs.frozen(kw_only=True)
class Frame:
    """Everything of the source's log in `(after, through]`.

    The last record may be a piece of what comes next; only with its last piece it is covered.
    """

    after: Sequence
    through: Sequence
    records: tuple[Record, ...] = ()
    in_columns: bool = attrs.field(default=False, eq=False)
    """Whether the wire may have it by columns; nothing of what it means."""


@attrs.frozen(kw_only=True)
class SideFrame:
    """Everything of one group in `(after, through]`, beside the main stream.

    `is_last`: the main stream sent before this message ends at exactly `through`.
    """

    group: GroupName
    number: int
    after: Sequence
    through: Sequence
    records: tuple[Record, ...] = ()
    is_last: bool = False

    def beyond(self, sequence: Sequence) -> SideFrame:
        """Return what of it comes after `sequence`."""
        records = tuple(r for r in self.records if r.sequence > sequence)
        return attrs.evolve(self, after=sequence, records=records)


@attrs.frozen(kw_only=True)
class CopyPage:
    """All keys of a group in `[start, end)` as of the copy's cut.

    `is_first` begins the copy at this cut; `is_final` says that the copy is complete with it.
    """

    group: GroupName
    number: int
    cut: Sequence
    start: bytes
    end: bytes
    items: tuple[tuple[bytes, bytes], ...]
    leased: Mapping[bytes, LeaseId] = attrs.field(factory=dict)
    """The leases of those keys that have one."""
    leases: tuple[LeaseTerm, ...] = ()
    """What these leases were granted for."""
    is_first: bool = False
    is_final: bool = False
    is_delta: bool = False
    """Only what differs: the rest of what the target outlined there is as it should be."""
    dropped: tuple[int, ...] = ()
    """Of a delta: the places, among what the target told of, of what is not so at the source."""
    place: int | None = None
    """Its own place among the pages sent at this cut, from 1; None: the source does not count."""
    weight_bytes: int = attrs.field(init=False, eq=False, repr=False)
    """What it weighs in memory and on the wire, roughly; equal on both sides of a link."""

    @weight_bytes.default
    def _weigh(self) -> int:
        items = sum([len(key) + len(value) for key, value in self.items])
        counted = len(self.items) + len(self.leased) + len(self.leases)
        places = PLACE_BYTES * len(self.dropped)
        return MESSAGE_OVERHEAD_BYTES + items + WRITE_OVERHEAD_BYTES * counted + places


@attrs.frozen(kw_only=True)
class Outline:
    """What the source holds in `[start, end)` as of the copy's cut, in place of a page."""

    group: GroupName
    number: int
    cut: Sequence
    start: bytes
    end: bytes
    range_end: bytes
    """Of the prefix that the stretch lies in."""
    keys_count: int
    digest: bytes
    """Of the whole, unless it is told of in parts; empty: each key is to be looked at."""
    part_starts: tuple[bytes, ...] = ()
    """Where the second part begins, and each that follows."""
    part_digests: bytes = b""
    """Of each part (`outline.digests_in`)."""


@attrs.frozen(kw_only=True)
class SideRefused:
    """The source cannot serve a side stream (yet); `epoch` is the newest it has of the group."""

    group: GroupName
    number: int
    epoch: Epoch
    reason: str


@attrs.frozen(kw_only=True)
class Head:
    """The source's newest revision known: all it had committed by `at_ms`, on its wall clock."""

    revision: Revision
    at_ms: int


ToTarget = Refusal | Welcome | Frame | SideFrame | CopyPage | Outline | SideRefused | Head
Message = ToSource | ToTarget


def message_bytes(message: ToTarget) -> int:
    """Return what a message counts against the credit; equal on both sides of a link."""
    match message:
        case Frame() | SideFrame():
            return MESSAGE_OVERHEAD_BYTES + records_bytes(message.records)
        case CopyPage():
            return message.weight_bytes
        case _:
            return 0
