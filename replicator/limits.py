"""Every bound of the replication engine, named in one place. Pure."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Limits:
    """How much may be in hand at once and how long anything may take. Milliseconds and bytes."""

    frame_bytes_max: int = 512 * 1024
    """A frame is closed once it holds this much; one record alone may be larger."""
    frame_writes_max: int = 1000
    source_backlog_bytes_max: int = 4 * 1024 * 1024
    """Revisions a source keeps in memory between the watch and the frames."""
    shared_watch_bytes_max: int = 4 * 1024 * 1024
    """What is kept of the newest revisions for those who follow the head by one watch."""
    catch_up_revisions: int = 5_000
    """A source further behind its head than this reads by several watches: one gets 10,000/s."""
    catch_up_watches: int = 16
    catch_up_span_revisions: int = 1_000
    """Revisions that each of them reads before it begins elsewhere: what etcd sends it at once."""
    catch_up_bytes_max: int = 16 * 1024 * 1024
    """What they may hold that is not due yet; beside it one message of each watch."""
    backlog_revisions_max: int = 1_000_000
    """A target further behind is copied, if that is cheaper; 0: never."""
    backlog_look_ms: int = 5_000
    """Between two looks at how far a connected target is behind."""
    window_bytes_max: int = 8 * 1024 * 1024
    """What a source may have sent to a receiver that has not taken it in yet (credit)."""
    side_window_bytes_max: int = 2 * 1024 * 1024
    """The part of the window that copies and side streams may fill."""
    copy_bytes_per_s_max: int = 0
    """What all copies out of a region may send together; 0: as fast as they can."""
    compared_bytes_max: int = 4 * 1024 * 1024
    """What a source keeps of pages whose outlines a target has not answered yet, for all copies."""
    record_whole_bytes_max: int = 4 * 1024 * 1024
    """A larger revision (of a range delete, or of a lease) travels in pieces of a frame each."""
    record_bytes_max: int = 16 * 1024 * 1024
    """A revision that is larger still is not sent: its groups are copied. Bounds what a source
    holds of one revision (in memory several times this, for the smallest of keys)."""
    message_bytes_max: int = 16 * 1024 * 1024
    """The largest message a link accepts."""

    batch_writes_max: int = 3000
    """Writes of one apply transaction; one record alone may have more."""
    batch_writes_min: int = 64
    batch_bytes_max: int = 1024 * 1024
    batch_bytes_min: int = 16 * 1024
    batch_ms: int = 100
    """A batch that is done so fast may grow; one that takes more than twice this shrinks."""
    page_keys_max: int = 2000
    page_bytes_max: int = 512 * 1024

    linger_ms: int = 2
    """A frame waits for company if another one went so short a time ago; on an idle stream none."""
    linger_ms_max: int = 8
    """...or up to so long, where the target takes longer than twice that for a transaction."""
    ack_spacing_ms: int = 10
    """Acknowledgements are sent no closer to each other; a batch in between shares the next one."""
    coverage_interval_ms: int = 50
    """At most so often a frame is sent that holds no record and only says what it covers."""
    head_interval_ms: int = 200
    silence_ms_max: int = 5_000
    """A connection on which nothing was heard for so long is given up."""
    checkpoint_idle_ms: int = 5_000
    """At most so often a checkpoint is stored for progress that carried no record."""
    held_ms_min: int = 1_000
    held_ms_max: int = 30_000
    """A group that cannot be applied as it is waits so long before it is copied again."""
    parent_patience_ms: int = 3_000
    """How long an epoch waits for its parent's stream while that one is not connected."""
    redial_ms_min: int = 100
    redial_ms_max: int = 5_000
    hello_ms_max: int = 5_000

    take_in_look_ms: int = 10
    """Between two looks at whether anything still arrives, in an emergency."""
    anchor_interval_ms: int = 50
    """Between the linearizable reads that bracket commit times."""
    anchor_age_ms_max: int = 2_000
    """An older anchor proves nothing: lag is unknown."""
    anchors_max: int = 4096
    history_look_ms: int = 5_000
    """Between two looks at how far the store is compacted."""
    history_samples_max: int = 4096
    compactions_seen_max: int = 5
    """How many compactions are remembered, to learn from them by what rule they are made."""
    history_rate_ms: int = 60_000
    """Over how long the rate of revisions is taken."""
    spool_file_bytes_max: int = 16 * 1024 * 1024
    """A spool file is closed once it holds this much: the unit in which the spool is dropped."""
    spool_block_bytes: int = 256 * 1024
    """Revisions that are compressed and written together, as they weigh in memory."""
    spool_linger_ms: int = 100
    """How long a block waits for company."""
    spool_sync_ms: int = 1_000
    """Between two syncs to the disk; what a power cut takes is read from etcd again."""
    spool_look_ms: int = 1_000
    """Between two looks at who needs what of the spool."""
    catching_up_ms: int = 2_000
    """Lag above this is catching up, not streaming."""
    stalled_ms: int = 10_000
    """A stream that acknowledged nothing for so long while records wait has stalled."""


DEFAULT_LIMITS = Limits()
