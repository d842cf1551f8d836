from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Token(_message.Message):
    __slots__ = ("incarnation", "revision")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    revision: int
    def __init__(self, incarnation: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class Lineage(_message.Message):
    __slots__ = ("parent", "parent_incarnation", "parent_epoch", "sequence", "prefixes", "may_go_on")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PARENT_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PARENT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    MAY_GO_ON_FIELD_NUMBER: _ClassVar[int]
    parent: str
    parent_incarnation: str
    parent_epoch: int
    sequence: int
    prefixes: _containers.RepeatedScalarFieldContainer[str]
    may_go_on: bool
    def __init__(self, parent: _Optional[str] = ..., parent_incarnation: _Optional[str] = ..., parent_epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., prefixes: _Optional[_Iterable[str]] = ..., may_go_on: _Optional[bool] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("target", "source", "incarnation", "position", "credit_bytes", "takes_pieces", "resend_after", "takes_columns", "tells_out_of_step")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TAKES_PIECES_FIELD_NUMBER: _ClassVar[int]
    RESEND_AFTER_FIELD_NUMBER: _ClassVar[int]
    TAKES_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    TELLS_OUT_OF_STEP_FIELD_NUMBER: _ClassVar[int]
    target: str
    source: str
    incarnation: str
    position: int
    credit_bytes: int
    takes_pieces: bool
    resend_after: int
    takes_columns: bool
    tells_out_of_step: bool
    def __init__(self, target: _Optional[str] = ..., source: _Optional[str] = ..., incarnation: _Optional[str] = ..., position: _Optional[int] = ..., credit_bytes: _Optional[int] = ..., takes_pieces: _Optional[bool] = ..., resend_after: _Optional[int] = ..., takes_columns: _Optional[bool] = ..., tells_out_of_step: _Optional[bool] = ...) -> None: ...

class OutOfStep(_message.Message):
    __slots__ = ("group", "why", "position", "text")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    group: str
    why: str
    position: int
    text: str
    def __init__(self, group: _Optional[str] = ..., why: _Optional[str] = ..., position: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class OutOfStepChange(_message.Message):
    __slots__ = ("groups", "back")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    BACK_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[OutOfStep]
    back: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, groups: _Optional[_Iterable[_Union[OutOfStep, _Mapping]]] = ..., back: _Optional[_Iterable[str]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("applied", "durable", "credit_bytes", "stalled", "apply_ms", "out_of_step")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    APPLY_MS_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_STEP_FIELD_NUMBER: _ClassVar[int]
    applied: int
    durable: int
    credit_bytes: int
    stalled: str
    apply_ms: int
    out_of_step: OutOfStepChange
    def __init__(self, applied: _Optional[int] = ..., durable: _Optional[int] = ..., credit_bytes: _Optional[int] = ..., stalled: _Optional[str] = ..., apply_ms: _Optional[int] = ..., out_of_step: _Optional[_Union[OutOfStepChange, _Mapping]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("number", "group", "phase", "epoch", "sequence", "cursor", "compares", "compares_parts")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    COMPARES_FIELD_NUMBER: _ClassVar[int]
    COMPARES_PARTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    group: str
    phase: str
    epoch: int
    sequence: int
    cursor: bytes
    compares: bool
    compares_parts: bool
    def __init__(self, number: _Optional[int] = ..., group: _Optional[str] = ..., phase: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., cursor: _Optional[bytes] = ..., compares: _Optional[bool] = ..., compares_parts: _Optional[bool] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("number", "group")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    number: int
    group: str
    def __init__(self, number: _Optional[int] = ..., group: _Optional[str] = ...) -> None: ...

class Compared(_message.Message):
    __slots__ = ("number", "group", "start", "verdict", "fingerprints", "parts")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    group: str
    start: bytes
    verdict: str
    fingerprints: bytes
    parts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, number: _Optional[int] = ..., group: _Optional[str] = ..., start: _Optional[bytes] = ..., verdict: _Optional[str] = ..., fingerprints: _Optional[bytes] = ..., parts: _Optional[_Iterable[int]] = ...) -> None: ...

class ToSource(_message.Message):
    __slots__ = ("hello", "ack", "join", "leave", "compared")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ack: Ack
    join: Join
    leave: Leave
    compared: Compared
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., join: _Optional[_Union[Join, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., compared: _Optional[_Union[Compared, _Mapping]] = ...) -> None: ...

class Write(_message.Message):
    __slots__ = ("key", "value", "lease", "is_delete")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    IS_DELETE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    lease: int
    is_delete: bool
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., lease: _Optional[int] = ..., is_delete: _Optional[bool] = ...) -> None: ...

class LeaseTerm(_message.Message):
    __slots__ = ("lease", "ttl_s")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    lease: int
    ttl_s: int
    def __init__(self, lease: _Optional[int] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class GroupPart(_message.Message):
    __slots__ = ("group", "epoch", "writes", "leases")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WRITES_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    group: str
    epoch: int
    writes: _containers.RepeatedCompositeFieldContainer[Write]
    leases: _containers.RepeatedCompositeFieldContainer[LeaseTerm]
    def __init__(self, group: _Optional[str] = ..., epoch: _Optional[int] = ..., writes: _Optional[_Iterable[_Union[Write, _Mapping]]] = ..., leases: _Optional[_Iterable[_Union[LeaseTerm, _Mapping]]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("token", "lineage", "prefixes")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    token: Token
    lineage: Lineage
    prefixes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., lineage: _Optional[_Union[Lineage, _Mapping]] = ..., prefixes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Cut(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: Token
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ...) -> None: ...

class Resumed(_message.Message):
    __slots__ = ("is_dirty",)
    IS_DIRTY_FIELD_NUMBER: _ClassVar[int]
    is_dirty: bool
    def __init__(self, is_dirty: _Optional[bool] = ...) -> None: ...

class Scoped(_message.Message):
    __slots__ = ("prefixes",)
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    prefixes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, prefixes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ("group", "epoch", "opened", "cut", "resumed", "scoped")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    SCOPED_FIELD_NUMBER: _ClassVar[int]
    group: str
    epoch: int
    opened: Opened
    cut: Cut
    resumed: Resumed
    scoped: Scoped
    def __init__(self, group: _Optional[str] = ..., epoch: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., cut: _Optional[_Union[Cut, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., scoped: _Optional[_Union[Scoped, _Mapping]] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("number", "is_last")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    number: int
    is_last: bool
    def __init__(self, number: _Optional[int] = ..., is_last: _Optional[bool] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("sequence", "parts", "marks", "piece")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    parts: _containers.RepeatedCompositeFieldContainer[GroupPart]
    marks: _containers.RepeatedCompositeFieldContainer[Mark]
    piece: Piece
    def __init__(self, sequence: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[GroupPart, _Mapping]]] = ..., marks: _Optional[_Iterable[_Union[Mark, _Mapping]]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ...) -> None: ...

class Records(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ...) -> None: ...

class Items(_message.Message):
    __slots__ = ("items", "leases")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Write]
    leases: _containers.RepeatedCompositeFieldContainer[LeaseTerm]
    def __init__(self, items: _Optional[_Iterable[_Union[Write, _Mapping]]] = ..., leases: _Optional[_Iterable[_Union[LeaseTerm, _Mapping]]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("content", "raw_bytes")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    raw_bytes: int
    def __init__(self, content: _Optional[bytes] = ..., raw_bytes: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    code: str
    text: str
    def __init__(self, code: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class SegmentStanding(_message.Message):
    __slots__ = ("group", "epoch", "token", "lineage", "cut")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    group: str
    epoch: int
    token: Token
    lineage: Lineage
    cut: int
    def __init__(self, group: _Optional[str] = ..., epoch: _Optional[int] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., lineage: _Optional[_Union[Lineage, _Mapping]] = ..., cut: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("source", "incarnation", "start", "is_fresh", "segments", "resend_refused")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    IS_FRESH_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    RESEND_REFUSED_FIELD_NUMBER: _ClassVar[int]
    source: str
    incarnation: str
    start: int
    is_fresh: bool
    segments: _containers.RepeatedCompositeFieldContainer[SegmentStanding]
    resend_refused: str
    def __init__(self, source: _Optional[str] = ..., incarnation: _Optional[str] = ..., start: _Optional[int] = ..., is_fresh: _Optional[bool] = ..., segments: _Optional[_Iterable[_Union[SegmentStanding, _Mapping]]] = ..., resend_refused: _Optional[str] = ...) -> None: ...

class Columns(_message.Message):
    __slots__ = ("group", "epoch", "sequences", "keys", "values")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    group: str
    epoch: int
    sequences: _containers.RepeatedScalarFieldContainer[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, group: _Optional[str] = ..., epoch: _Optional[int] = ..., sequences: _Optional[_Iterable[int]] = ..., keys: _Optional[_Iterable[bytes]] = ..., values: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("after", "through", "records", "columns")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    after: int
    through: int
    records: Payload
    columns: Payload
    def __init__(self, after: _Optional[int] = ..., through: _Optional[int] = ..., records: _Optional[_Union[Payload, _Mapping]] = ..., columns: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class SideFrame(_message.Message):
    __slots__ = ("group", "number", "after", "through", "records", "is_last")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    group: str
    number: int
    after: int
    through: int
    records: Payload
    is_last: bool
    def __init__(self, group: _Optional[str] = ..., number: _Optional[int] = ..., after: _Optional[int] = ..., through: _Optional[int] = ..., records: _Optional[_Union[Payload, _Mapping]] = ..., is_last: _Optional[bool] = ...) -> None: ...

class CopyPage(_message.Message):
    __slots__ = ("group", "number", "cut", "start", "end", "items", "is_first", "is_final", "is_delta", "dropped", "place")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    IS_FIRST_FIELD_NUMBER: _ClassVar[int]
    IS_FINAL_FIELD_NUMBER: _ClassVar[int]
    IS_DELTA_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    group: str
    number: int
    cut: int
    start: bytes
    end: bytes
    items: Payload
    is_first: bool
    is_final: bool
    is_delta: bool
    dropped: _containers.RepeatedScalarFieldContainer[int]
    place: int
    def __init__(self, group: _Optional[str] = ..., number: _Optional[int] = ..., cut: _Optional[int] = ..., start: _Optional[bytes] = ..., end: _Optional[bytes] = ..., items: _Optional[_Union[Payload, _Mapping]] = ..., is_first: _Optional[bool] = ..., is_final: _Optional[bool] = ..., is_delta: _Optional[bool] = ..., dropped: _Optional[_Iterable[int]] = ..., place: _Optional[int] = ...) -> None: ...

class Outline(_message.Message):
    __slots__ = ("group", "number", "cut", "start", "end", "range_end", "keys_count", "digest", "part_starts", "part_digests")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    RANGE_END_FIELD_NUMBER: _ClassVar[int]
    KEYS_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PART_STARTS_FIELD_NUMBER: _ClassVar[int]
    PART_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    group: str
    number: int
    cut: int
    start: bytes
    end: bytes
    range_end: bytes
    keys_count: int
    digest: bytes
    part_starts: _containers.RepeatedScalarFieldContainer[bytes]
    part_digests: bytes
    def __init__(self, group: _Optional[str] = ..., number: _Optional[int] = ..., cut: _Optional[int] = ..., start: _Optional[bytes] = ..., end: _Optional[bytes] = ..., range_end: _Optional[bytes] = ..., keys_count: _Optional[int] = ..., digest: _Optional[bytes] = ..., part_starts: _Optional[_Iterable[bytes]] = ..., part_digests: _Optional[bytes] = ...) -> None: ...

class SideRefused(_message.Message):
    __slots__ = ("group", "number", "epoch", "reason")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    group: str
    number: int
    epoch: int
    reason: str
    def __init__(self, group: _Optional[str] = ..., number: _Optional[int] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("revision", "at_ms")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    at_ms: int
    def __init__(self, revision: _Optional[int] = ..., at_ms: _Optional[int] = ...) -> None: ...

class ToTarget(_message.Message):
    __slots__ = ("refusal", "welcome", "frame", "side_frame", "copy_page", "side_refused", "head", "outline")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SIDE_FRAME_FIELD_NUMBER: _ClassVar[int]
    COPY_PAGE_FIELD_NUMBER: _ClassVar[int]
    SIDE_REFUSED_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    OUTLINE_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    welcome: Welcome
    frame: Frame
    side_frame: SideFrame
    copy_page: CopyPage
    side_refused: SideRefused
    head: Head
    outline: Outline
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., side_frame: _Optional[_Union[SideFrame, _Mapping]] = ..., copy_page: _Optional[_Union[CopyPage, _Mapping]] = ..., side_refused: _Optional[_Union[SideRefused, _Mapping]] = ..., head: _Optional[_Union[Head, _Mapping]] = ..., outline: _Optional[_Union[Outline, _Mapping]] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("target", "source", "incarnation", "group", "epoch", "revision", "buckets")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    target: str
    source: str
    incarnation: str
    group: str
    epoch: int
    revision: int
    buckets: bytes
    def __init__(self, target: _Optional[str] = ..., source: _Optional[str] = ..., incarnation: _Optional[str] = ..., group: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., buckets: _Optional[bytes] = ...) -> None: ...

class GroupDigest(_message.Message):
    __slots__ = ("prefixes", "keys_count", "buckets")
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    KEYS_COUNT_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    prefixes: _containers.RepeatedScalarFieldContainer[bytes]
    keys_count: int
    buckets: bytes
    def __init__(self, prefixes: _Optional[_Iterable[bytes]] = ..., keys_count: _Optional[int] = ..., buckets: _Optional[bytes] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("key", "hash")
    KEY_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    hash: bytes
    def __init__(self, key: _Optional[bytes] = ..., hash: _Optional[bytes] = ...) -> None: ...

class Entries(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class ToVerifier(_message.Message):
    __slots__ = ("refusal", "digest", "entries")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    digest: GroupDigest
    entries: Entries
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ..., digest: _Optional[_Union[GroupDigest, _Mapping]] = ..., entries: _Optional[_Union[Entries, _Mapping]] = ...) -> None: ...
