"""Records as columns: what most frames hold, without a message for each record. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from itertools import accumulate, pairwise

from meshkit.names import GroupName
from meshkit.ordinals import Epoch, Sequence
from meshkit.store.txn import Put
from replicator.record import GroupPart, Record
from replicator.wire import replication_pb2 as pb


def columns_bytes(records: Ordered[Record]) -> bytes | None:
    """Return records as a `Columns` message has them; None if they are not all plain puts."""
    puts: list[Put] = []
    first: GroupPart | None = None
    for record in records:
        if len(record.parts) != 1 or record.marks or record.piece is not None:
            return None
        part = record.parts[0]
        if len(part.writes) != 1 or part.leases:
            return None
        (write,) = part.writes
        if not isinstance(write, Put) or write.lease or write.keep_value:
            return None
        if first is None:
            first = part
        elif part.epoch != first.epoch or part.group != first.group:
            return None
        puts.append(write)
    if first is None:
        return None
    sequences = [record.sequence for record in records]
    made: bytes = pb.Columns(
        group=first.group,
        epoch=first.epoch,
        sequences=[sequences[0], *(later - one for one, later in pairwise(sequences))],
        keys=[put.key for put in puts],
        values=[put.value for put in puts],
    ).SerializeToString()
    return made


def records_of(columns: pb.Columns) -> tuple[Record, ...]:
    """Return the records of a `Columns` message.

    Raises:
        ValueError: its columns are not of one length.
    """
    group, epoch = GroupName(columns.group), Epoch(columns.epoch)
    rows = zip(accumulate(columns.sequences), columns.keys, columns.values, strict=True)
    made = Record.of_put
    return tuple([made(Sequence(s), group, epoch, key, value) for s, key, value in rows])
