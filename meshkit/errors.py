"""Every error MeshKit raises on purpose, arranged by what the caller does next.

An error's docstring is the sentence for the operator; its message carries the facts. Exit codes
are those of architecture section 8, and each class knows its own.
"""


class MeshError(Exception):
    """Something MeshKit expected could not be done."""

    exit_code: int = 1
    code: str = "failed"
    hint: str = ""
    state: str = ""
    """What state things are in now, where more is known than the class says."""

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        if hint is not None:
            self.hint = hint


class Refused(MeshError):
    """Nothing happened and nothing will. Safe to retry or to give up."""

    exit_code = 3
    code = "refused"


class OutcomeUnknown(MeshError):
    """It may have happened. Read the state back before deciding anything."""

    exit_code = 9
    code = "outcome_unknown"


class Unreachable(Refused):
    """The server could not be reached; the request was never sent, or was only a read."""

    exit_code = 7
    code = "unreachable"


class NotAllowed(Refused):
    """The caller's identity is missing, not verified, or lacks the role for this."""

    exit_code = 4
    code = "not_allowed"


class Conflict(Refused):
    """Something else is going on, or the state moved since it was shown."""

    exit_code = 6
    code = "conflict"


class InvalidInput(Refused):
    """The request itself is wrong; nothing was changed."""

    exit_code = 2
    code = "invalid_input"


class NotFound(Refused):
    """There is no such thing."""

    exit_code = 3
    code = "not_found"


class Compacted(Refused):
    """The history asked for has been compacted away by etcd."""

    code = "compacted"

    def __init__(self, *, revision: int, compact_revision: int) -> None:
        super().__init__(f"revision {revision} is gone: compacted up to {compact_revision}")
        self.revision = revision
        self.compact_revision = compact_revision


class LeaseLost(Refused):
    """The lease does not exist (any more); whatever hung on it is gone or will not be written."""

    code = "lease_lost"

    def __init__(self, lease_id: int) -> None:
        super().__init__(f"lease {lease_id:x} does not exist")
        self.lease_id = lease_id


class NoSpace(Refused):
    """etcd has raised its NOSPACE alarm and refuses writes."""

    code = "no_space"


class TooLarge(Refused):
    """The request is larger than etcd accepts."""

    code = "too_large"


class TermEnded(Refused):
    """Another process leads now, or nobody does."""

    code = "term_ended"


class RevisionConflict(Conflict):
    """A key moved between reading it and writing it."""

    code = "revision_conflict"


class StaleToken(Refused):
    """The receiver has already obeyed a newer fencing token."""

    code = "stale_token"

    def __init__(self, *, token: object, token_seen: object) -> None:
        super().__init__(f"token {token} is older than {token_seen}")
        self.token = token
        self.token_seen = token_seen


class StoreReplaced(Refused):
    """The etcd behind this address is not the one we knew: its history is another incarnation."""

    code = "store_replaced"


class CorruptRecord(MeshError):
    """A stored record cannot be read; it was written by hand or by something else."""

    code = "corrupt_record"


class NewerSchema(CorruptRecord):
    """A stored record was written by a newer MeshKit than this one."""

    code = "newer_schema"


class InvalidConfig(InvalidInput):
    """The configuration is refused; nothing was started."""

    code = "invalid_config"
