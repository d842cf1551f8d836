"""What `apply -f` reads: specifications of clusters and groups, checked before anything is sent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import yaml

from meshkit.codec import to_plain
from meshkit.errors import InvalidConfig
from meshkit.model import (
    ClusterIntent,
    CoordinationLoss,
    FailoverMode,
    FailoverPolicy,
    Fidelity,
    LeasePolicy,
    VerifyMode,
)
from meshkit.names import ClusterName, GroupName
from meshkit.yaml_records import documents, read_text, record_of

S = TypeVar("S", bound="ClusterSpec | GroupSpec")


@attrs.frozen(kw_only=True)
class ClusterSpec:
    """A cluster as its file says; what is left out keeps its value."""

    name: ClusterName
    region: str | None = None
    intent: ClusterIntent | None = None
    priority: int | None = None
    failover_policy: FailoverPolicy | None = None
    etcd_endpoints: tuple[str, ...] | None = None
    replication_endpoints: tuple[str, ...] | None = None
    owners: tuple[str, ...] | None = None
    annotations: Mapping[str, str] | None = None
    change_ticket: str | None = None


def _above(least: int) -> Callable[[Any, Any, int | None], None]:
    def check(_record: Any, field: Any, value: int | None) -> None:
        if value is not None and value <= least:
            raise ValueError(f"{field.name}: {value} is too small, at least {least + 1}")

    return check


@attrs.frozen(kw_only=True)
class PolicySpec:
    """A group's policy; what is left out keeps its value."""

    lag_ms_max: int | None = None
    catch_up_lag_ms_max: int | None = None
    catch_up_ms_max: int | None = None
    pause_budget_ms: int | None = None
    cool_down_ms: int | None = None
    verify: VerifyMode | None = None
    verify_age_ms_max: int | None = None
    verify_ms_max: int | None = None
    verify_every_ms: int | None = None
    leases: LeasePolicy | None = None
    fidelity: Fidelity | None = None
    on_coordination_loss: CoordinationLoss | None = None
    failover: FailoverMode | None = None
    automatic_after_ms: int | None = attrs.field(default=None, validator=_above(0))
    automatic_cool_down_ms: int | None = attrs.field(default=None, validator=_above(-1))
    automatic_loss_records_max: int | None = attrs.field(default=None, validator=_above(-1))
    automatic_loss_seconds_max: int | None = attrs.field(default=None, validator=_above(0))


@attrs.frozen(kw_only=True)
class GroupSpec:
    """A group as its file says."""

    name: GroupName
    prefixes: tuple[str, ...]
    members: tuple[ClusterName, ...]
    active: ClusterName | None = None
    """Counts only when the group is made."""
    policy: PolicySpec | None = None


def load_specs(cls: type[S], path: str) -> list[S]:
    """Return the specifications in a file (`-` is stdin): one a document, or lists of them.

    Raises:
        InvalidConfig: says line and field of everything that is wrong.
    """
    source = "stdin" if path == "-" else path
    text = sys.stdin.read() if path == "-" else read_text(Path(path))
    specs: list[S] = []
    problems: list[str] = []
    for document in documents(text, source=source):
        nodes = document.value if isinstance(document, yaml.SequenceNode) else [document]
        for node in nodes:
            try:
                specs.append(record_of(cls, node, source=source, directory=Path()))
            except InvalidConfig as error:
                problems.append(str(error))
    if problems:
        raise InvalidConfig("\n".join(problems))
    if not specs:
        raise InvalidConfig(f"{source} is empty")
    return specs


def body_of(spec: ClusterSpec | GroupSpec) -> dict[str, Any]:
    """Return the request body of a specification: only what it says."""
    plain = to_plain(spec)
    body = {name: value for name, value in plain.items() if value is not None}
    if isinstance(body.get("policy"), dict):
        body["policy"] = {n: v for n, v in body["policy"].items() if v is not None}
    return body
