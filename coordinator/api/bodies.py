"""Request bodies, checked by hand: every mistake is named with its field. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from coordinator.failover.loss import LossBound
from coordinator.failover.record import FailoverKind
from coordinator.governance.preflight import WAIVABLE_NAMES
from meshkit.errors import InvalidInput
from meshkit.model import (
    ClusterDescriptor,
    ClusterIntent,
    CoordinationLoss,
    FailoverMode,
    FailoverPolicy,
    Fidelity,
    Group,
    GroupPolicy,
    LeasePolicy,
    VerifyMode,
)
from meshkit.names import ClusterName, GroupName, cluster_name, group_name
from meshkit.ordinals import Epoch, Sequence
from meshkit.replay import FIRST_SEQUENCE

REQUEST_ID_CHARS_MAX = 128
E = TypeVar("E", bound=enum.Enum)
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class FailoverRequest:
    """What somebody asks for."""

    target: ClusterName | None
    kind: FailoverKind
    expect_epoch: Epoch | None
    reason: str
    change: str
    waive: tuple[str, ...]
    dry_run: bool
    request_id: str
    accept_loss: LossBound | None = None
    """For an emergency: what may be lost, at most."""
    no_fence_wait: bool = False
    planned_first: bool = False
    """Try a planned failover, and go on as an emergency only if that fails."""


@attrs.frozen(kw_only=True)
class VerifyAsked:
    """What somebody asks to be compared; no target means every copy."""

    target: ClusterName | None
    repair: bool
    request_id: str


@attrs.frozen(kw_only=True)
class ReplayAsked:
    """What somebody asks to be sent again; no target means to every copy."""

    target: ClusterName | None
    start: Sequence
    request_id: str


@attrs.frozen(kw_only=True)
class PauseAsked:
    """What somebody wants to stand still, or to go on: one group, one stream, or all."""

    group: GroupName | None
    source: ClusterName | None
    target: ClusterName | None
    reason: str


def cluster_of(
    name: ClusterName, body: Mapping[str, Any], *, before: ClusterDescriptor | None
) -> ClusterDescriptor:
    """Return the descriptor that `body` describes, on top of the one before.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    fields = _Fields(
        body,
        {
            "region": _text,
            "intent": _one_of(ClusterIntent),
            "priority": _number,
            "failover_policy": _one_of(FailoverPolicy),
            "etcd_endpoints": _texts,
            "replication_endpoints": _texts,
            "owners": _texts,
            "annotations": _mapping,
            "change_ticket": _text,
        },
        also=("name",),
    )
    _same_name(body, "name", name)
    return attrs.evolve(before or ClusterDescriptor(name=name), **fields.given)


def group_of(
    name: GroupName, body: Mapping[str, Any], *, before: Group | None
) -> tuple[Group, ClusterName | None]:
    """Return the group that `body` describes, and where it is to be active first.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    fields = _Fields(
        body,
        {"prefixes": _texts, "members": _clusters, "active": _cluster, "policy": _mapping},
        also=("name", "group"),
    )
    _same_name(body, "name", name)
    _same_name(body, "group", name)
    given = fields.given
    active = given.pop("active", None)
    if before is None and ("prefixes" not in given or "members" not in given):
        raise InvalidInput(f"group {name} is new: prefixes and members are needed")
    if "policy" in given:
        given["policy"] = _policy(given["policy"], before.policy if before else GroupPolicy())
    made = attrs.evolve(before, **given) if before else Group(name=name, **given)
    return made, active


def _policy(body: Mapping[str, Any], before: GroupPolicy) -> GroupPolicy:
    names = [field.name for field in attrs.fields(GroupPolicy)]
    choices = {
        "verify": _one_of(VerifyMode),
        "leases": _one_of(LeasePolicy),
        "fidelity": _one_of(Fidelity),
        "on_coordination_loss": _one_of(CoordinationLoss),
        "failover": _one_of(FailoverMode),
    }
    readers = {**dict.fromkeys(names, _number), **choices}
    fields = _Fields(body, readers)
    try:
        return attrs.evolve(before, **fields.given)
    except ValueError as error:
        raise InvalidInput(f"policy: {error.args[0]}") from error


def failover_of(body: Mapping[str, Any], *, idempotency_key: str) -> FailoverRequest:
    """Return the request that `body` and its header make.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    fields = _Fields(
        body,
        {
            "target": _cluster,
            "kind": _one_of(FailoverKind),
            "expect_epoch": _number,
            "reason": _text,
            "change": _text,
            "waive": _texts,
            "dry_run": _flag,
            "request_id": _text,
            "accept_loss": _mapping,
            "no_fence_wait": _flag,
            "planned_first": _flag,
        },
    )
    given = fields.given
    request_id = given.get("request_id") or idempotency_key
    if len(request_id) > REQUEST_ID_CHARS_MAX:
        raise InvalidInput(f"request_id: at most {REQUEST_ID_CHARS_MAX} characters")
    waive = given.get("waive", ())
    unknown = sorted(set(waive) - WAIVABLE_NAMES)
    if unknown:
        raise InvalidInput(
            f"waive: there is no check {', '.join(unknown)}",
            hint=f"checks are: {', '.join(sorted(WAIVABLE_NAMES))}",
        )
    expect_epoch = given.get("expect_epoch")
    return FailoverRequest(
        target=given.get("target"),
        kind=given.get("kind", FailoverKind.PROMOTE),
        expect_epoch=None if expect_epoch is None else Epoch(expect_epoch),
        reason=given.get("reason", ""),
        change=given.get("change", ""),
        waive=waive,
        dry_run=given.get("dry_run", False),
        request_id=request_id,
        **_rescue_of(given),
    )


def _rescue_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what only an emergency may be told."""
    names = ("accept_loss", "no_fence_wait", "planned_first")
    is_emergency = given.get("kind") is FailoverKind.EMERGENCY
    told = {name: given[name] for name in names if given.get(name)}
    if told and not is_emergency:
        raise InvalidInput(f"{', '.join(told)}: only for an emergency (kind: emergency)")
    if is_emergency and not given.get("reason"):
        raise InvalidInput("reason: an emergency needs one; it is kept in the audit")
    if "accept_loss" in given:
        told["accept_loss"] = bound_of(given["accept_loss"])
    return told


def bound_of(body: Mapping[str, Any]) -> LossBound:
    """Return the bound on a loss that somebody accepts.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    fields = _Fields(body, {"records": _number, "seconds": _number, "unknown": _flag})
    try:
        bound = LossBound(**fields.given)
    except ValueError as error:
        raise InvalidInput(f"accept_loss: {error.args[0]}") from error
    if bound == LossBound():
        raise InvalidInput(
            "accept_loss: it accepts nothing",
            hint="say records and seconds, both or one of them, or unknown",
        )
    return bound


def consent_of(body: Mapping[str, Any]) -> LossBound:
    """Return the bound that somebody accepts in a failover that waits for it.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    fields = _Fields(body, {"accept_loss": _mapping})
    if "accept_loss" not in fields.given:
        raise InvalidInput("accept_loss: which loss is accepted?")
    return bound_of(fields.given["accept_loss"])


def verify_of(body: Mapping[str, Any], *, idempotency_key: str) -> VerifyAsked:
    """Return the request to compare that `body` and its header make.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    fields = _Fields(body, {"target": _cluster, "repair": _flag, "request_id": _text})
    request_id = fields.given.get("request_id") or idempotency_key
    if len(request_id) > REQUEST_ID_CHARS_MAX:
        raise InvalidInput(f"request_id: at most {REQUEST_ID_CHARS_MAX} characters")
    return VerifyAsked(
        target=fields.given.get("target"),
        repair=fields.given.get("repair", False),
        request_id=request_id,
    )


def replay_of(body: Mapping[str, Any], *, idempotency_key: str) -> ReplayAsked:
    """Return the request to send history again that `body` and its header make.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    given = _Fields(body, {"target": _cluster, "start": _number, "request_id": _text}).given
    start = given.get("start")
    if start is None or start < FIRST_SEQUENCE:
        raise InvalidInput(f"start: the first sequence to send again, from {FIRST_SEQUENCE} on")
    request_id = given.get("request_id") or idempotency_key
    if len(request_id) > REQUEST_ID_CHARS_MAX:
        raise InvalidInput(f"request_id: at most {REQUEST_ID_CHARS_MAX} characters")
    return ReplayAsked(target=given.get("target"), start=Sequence(start), request_id=request_id)


def pause_of(body: Mapping[str, Any]) -> PauseAsked:
    """Return what `body` wants paused or resumed.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    readers = {"group": _group, "source": _cluster, "target": _cluster, "reason": _text}
    given = _Fields(body, readers).given
    if ("source" in given) != ("target" in given):
        raise InvalidInput("a stream is named by its source and its target")
    if "group" in given and "source" in given:
        raise InvalidInput("either a group or a stream, not both")
    return PauseAsked(
        group=given.get("group"),
        source=given.get("source"),
        target=given.get("target"),
        reason=given.get("reason", ""),
    )


def reason_of(body: Mapping[str, Any]) -> str:
    """Return the reason that somebody gives for an act.

    Raises:
        InvalidInput: it is no text.
    """
    reason: str = _Fields(body, {"reason": _text}).given.get("reason", "")
    return reason


# --- fields -------------------------------------------------------------------------------------


class _Fields:
    """The fields given in a body, each read by its reader; null counts as left out."""

    def __init__(
        self,
        body: Mapping[str, Any],
        readers: Mapping[str, Callable[[Any], Any]],
        *,
        also: tuple[str, ...] = (),
    ) -> None:
        unknown = sorted(set(body) - set(readers) - set(also))
        if unknown:
            raise InvalidInput(
                f"unknown field {', '.join(unknown)}", hint=f"fields are: {', '.join(readers)}"
            )
        self.given: dict[str, Any] = {}
        for name, reader in readers.items():
            if body.get(name) is not None:
                try:
                    self.given[name] = reader(body[name])
                except ValueError as error:
                    raise InvalidInput(f"{name}: {error}") from error
                except InvalidInput as error:
                    raise InvalidInput(f"{name}: {error}") from error


def _same_name(body: Mapping[str, Any], field: str, name: str) -> None:
    if body.get(field) not in {None, name}:
        raise InvalidInput(f"{field}: the body says {body[field]!r}, the path {name!r}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {value!r}")  # noqa: TRY004
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected a whole number, found {value!r}")  # noqa: TRY004
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {value!r}")  # noqa: TRY004
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of texts, found {value!r}")  # noqa: TRY004
    return tuple(_text(item) for item in value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {value!r}")  # noqa: TRY004
    return value


def _cluster(value: Any) -> ClusterName:
    return cluster_name(_text(value))


def _group(value: Any) -> GroupName:
    return group_name(_text(value))


def _clusters(value: Any) -> tuple[ClusterName, ...]:
    return tuple(cluster_name(text) for text in _texts(value))


def _one_of(kind: type[E]) -> Callable[[Any], E]:
    def read(value: Any) -> E:
        try:
            return kind(value)
        except ValueError as error:
            allowed = ", ".join(member.value for member in kind)
            raise ValueError(f"expected one of {allowed}, found {value!r}") from error

    return read


# For the bodies of other modules.
Fields = _Fields
cluster_field, number_field, text_field, texts_field = _cluster, _number, _text, _texts
flag_field = _flag
