"""What targets tell of groups out of step, and what goes by of them, for tests."""

from __future__ import annotations

from meshkit.names import GroupName
from meshkit.ordinals import Epoch, Revision, Sequence
from meshkit.status import WhyBehind
from replicator.lag import Anchor, CommitTimes, StreamLag
from replicator.messages import OutOfStep, OutOfStepChange
from replicator.record import GroupPart, Record
from tests.replicator.mesh import G
from tests.replicator.records import write


def out(
    group: GroupName = G, position: int | None = None, why: WhyBehind = WhyBehind.PAUSED
) -> OutOfStep:
    at = None if position is None else Sequence(position)
    return OutOfStep(group=group, why=why.value, position=at, text=f"{group} is {why.value}")


def told(*groups: OutOfStep, back: tuple[GroupName, ...] = ()) -> OutOfStepChange:
    return OutOfStepChange(groups=groups, back=back)


def times(*anchors: tuple[int, int]) -> CommitTimes:
    made = CommitTimes()
    for sent_ms, revision in anchors:
        made.on_anchor(
            Anchor(sent_ms=sent_ms, received_ms=sent_ms + 2, revision=Revision(revision))
        )
    return made


def of(sequence: int, *groups: GroupName) -> Record:
    parts = tuple(GroupPart(group=g, epoch=Epoch(1), writes=(write(f"/{g}"),)) for g in groups)
    return Record(sequence=Sequence(sequence), parts=parts)


def stream(*groups: OutOfStep, start: int = 10) -> StreamLag:
    made = StreamLag()
    made.on_connected(Sequence(start), is_fresh=False, now_ms=0)
    made.on_acknowledged(Sequence(start), now_ms=0, out_of_step=told(*groups))
    return made


def passed(lag: StreamLag, *records: Record, change: OutOfStepChange | None = None) -> None:
    """The target acknowledges the main stream up to and with these."""
    through = records[-1].sequence
    lag.on_read(through, records)
    lag.on_acknowledged(through, now_ms=0, out_of_step=change)


ANCHORS = times((0, 10), (100, 11), (200, 12), (300, 13), (3_000, 13))
