"""Validated identifiers. A name that passed here is safe in a key, a URL and a shell. Pure."""

import re
from typing import NewType

from meshkit.errors import InvalidInput

ClusterName = NewType("ClusterName", str)
GroupName = NewType("GroupName", str)
FailoverId = NewType("FailoverId", str)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
NAME_RULE = "1 to 63 lower-case letters, digits and hyphens, beginning and ending with no hyphen"


def cluster_name(text: str) -> ClusterName:
    """Return `text` as a cluster name.

    Raises:
        InvalidInput: it is not a DNS label.
    """
    return ClusterName(_label(text, "cluster name"))


def group_name(text: str) -> GroupName:
    """Return `text` as a group name.

    Raises:
        InvalidInput: it is not a DNS label.
    """
    return GroupName(_label(text, "group name"))


def failover_id(text: str) -> FailoverId:
    """Return `text` as a failover id.

    Raises:
        InvalidInput: it is not a DNS label.
    """
    return FailoverId(_label(text, "failover id"))


def _label(text: str, what: str) -> str:
    if not _NAME.match(text):
        raise InvalidInput(f"{text!r} is not a {what}: it must be {NAME_RULE}")
    return text
