"""Judges what an error of etcd or of gRPC says about whether the request took effect.

Only what etcd itself refused, by name, counts as refused. A bare UNAVAILABLE says nothing: it is
what gRPC reports both for a request that never left and for a lost reply.
"""

from __future__ import annotations

import enum

import attrs
import grpc

from meshkit.errors import (
    Compacted,
    Conflict,
    InvalidInput,
    LeaseLost,
    MeshError,
    NoSpace,
    NotAllowed,
    Refused,
    TooLarge,
)
from meshkit.ordinals import LeaseId, Revision


class Judgement(enum.Enum):
    """What a failed call says about its request."""

    REFUSED = "refused"
    """etcd looked at it and did nothing; another member would say the same."""
    REFUSED_HERE = "refused_here"
    """This member did nothing; another may serve it."""
    TOKEN_REFUSED = "token_refused"  # noqa: S105 not a secret
    """Nothing was done: the auth token is no longer valid."""
    AMBIGUOUS = "ambiguous"
    """It may have taken effect."""


@attrs.frozen(kw_only=True)
class Subject:
    """What a request was about, for the words of an error."""

    operation: str
    lease_id: LeaseId = LeaseId(0)  # noqa: RUF009 a NewType
    revision: Revision = Revision(0)  # noqa: RUF009 a NewType


_TOKEN_REFUSALS = ("invalid auth token", "revision of auth store is old")

_REFUSALS_HERE = (
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "rpc not supported for learner",
    "etcdserver: not leader",
)

_REFUSALS: tuple[tuple[str, type[Refused]], ...] = (
    ("duplicate key given in txn request", InvalidInput),
    ("too many operations in txn request", InvalidInput),
    ("key is not provided", InvalidInput),
    ("key not found", InvalidInput),
    ("value is provided", InvalidInput),
    ("lease is provided", InvalidInput),
    ("required revision is a future revision", InvalidInput),
    ("too large lease TTL", InvalidInput),
    ("database space exceeded", NoSpace),
    ("lease already exists", Conflict),
    ("request is too large", TooLarge),
    ("message larger than max", TooLarge),
    ("permission denied", NotAllowed),
    ("authentication failed", NotAllowed),
    ("user name is empty", NotAllowed),
    ("user name not found", NotAllowed),
    ("authentication is not enabled", NotAllowed),
    ("corrupt cluster", Refused),
    ("not capable", Refused),
)

_REFUSING_CODES: dict[grpc.StatusCode, type[Refused]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowed,
    grpc.StatusCode.UNIMPLEMENTED: Refused,
}


def judge(error: grpc.aio.AioRpcError) -> Judgement:
    """Return what a failed call says about its request."""
    details = error.details() or ""
    if any(words in details for words in _TOKEN_REFUSALS):
        return Judgement.TOKEN_REFUSED
    if any(words in details for words in _REFUSALS_HERE):
        return Judgement.REFUSED_HERE
    if (
        "has been compacted" in details
        or "requested lease not found" in details
        or any(words in details for words, _ in _REFUSALS)
        or error.code() in _REFUSING_CODES
    ):
        return Judgement.REFUSED
    return Judgement.AMBIGUOUS


def refusal(error: grpc.aio.AioRpcError, subject: Subject) -> MeshError:
    """Return MeshKit's error for a call that was refused."""
    details = error.details() or ""
    if "has been compacted" in details:
        # etcd does not say up to where; it is past the revision asked for.
        return Compacted(revision=subject.revision, compact_revision=subject.revision + 1)
    if "requested lease not found" in details:
        return LeaseLost(subject.lease_id)
    for words, kind in _REFUSALS:
        if words in details:
            return kind(f"{subject.operation}: {details}")
    return _REFUSING_CODES.get(error.code(), Refused)(f"{subject.operation}: {details}")


def in_words(error: grpc.aio.AioRpcError) -> str:
    """Return the code and the details in one line."""
    return f"{error.code().name}: {error.details() or 'no details'}"
