"""The target's side of one connection, as a machine without I/O. Pure.

Inputs: messages of the source (`receive`), what became of them (`on_applied`) and time
(`on_deadline`). Outputs: `messages_to_send`, `events`, and `next_work`: what to apply, in order,
with duplicates dropped, gaps found and frames merged into batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import attrs

from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Incarnation, Revision, Sequence
from meshkit.regional import GroupCheckpoint
from replicator.batch import MainBatch
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.messages import (
    MESSAGE_OVERHEAD_BYTES,
    Ack,
    Compared,
    CopyPage,
    Frame,
    Head,
    Hello,
    Join,
    Leave,
    Outline,
    OutOfStep,
    OutOfStepChange,
    Refusal,
    SideFrame,
    SideRefused,
    ToSource,
    ToTarget,
    Welcome,
    message_bytes,
)
from replicator.record import Piece, Record
from replicator.resend import Resend
from replicator.room import Pace

ACK_INTERVAL_MS = 1_000
"""An acknowledgement is sent at least this often, so that silence means trouble."""


@attrs.frozen
class GapSeen:
    """A frame does not continue what was received: resume from the checkpoint."""

    expected: Sequence
    after: Sequence


@attrs.frozen
class SourceSilent:
    """Nothing was heard of the source for too long."""


@attrs.frozen
class SourceChanged:
    """The source is not the log that our checkpoint is of. Never resumed by itself."""

    text: str


ReceiverEvent = Welcome | SideRefused | GapSeen | SourceSilent | SourceChanged


Work = MainBatch | SideFrame | CopyPage


class Receiver:
    """What was received, what is to be applied, and what to tell the source about it.

    Invariant: work handed out covers the log from the start without gap or repetition; credit is
    given back only for what was applied or dropped.
    """

    def __init__(
        self,
        *,
        source: ClusterName,
        target: ClusterName,
        incarnation: Incarnation | None,
        position: Sequence | None,
        now_ms: int,
        resend: Resend | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.source = source
        self.resend = resend
        """What is to come again though it is applied, and what of it has come."""
        self.target = target
        self.incarnation = incarnation
        self.head = Revision(0)
        self.stalled = ""
        """Why nothing can be applied at the moment, for the source to know."""
        self._apply_ms = 0
        self.room = Pace(limits).room
        """What goes into one batch of the main stream."""
        self.has_more = False
        """Whether the last batch left something for the next."""
        self._limits = limits
        self._start = position
        self._received_through = position
        self._next_piece = (Sequence(0), 0)
        self._applied = self._durable = position or Sequence(0)
        self._acked = (Sequence(0), Sequence(0), 0, "")
        self.out_of_step: Mapping[GroupName, OutOfStep] | None = None
        """Of which groups `applied` does not speak; None: nobody has looked yet."""
        self._told: Mapping[GroupName, OutOfStep] | None = None
        self._welcomed = False
        self._inbox: deque[Work] = deque()
        self._outlines: deque[Outline] = deque()
        self._joins: dict[GroupName, Join] = {}
        self._joins_made = 0
        self._taken_bytes = 0
        self._in_hand_bytes = 0
        self._out: deque[ToSource] = deque()
        self._events: list[ReceiverEvent] = []
        self._heard_at_ms = now_ms
        self._acked_at_ms = now_ms

    @property
    def is_idle(self) -> bool:
        """Whether everything that was received is applied."""
        received = self._received_through
        return not self._inbox and (received is None or received <= self._applied)

    # --- joins ---------------------------------------------------------------------------------

    def join(self, checkpoint: GroupCheckpoint) -> None:
        """Ask for a side stream that goes on from a group's own checkpoint."""
        self._joins_made += 1
        join = Join(
            number=self._joins_made,
            group=checkpoint.group,
            phase=checkpoint.phase,
            epoch=checkpoint.epoch,
            sequence=checkpoint.sequence,
            cursor=checkpoint.cursor,
            compares=True,
            compares_parts=True,
        )
        self._joins[checkpoint.group] = join
        if self._welcomed:
            self._out.append(join)

    def leave(self, group: GroupName) -> None:
        """No longer want the side stream of a group."""
        join = self._joins.pop(group, None)
        if join is not None and self._welcomed:
            self._out.append(Leave(number=join.number, group=group))

    def joined(self, group: GroupName) -> Join | None:
        """Return the side stream asked for, if any."""
        return self._joins.get(group)

    @property
    def joined_groups(self) -> frozenset[GroupName]:
        """The groups for which a side stream was asked."""
        return frozenset(self._joins)

    # --- messages ------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Return the first message of the connection."""
        return Hello(
            target=self.target,
            source=self.source,
            incarnation=self.incarnation,
            position=self._start,
            credit_bytes=self._limits.window_bytes_max,
            takes_pieces=True,
            takes_columns=True,
            resend_after=self.resend.after if self.resend else None,
            tells_out_of_step=True,
        )

    def receive(self, message: ToTarget, *, now_ms: int) -> None:
        """Take in one message of the source."""
        self._heard_at_ms = now_ms
        match message:
            case Frame():
                self._on_frame(message)
            case SideFrame() | CopyPage() | Outline():
                self._on_side(message)
            case Head():
                self.head = max(self.head, message.revision)
            case Welcome():
                self._on_welcome(message)
            case SideRefused():
                join = self._joins.get(message.group)
                if join is not None and join.number == message.number:
                    self._events.append(message)
            case Refusal():
                self._events.append(SourceChanged(message.text))

    def events(self) -> list[ReceiverEvent]:
        """Return and forget what happened."""
        events, self._events = self._events, []
        return events

    def keep_pace(self, pace: Pace) -> None:
        """Merge what fits into a transaction, and tell what one takes: with news, not as news."""
        self.room, self._apply_ms = pace.room, pace.apply_ms

    def messages_to_send(self, *, now_ms: int) -> list[ToSource]:
        """Return what is to be sent now, in order, and forget it."""
        is_news = self._ack_content() != self._acked or self.out_of_step != self._told
        if self._welcomed and is_news:
            self._ack(now_ms)
        out = list(self._out)
        self._out.clear()
        return out

    # --- work ----------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """Return the next thing to apply: merged frames, a page or a side frame."""
        while self._inbox:
            work = self._inbox.popleft()
            if isinstance(work, MainBatch):
                return self._merged(work)
            self._in_hand_bytes += message_bytes(work)
            if self._is_asked_for(work):
                return work
            self._give_back()
        return None

    def next_outline(self) -> Outline | None:
        """Return the next outline to compare with what is here, and to answer."""
        while self._outlines:
            outline = self._outlines.popleft()
            if self._is_asked_for(outline):
                return outline
        return None

    def answer(self, compared: Compared) -> None:
        """Say what is here of an outline."""
        join = self._joins.get(compared.group)
        if join is not None and join.number == compared.number:
            self._out.append(compared)

    def on_applied(self, applied: Sequence, durable: Sequence) -> None:
        """The work in hand is done: applied in memory up to `applied`, stored up to `durable`."""
        self.on_progress(applied, durable)
        self._give_back()

    def on_progress(self, applied: Sequence, durable: Sequence) -> None:
        """Part of the work in hand is done, or only the checkpoint was stored."""
        self._applied = max(self._applied, applied)
        self._durable = max(self._durable, durable)

    # --- time ----------------------------------------------------------------------------------

    def deadline_ms(self) -> int:
        """Return when `on_deadline` is due."""
        return min(
            self._acked_at_ms + ACK_INTERVAL_MS, self._heard_at_ms + self._limits.silence_ms_max
        )

    def on_deadline(self, *, now_ms: int) -> None:
        """Do what has become due."""
        if now_ms - self._heard_at_ms >= self._limits.silence_ms_max:
            self._events.append(SourceSilent())
        if self._welcomed and now_ms - self._acked_at_ms >= ACK_INTERVAL_MS:
            self._ack(now_ms)

    # --- inside --------------------------------------------------------------------------------

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.source != self.source:
            self._events.append(SourceChanged(f"dialled {self.source}, found {welcome.source}"))
            return
        if self.incarnation is not None and welcome.incarnation != self.incarnation:
            text = f"its history is {welcome.incarnation}, our checkpoint is of {self.incarnation}"
            self._events.append(SourceChanged(text))
            return
        is_again = self.resend is not None and self.resend.on_welcome(welcome)
        if not welcome.is_fresh and not is_again and welcome.start != self._start:
            self._events.append(GapSeen(self._start or Sequence(0), welcome.start))
            return
        self._welcomed = True
        self.incarnation = welcome.incarnation
        self._received_through = self._start if is_again else welcome.start
        self._out.extend(self._joins.values())
        self._events.append(welcome)

    def _on_frame(self, frame: Frame) -> None:
        if not self._welcomed:
            return
        received = self._received_through
        assert received is not None
        if frame.after > received:
            self._events.append(GapSeen(received, frame.after))
            return
        if self.resend is not None:
            self.resend.on_frame(frame)
        weight = message_bytes(frame)
        fresh = tuple(r for r in frame.records if r.sequence > received)
        if frame.through <= received and not fresh:
            self._taken_bytes += weight
            return
        kept = MainBatch(after=received, through=frame.through, records=fresh)
        if kept.piece is not None and not self._is_next_piece(fresh[-1].sequence, kept.piece):
            self._events.append(GapSeen(received, frame.after))
            return
        kept_bytes = message_bytes(Frame(after=received, through=frame.through, records=fresh))
        self._taken_bytes += weight - kept_bytes
        self._inbox.append(kept)
        self._received_through = max(received, frame.through)

    def _is_next_piece(self, sequence: Sequence, piece: Piece) -> bool:
        """Return whether a record begins with this piece, or goes on with it."""
        if piece.number and (sequence, piece.number) != self._next_piece:
            return False
        self._next_piece = (sequence, piece.number + 1)
        return True

    def _on_side(self, message: SideFrame | CopyPage | Outline) -> None:
        if not self._is_asked_for(message):
            self._taken_bytes += message_bytes(message)
        elif isinstance(message, Outline):
            self._outlines.append(message)
        else:
            self._inbox.append(message)

    def _is_asked_for(self, message: SideFrame | CopyPage | Outline) -> bool:
        join = self._joins.get(message.group)
        return join is not None and join.number == message.number

    def _merged(self, first: MainBatch) -> MainBatch:
        """Return as much as there is room for in one apply transaction, and leave the rest.

        Whole records, at least one; a piece of a record stays alone.
        """
        records: list[Record] = []
        size = writes = 0
        through = first.after
        self.has_more = False
        self._inbox.appendleft(first)
        while self._inbox and isinstance(work := self._inbox[0], MainBatch):
            if records and work.piece is not None:
                break
            taken = work.fitting(self.room, size, writes, is_first=not records)
            records += taken
            size += sum(r.weight_bytes for r in taken)
            writes += sum(r.writes_count for r in taken)
            if len(taken) < len(work.records):
                through = taken[-1].sequence if taken else through
                self._inbox[0] = work.beyond(through)
                self.has_more = True
                break
            self._inbox.popleft()
            self._in_hand_bytes += MESSAGE_OVERHEAD_BYTES
            through = work.through
            if work.piece is not None:
                break
        self._in_hand_bytes += size
        return MainBatch(after=first.after, through=through, records=tuple(records))

    def _give_back(self) -> None:
        self._taken_bytes += self._in_hand_bytes
        self._in_hand_bytes = 0

    def _ack_content(self) -> tuple[Sequence, Sequence, int, str]:
        return self._applied, self._durable, self._taken_bytes, self.stalled

    def _ack(self, now_ms: int) -> None:
        self._acked = self._ack_content()
        self._acked_at_ms = now_ms
        credit = self._taken_bytes + self._limits.window_bytes_max
        self._out.append(
            Ack(
                applied=self._applied,
                durable=self._durable,
                credit_bytes=credit,
                stalled=self.stalled,
                apply_ms=self._apply_ms,
                out_of_step=self._change_to_tell(),
            )
        )

    def _change_to_tell(self) -> OutOfStepChange | None:
        if self.out_of_step is None or self.out_of_step == self._told:
            return None
        now, told = self.out_of_step, self._told or {}
        self._told = now
        return OutOfStepChange(
            groups=tuple(one for group, one in sorted(now.items()) if one != told.get(group)),
            back=tuple(sorted(told.keys() - now.keys())),
        )
