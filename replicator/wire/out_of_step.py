"""Which groups are out of step, to the wire and back. Pure."""

from __future__ import annotations

from meshkit.names import GroupName
from meshkit.ordinals import Sequence
from replicator.messages import OutOfStep, OutOfStepChange
from replicator.wire import replication_pb2 as pb


def change_to_wire(told: OutOfStepChange) -> pb.OutOfStepChange:
    """Return what has changed as it travels."""
    wire = pb.OutOfStepChange(back=told.back)
    for one in told.groups:
        added = wire.groups.add(group=one.group, why=one.why, text=one.text)
        if one.position is not None:
            added.position = one.position
    return wire


def change(wire: pb.OutOfStepChange) -> OutOfStepChange:
    """Return what has changed."""
    return OutOfStepChange(
        groups=tuple(
            OutOfStep(
                group=GroupName(one.group),
                why=one.why,
                position=Sequence(one.position) if one.HasField("position") else None,
                text=one.text,
            )
            for one in wire.groups
        ),
        back=tuple(GroupName(group) for group in wire.back),
    )
