"""The source's side of one connection, as a machine without I/O. Pure.

Inputs: messages of the target (`receive`), what was read from the log (`on_batch`, `on_side_read`,
`on_copy_page`), the head (`on_head`) and time (`on_deadline`). Outputs: `messages_to_send` and
`events`. It sends no more than the target's credit allows, and knows when a side stream and the
main stream are at exactly the same place.
"""

from __future__ import annotations

from collections import deque

import attrs

from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Sequence
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.messages import (
    Ack,
    Compared,
    CopyPage,
    Frame,
    Head,
    Hello,
    Join,
    Leave,
    Outline,
    OutOfStepChange,
    Refusal,
    RefusalCode,
    SegmentStanding,
    SideFrame,
    SideRefused,
    ToSource,
    ToTarget,
    Welcome,
    message_bytes,
)
from replicator.record import Record


@attrs.frozen
class Acknowledged:
    """The target has applied everything up to `applied`; `stalled` says why it cannot go on."""

    applied: Sequence
    durable: Sequence
    """Of that, what its checkpoint says."""
    stalled: str = ""
    apply_ms: int = 0
    """What a transaction takes at the target; 0: unknown."""
    out_of_step: OutOfStepChange | None = None
    """Of which groups it does not speak, if that has changed."""


@attrs.frozen
class Silent:
    """Nothing was heard of the target for too long."""


@attrs.frozen
class ProtocolBroken:
    """The target said something that makes no sense here."""

    reason: str


SenderEvent = Hello | Join | Leave | Compared | Acknowledged | Silent | ProtocolBroken


@attrs.define(kw_only=True)
class _Side:
    group: GroupName
    position: Sequence
    read_through: Sequence
    records: deque[Record] = attrs.field(factory=deque)


class Sender:
    """What the target asked for, what was read for it, and what may be sent now.

    Invariants: frames queued so far cover `(start, sent_through]` without a gap; no side frame is
    ever ahead of `sent_through`; what is sent and not taken in stays within the credit.
    """

    def __init__(
        self,
        *,
        source: ClusterName,
        incarnation: Incarnation,
        now_ms: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.source = source
        self.incarnation = incarnation
        self.sent_through = Sequence(0)
        self.read_through = Sequence(0)
        self.is_mid_record = False
        """Whether the last piece of a record is still to come: nothing can meet the main stream."""
        self._limits = limits
        self._hello: Hello | None = None
        self._welcomed = False
        self._queue: deque[ToTarget] = deque()
        self._queued_bytes = 0
        self._sent_bytes = 0
        self._credit_bytes = 0
        self._sides: dict[int, _Side] = {}
        self._events: list[SenderEvent] = []
        self._head = Revision(0)
        self._head_wall_ms = 0
        self._spoke_at_ms = now_ms
        self._heard_at_ms = now_ms

    # --- room ----------------------------------------------------------------------------------

    @property
    def outstanding_bytes(self) -> int:
        """What is sent and not yet taken in by the target."""
        window = self._hello.credit_bytes if self._hello else 0
        return self._sent_bytes - (self._credit_bytes - window)

    @property
    def has_room(self) -> bool:
        """Whether more of the main stream may be queued."""
        return self._queued_bytes < self._limits.frame_bytes_max

    @property
    def has_side_room(self) -> bool:
        """Whether more of a copy or a side stream may be queued."""
        in_flight = self._queued_bytes + self.outstanding_bytes
        return in_flight < self._limits.side_window_bytes_max

    def has_side(self, number: int) -> bool:
        """Whether a side stream has not met the main stream yet, and is still wanted."""
        return number in self._sides

    def wants_side(self, number: int) -> bool:
        """Whether a side stream should be read further: it is not ahead of the main stream."""
        side = self._sides.get(number)
        return side is not None and self.has_side_room and side.read_through <= self.sent_through

    # --- what the target says ------------------------------------------------------------------

    def receive(self, message: ToSource, *, now_ms: int) -> None:
        """Take in one message of the target."""
        self._heard_at_ms = now_ms
        if self._hello is None:
            if isinstance(message, Hello):
                self._hello = message
                self._credit_bytes = message.credit_bytes
                self._events.append(message)
            else:
                self._events.append(ProtocolBroken("the target did not say hello"))
            return
        match message:
            case Ack():
                self._credit_bytes = max(self._credit_bytes, message.credit_bytes)
                applied, durable = message.applied, message.durable
                self._events.append(
                    Acknowledged(
                        applied,
                        durable,
                        stalled=message.stalled,
                        apply_ms=message.apply_ms,
                        out_of_step=message.out_of_step,
                    )
                )
            case Join():
                self._end_sides_of(message.group)
                self._events.append(message)
            case Leave():
                self._sides.pop(message.number, None)
                self._events.append(message)
            case Compared():
                self._events.append(message)
            case Hello():
                self._events.append(ProtocolBroken("the target said hello twice"))

    def events(self) -> list[SenderEvent]:
        """Return and forget what happened."""
        events, self._events = self._events, []
        return events

    # --- what is to be said --------------------------------------------------------------------

    def refuse(self, code: RefusalCode, text: str) -> None:
        """Say why the target is not served."""
        self._push(Refusal(code=code, text=text))

    def welcome(
        self,
        start: Sequence,
        *,
        is_fresh: bool,
        segments: tuple[SegmentStanding, ...] = (),
        resend_refused: str = "",
    ) -> None:
        """Begin after `start`."""
        assert not self._welcomed, "a connection begins once"
        self._welcomed = True
        self.sent_through = self.read_through = start
        self._push(
            Welcome(
                source=self.source,
                incarnation=self.incarnation,
                start=start,
                is_fresh=is_fresh,
                segments=segments,
                resend_refused=resend_refused,
            )
        )

    def on_batch(self, through: Sequence, records: tuple[Record, ...]) -> None:
        """The log was read up to `through`; what holds no record may wait for company."""
        assert through >= self.read_through, "the log is read in order"
        self.read_through = through
        if records:
            piece = records[-1].piece
            self.is_mid_record = piece is not None and not piece.is_last
            self._cover(records)

    def on_head(self, revision: Revision, *, wall_ms: int) -> None:
        """The store's head is known to have been at `revision`."""
        if revision >= self._head:
            self._head, self._head_wall_ms = revision, wall_ms

    def flush(self) -> None:
        """Send now what the frames cover, though no record is in it."""
        if self.read_through > self.sent_through:
            self._cover(())

    def on_copy_page(self, page: CopyPage | Outline) -> None:
        """A page of a copy was read, or the outline of one that may be there already."""
        self._push(page)

    def follow(self, number: int, group: GroupName, after: Sequence) -> None:
        """A side stream begins after `after`, where its copy ends."""
        self._sides[number] = _Side(group=group, position=after, read_through=after)
        self._settle_sides()

    def on_side_read(self, number: int, through: Sequence, records: tuple[Record, ...]) -> None:
        """The group's log was read up to `through` for a side stream."""
        side = self._sides.get(number)
        if side is not None:
            side.read_through = through
            side.records.extend(records)
            self._settle_sides()

    def refuse_side(self, join: Join, *, epoch: Epoch, reason: str) -> None:
        """Say that a side stream cannot be served (yet)."""
        refused = SideRefused(group=join.group, number=join.number, epoch=epoch, reason=reason)
        self._push(refused)

    def messages_to_send(self, *, now_ms: int) -> list[ToTarget]:
        """Return what may be sent now, in order, and forget it."""
        out: list[ToTarget] = []
        while self._queue:
            weight = message_bytes(self._queue[0])
            # A message above the whole window goes alone, when nothing else is under way.
            fits = self._sent_bytes + weight <= self._credit_bytes
            if weight and not fits and self.outstanding_bytes > 0:
                break
            out.append(self._queue.popleft())
            self._queued_bytes -= weight
            self._sent_bytes += weight
        if out:
            self._spoke_at_ms = now_ms
        return out

    # --- time ----------------------------------------------------------------------------------

    def deadline_ms(self) -> int:
        """Return when `on_deadline` is due."""
        due = min(
            self._spoke_at_ms + self._limits.head_interval_ms,
            self._heard_at_ms + self._limits.silence_ms_max,
        )
        if self.read_through > self.sent_through:
            due = min(due, self._spoke_at_ms + self._limits.coverage_interval_ms)
        return due

    def on_deadline(self, *, now_ms: int) -> None:
        """Do what has become due."""
        if now_ms - self._heard_at_ms >= self._limits.silence_ms_max:
            self._events.append(Silent())
        if not self._welcomed:
            return
        quiet_ms = now_ms - self._spoke_at_ms
        if not self._queue and quiet_ms >= self._limits.coverage_interval_ms:
            self.flush()
        # A head overtakes what waits for credit: a target that is stalled still hears of us.
        is_blocked = bool(self._queue) and self.outstanding_bytes > 0
        if quiet_ms >= self._limits.head_interval_ms and (is_blocked or not self._queue):
            self._queue.appendleft(Head(revision=self._head, at_ms=self._head_wall_ms))

    # --- inside --------------------------------------------------------------------------------

    def _cover(self, records: tuple[Record, ...]) -> None:
        self._push(
            Frame(
                after=self.sent_through,
                through=self.read_through,
                records=records,
                in_columns=self._hello is not None and self._hello.takes_columns,
            )
        )
        self.sent_through = self.read_through
        self._settle_sides()

    def _settle_sides(self) -> None:
        """Send of each side stream what is read of it, and end those that met the main stream."""
        for number, side in list(self._sides.items()):
            if side.position > self.sent_through:
                continue
            has_met = side.read_through >= self.sent_through and not self.is_mid_record
            through = min(self.sent_through, side.read_through)
            if not has_met and through == side.position:
                continue
            records: list[Record] = []
            while side.records and side.records[0].sequence <= through:
                records.append(side.records.popleft())
            self._push(
                SideFrame(
                    group=side.group,
                    number=number,
                    after=side.position,
                    through=through,
                    records=tuple(records),
                    is_last=has_met,
                )
            )
            side.position = through
            if has_met:
                del self._sides[number]

    def _end_sides_of(self, group: GroupName) -> None:
        for number in [n for n, side in self._sides.items() if side.group == group]:
            del self._sides[number]

    def _push(self, message: ToTarget) -> None:
        self._queue.append(message)
        self._queued_bytes += message_bytes(message)
